"""Text networks of Hugging Face: a folder or a repository becomes a model with its tokenizer, and a folder again."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pooch
import safetensors.numpy
import tokenizers

from tl_jax import models, tree
from tl_jax.data import tokens
from tl_jax.errors import UserError
from tl_jax.models.bert import Bert
from tl_jax.weights import bert, hub, readers
from tl_jax.weights.merge import MergeError, merge
from tl_jax.weights.rules import convert

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_OPTIONAL = {"head", "pooler", "masked_dense", "masked_norm", "masked_bias"}  # a file may have them or not
SLACK = 128  # rows of the words' embeddings beyond the vocabulary: tables are filled up to a multiple of this at most


class TextNetwork(NamedTuple):
    """A text model with its weights and its tokenizer.

    Attributes:
        model: linen module; ``model.apply(variables, **tokens, train=False)`` gives ``(output, endpoints)``.
        variables: ``{"params": ...}``, float32.
        tokenizer: of the folder; it neither cuts nor pads by itself.
        kind: "bert" or "distilbert".
        classes: names of the K classes, where there is a head.
        new: whether the head was drawn at random instead of loaded.
        path: the weights file, None for random weights.
        sha256: of that file.
        notes: what the user should know of it.
    """

    model: Bert
    variables: Mapping[str, Any]
    tokenizer: tokenizers.Tokenizer
    kind: str
    classes: tuple[str, ...] = ()
    new: bool = False
    path: Path | None = None
    sha256: str = ""
    notes: tuple[str, ...] = ()

    def tokenize(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], max_length: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return ids of the tokens of N texts, or of N pairs, as the model takes them.

        Args:
            texts: N texts, or N pairs of texts.
            max_length: tokens at most, [CLS] and [SEP] among them; None for what the model takes.

        Returns:
            ``input_ids``, ``attention_mask`` and ``token_type_ids``, int32 (N, L), L that of the longest text.
        """
        most = min(max_length or self.model.positions, self.model.positions)
        encodings = tokens.encode(self.tokenizer, texts, most)
        return tokens.padded(encodings, self.tokenizer.token_to_id("[PAD]"))


def load(
    name: str,
    path: str | Path | None,
    num_classes: int | None = None,
    *,
    head: str = "auto",
    seed: int = 0,
    **options: Any,
) -> TextNetwork:
    """Build the text network of a folder, or of a repository on the Hugging Face hub.

    Args:
        name: "bert" or "distilbert", which ``config.json`` must agree with.
        path: folder with ``config.json``, weights (``model.safetensors`` or ``pytorch_model.bin``) and tokenizer
            (``tokenizer.json`` or ``vocab.txt``), or the "owner/name" of a repository.
        num_classes: K of the head; None takes what the file has.
        head: "auto" keeps the file's head where it has K outputs of the right kind, else draws one; "new" always draws
            one; "keep" insists on the file's.
        seed: of what is drawn.
        **options: attributes of ``Bert``: ``output`` says what kind of head, ``pooling`` what it reads. Without a
            pooler in the file texts are the mean of their tokens.

    Raises:
        UserError: files that are missing, damaged, or of another network.
    """
    folder = _folder(path)
    config = _config(folder)
    if (kind := bert.kind_of(config)) != name:
        raise UserError(f"{folder} holds a {kind}, not a {name}; pass --config.model.name={kind}")
    file = next((folder / w for w in WEIGHTS if (folder / w).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has neither {' nor '.join(WEIGHTS)}; copy the weights there")
    attributes = bert.options(config)
    converted = convert(readers.read(file), bert.table(kind, attributes["depth"]))
    there = {path.split("/")[1] for path in converted.leaves}
    attributes |= {"pooling": "pooler" if "pooler" in there else "mean", "output": bert.head_of(config) or "text"}
    own = len(converted.leaves["params/head/bias"]) if "head" in there else 0
    wanted = options.get("output", attributes["output"])
    fits = own > 0 and wanted == attributes["output"] and num_classes in (None, own)
    if head == "keep" and not fits:
        raise UserError(f"{file} has no head for {wanted} with {num_classes or 'any'} classes; pass head='new'")
    classes = own if fits and num_classes is None else num_classes or 0
    kept = fits and head != "new"
    model = models.create(kind, classes, **{**attributes, **options})
    variables, drawn = _merged(model, converted, kept, seed, file)
    made = tokens.read(folder)
    _check_vocabulary(made, model, folder)
    labels = config.get("id2label") or {}
    return TextNetwork(
        model,
        jax.device_put(variables),
        made,
        kind,
        classes=tuple(labels.get(str(i), str(i)) for i in range(classes)) if kept else (),
        new=classes > 0 and not kept,
        path=file,
        sha256=pooch.file_hash(str(file)),
        notes=(*_notes(model, there, drawn, file),),
    )


def save(folder: Path, net: TextNetwork, classes: Sequence[str] = ()) -> None:
    """Write a network into a folder that transformers opens: ``config.json``, ``model.safetensors``, tokenizer.

    Raises:
        UserError: texts are classified by a mean or a bare token, which these files have no word for.
    """
    if net.model.num_classes and net.model.output == "text" and net.model.pooling != "pooler":
        raise UserError(f"Hugging Face's files have no pooling={net.model.pooling!r}; train with pooling='pooler'")
    folder.mkdir(parents=True, exist_ok=True)
    leaves = {path: np.asarray(leaf) for path, leaf in tree.flatten(net.variables).items()}
    config = bert.config_of(net.kind, net.model, tuple(classes) or net.classes)
    config["pad_token_id"] = net.tokenizer.token_to_id("[PAD]")
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    arrays = bert.exported(leaves, net.kind, net.model.depth)
    safetensors.numpy.save_file(arrays, folder / WEIGHTS[0], {"format": "pt"})  # without it transformers refuses
    net.tokenizer.save(str(folder / "tokenizer.json"))
    name = {"bert": "BertTokenizerFast", "distilbert": "DistilBertTokenizerFast"}[net.kind]
    about = {"tokenizer_class": name, "model_max_length": net.model.positions}
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2))


@functools.cache
def initializer(model: Bert) -> Any:
    """Return the jitted function key -> variables of a model."""
    return jax.jit(lambda key: dict(model.init(key, jnp.zeros((1, 2), jnp.int32))))


def _folder(path: str | Path | None) -> Path:
    if not path:
        raise UserError("text weights need a folder or a repository of the hub; pass --config.init.path=FOLDER")
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or len(folder.parts) != 2:
        raise UserError(f"{folder} is no folder; pass the one that holds config.json, weights and tokenizer")
    return hub.folder(str(path), ("config.json",), WEIGHTS, tokens.FILES, ("tokenizer_config.json",))


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} has no config.json; copy the one that came with the weights there")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"cannot read {file} ({e}); copy it anew") from None


def _merged(model: Bert, converted: Any, kept: bool, seed: int, file: Path) -> tuple[dict[str, Any], set[str]]:
    """Return the variables of a model and the names of what was drawn because the file does not have it."""
    wanted = tree.flatten(jax.eval_shape(initializer(model), jax.random.key(0)))
    optional = [p for p in converted.leaves if p not in wanted and _top(p) in _OPTIONAL]
    heads = [p for p in wanted if _top(p) == "head" and not kept]
    absent = [p for p in wanted if _top(p) in _OPTIONAL and p not in converted.leaves]
    new = {*heads, *absent}
    leaves = {p: leaf for p, leaf in converted.leaves.items() if p not in optional and p not in new}
    target = tree.unflatten({p: leaf for p, leaf in wanted.items() if p not in new})
    try:
        found = tree.flatten(merge(target, converted._replace(leaves=leaves)))
    except MergeError as e:
        raise MergeError(f"{file} does not fit its config.json: {e}; copy both anew", e.report) from None
    if new:
        # Jitted once more, so that XLA leaves out all that is not asked for.
        draw = jax.jit(lambda key: {p: leaf for p, leaf in tree.flatten(initializer(model)(key)).items() if p in new})
        found |= draw(jax.random.key(seed))
    return tree.unflatten(found), {_top(p) for p in new}


def _top(path: str) -> str:
    return path.split("/")[1]


def _check_vocabulary(made: tokenizers.Tokenizer, model: Bert, folder: Path) -> None:
    size = made.get_vocab_size()
    if not size <= model.vocabulary < size + SLACK:
        raise UserError(
            f"the tokenizer in {folder} knows {size:,} words and the weights {model.vocabulary:,}; "
            "copy the tokenizer that came with these weights there"
        )


def _notes(model: Bert, there: set[str], drawn: set[str], file: Path) -> list[str]:
    if "pooler" in drawn:
        return [f"{file} has no pooler: it is drawn at random"]
    return [] if "pooler" in there or model.pooling != "mean" else [f"{file} has no pooler: texts are means of tokens"]
