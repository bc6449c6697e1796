"""Text networks of Hugging Face: load a folder or a repository as model, weights and tokenizer, and save one."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pooch
import safetensors.numpy

from tl_jax import models
from tl_jax.data import tokenize
from tl_jax.data import tokenize as tokenize_module
from tl_jax.models.bert import ACTIVATIONS, Bert
from tl_jax.pretrained import bert_table, formats, hub, prefixes
from tl_jax.pretrained.catalog import TEXT
from tl_jax.pretrained.convert import Converted, MergeError, Table, convert, listed, merge
from tl_jax.pretrained.torch_file import Contents
from tl_jax.utils import disk, environment, tree
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import TEXT as STRING
from tl_jax.utils.json_files import check_fields, object_of, read_json

if TYPE_CHECKING:
    import tokenizers


class TextNetwork(NamedTuple):
    """A text model with its weights and its tokenizer.

    Attributes:
        model: linen module; ``model.apply(variables, **tokens, train=False)`` gives ``(output, endpoints)``.
        variables: ``{"params": ...}``, float32.
        tokenizer: of the folder; it neither cuts nor pads by itself.
        kind: "bert" or "distilbert".
        classes: names of the K classes, where there is a head.
        drawn: paths of the leaves that were drawn at random instead of loaded.
        path: the weights file, None for random weights.
        sha256: of that file.
        notes: what the user should know of it.
    """

    model: Bert
    variables: Mapping[str, Any]
    tokenizer: tokenizers.Tokenizer
    kind: str
    classes: tuple[str, ...] = ()
    drawn: frozenset[str] = frozenset()
    path: Path | None = None
    sha256: str = ""
    notes: tuple[str, ...] = ()

    @property
    def new(self) -> bool:
        """Whether the head was drawn at random instead of loaded."""
        return any(top(path) == "head" for path in self.drawn)

    def redraw(self, key: jax.Array) -> dict[str, Any]:
        """Return the variables with all that was not loaded drawn from ``key``."""
        fresh = drawer(self.model, self.drawn)(key) if self.drawn else {}
        return tree.unflatten({**tree.flatten(self.variables), **fresh})

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
        encodings = tokenize_module.encode_texts(self.tokenizer, texts, most)
        return tokenize_module.pad_encodings(encodings, tokenize_module.pad_id(self.tokenizer))


@functools.cache
def initializer(model: Bert) -> Any:
    """Return the jitted function key -> variables of a model."""
    return jax.jit(lambda key: dict(model.init(key, jnp.zeros((1, 2), jnp.int32))))


@functools.cache
def drawer(model: Bert, paths: frozenset[str]) -> Any:
    """Return the jitted function key -> these leaves; XLA leaves out all that is not asked for."""
    return jax.jit(lambda key: {p: leaf for p, leaf in tree.flatten(initializer(model)(key)).items() if p in paths})


def top(path: str) -> str:
    """Return the name of the part that a leaf belongs to."""
    return path.split("/")[1]


CONFIG = "config.json"
INDEX = ".index.json"  # of weights in several files: which array lies in which of them
# In the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
FILES = ("model.safetensors", CONFIG, "tokenizer.json", "tokenizer_config.json")  # that ``save`` writes
_OPTIONAL = {"head", "pooler", "masked_dense", "masked_norm", "masked_bias"}  # a file may have them or not
_LONGEST = 255  # bytes of a file's name
SLACK = 128  # rows of the words' embeddings beyond the vocabulary: tables are filled up to a multiple of this at most


def load(
    name: str,
    path: str | Path | None,
    num_classes: int | None = None,
    *,
    head: str = "auto",
    seed: int = 0,
    rename: prefixes.Renames = (),
    **options: Any,
) -> TextNetwork:
    """Build the text network of a folder, or of a repository on the Hugging Face hub.

    Args:
        name: "bert" or "distilbert", which ``config.json`` must agree with.
        path: folder with ``config.json``, weights (``model.safetensors`` or ``pytorch_model.bin``, or several files
            with the ``.index.json`` of one of them) and tokenizer (``tokenizer.json`` or ``vocab.txt``), or the
            "owner/name" of a repository.
        num_classes: K of the head; None takes what the file has.
        head: "auto" keeps the file's head where it has K outputs of the right kind, else draws one; "new" always draws
            one; "keep" insists on the file's.
        seed: of what is drawn.
        rename: pairs (regex, replacement) for the names of arrays, see ``pretrained.load``.
        **options: attributes of ``Bert``: ``output`` says what kind of head, ``pooling`` what it reads. Without a
            pooler in the file texts are the mean of their tokens.

    Raises:
        UserError: files that are missing, damaged, or of another network.
    """
    folder = _folder(path)
    if (folder / formats.FILE).is_file():
        formats.check(folder, FILES)
    config = _config(folder, name)
    file = _weights(folder)
    attributes = bert_table.options(config)
    contents = _contents(file)
    bert_table.check_depth(attributes["depth"], name, len(contents.arrays), file)
    stripped, converted = _converted(contents, file, bert_table.table(name, attributes["depth"]), rename)
    bert_table.check_shapes(attributes, name, converted, file)
    there = {path.split("/")[1] for path in converted.leaves}
    attributes |= {"pooling": "pooler" if "pooler" in there else "mean", "output": bert_table.head_of(config) or "text"}
    bias = converted.leaves.get("params/head/bias")
    own = len(bias) if bias is not None and bias.ndim == 1 else 0
    wanted = options.get("output", attributes["output"])
    fits = own > 0 and wanted == attributes["output"] and num_classes in (None, own)
    beside = _beside(converted, name)
    if head == "keep" and not (fits and not beside):
        why = f" alone, but also {listed(beside)}" if fits else ""
        raise UserError(f"{file} has no head for {wanted} with {num_classes or 'any'} classes{why}; pass head='new'")
    classes = own if fits and num_classes is None else num_classes or 0
    kept = fits and head != "new"
    if not kept:  # a head of another task does not matter where one is drawn
        converted = converted._replace(extra=[name for name in converted.extra if name not in beside])
    model = models.create(name, classes, **{**attributes, **options})
    variables, drawn = _merged(model, converted, kept, file)
    made = tokenize.read_tokenizer(folder)
    _check_vocabulary(made, model, folder)
    net = TextNetwork(
        model,
        jax.device_put(variables),
        made,
        name,
        classes=_class_names(config, classes) if kept else (),
        drawn=drawn,
        path=file,
        sha256=_sha256(file),
        notes=(*contents.notes, *_left_out(file, stripped, [] if kept else beside), *_notes(model, there, drawn, file)),
    )
    return net._replace(variables=net.redraw(jax.random.key(seed)))


def random(name: str, path: str | Path, num_classes: int = 0, *, seed: int = 0, **options: Any) -> TextNetwork:
    """Build the text network of a folder with random weights; a ``config.json`` there gives sizes, if there is one.

    Args:
        name: "bert" or "distilbert".
        path: folder or repository with the tokenizer.
        num_classes: K of the head, 0 for none.
        seed: of the weights.
        **options: attributes of ``Bert``, before those of ``config.json``.
    """
    folder = _folder(path)
    made = tokenize.read_tokenizer(folder)
    attributes = bert_table.options(_config(folder)) if (folder / CONFIG).is_file() else {}
    attributes.setdefault("vocabulary", made.get_vocab_size())
    model = models.create(name, num_classes, **{**attributes, **options})
    _check_vocabulary(made, model, folder)
    shapes = tree.flatten(jax.eval_shape(initializer(model), jax.random.key(0)))
    if (size := tree.nbytes(shapes)) > (memory := environment.memory()):
        raise UserError(
            f"a {name} of these sizes has {size / 1e9:,.1f} GB of weights, and this machine {memory / 1e9:,.1f} GB of "
            "memory; lower config.model.options, such as width, hidden or depth"
        )
    everything = frozenset(shapes)
    net = TextNetwork(model, {}, made, name, drawn=everything)
    return net._replace(variables=net.redraw(jax.random.key(seed)))


def save(folder: Path, net: TextNetwork, classes: Sequence[str] = (), dtype: str = "float32") -> None:
    """Write a network into a folder that transformers opens: ``config.json``, ``model.safetensors``, tokenizer.

    A head on the mean of tokens, which transformers has no class for, is in the file too; ``config.json`` names the
    network below it.

    Raises:
        UserError: texts are classified by a bare first token, which nothing in these files tells from a mean.
    """
    if net.model.num_classes and net.model.output == "text" and net.model.pooling == "first":
        raise UserError("Hugging Face's files have no pooling='first'; train with pooling='pooler' or 'mean'")
    leaves = {path: np.asarray(leaf) for path, leaf in tree.flatten(net.variables).items()}
    config = bert_table.config_of(net.kind, net.model, tuple(classes) or net.classes)
    config["pad_token_id"] = net.tokenizer.token_to_id("[PAD]")
    disk.write_text(folder / CONFIG, json.dumps(config, indent=2))
    arrays = {n: leaf.astype(dtype) for n, leaf in bert_table.exported(leaves, net.kind, net.model.depth).items()}
    with disk.replacing(folder / WEIGHTS[0]) as temporary:
        safetensors.numpy.save_file(arrays, temporary, {"format": "pt"})  # without it transformers refuses
    disk.write_text(folder / "tokenizer.json", net.tokenizer.to_str(pretty=True))
    name = {"bert": "BertTokenizerFast", "distilbert": "DistilBertTokenizerFast"}[net.kind]
    about = {"tokenizer_class": name, "model_max_length": net.model.positions}
    disk.write_text(folder / "tokenizer_config.json", json.dumps(about, indent=2))


def folder_of(source: str, path: str) -> str:
    """Return the folder of ``config.init``: the one that is named, or the one that ships with the package."""
    return path or (str(TEXT) if source in ("tl_jax", "random") else "")


def tokenizer(source: str, path: str) -> tokenizers.Tokenizer:
    """Return the tokenizer of ``config.init``, without the weights; a UserError where the folder lacks it."""
    return tokenize.read_tokenizer(_folder(folder_of(source, path)))


def part_names(name: str, source: str, path: str, **options: Any) -> tuple[str, ...]:
    """Return the names of the parts that the network of a folder has; a UserError where it lacks a file."""
    folder = _folder(folder_of(source, path))
    tokenize.read_tokenizer(folder)
    if source != "random":
        _config(folder)
        _weights(folder)
    attributes = bert_table.options(_config(folder)) if (folder / CONFIG).is_file() else {}
    return models.create(name, 0, **{**attributes, **options}).part_names()


def _folder(path: str | Path | None) -> Path:
    if not path:
        raise UserError("text weights need a folder or a repository of the hub; pass --config.init.path=FOLDER")
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or len(folder.parts) != 2:
        raise UserError(f"{folder} is no folder; pass the one that holds config.json, weights and tokenizer")
    found = hub.folder(str(path), (CONFIG,), WEIGHTS, tokenize.FILES, ("tokenizer_config.json",))
    if (index := next((found / w for w in WEIGHTS if (found / w).is_file()), found)).name.endswith(INDEX):
        for shard in _shards(index):
            hub.from_hub(str(path), shard)
    return found


def _config(folder: Path, name: str = "") -> dict[str, Any]:
    """Return what ``config.json`` says; a ``UserError`` if that is not sensible, or of another model than ``name``."""
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(f"{folder} has no config.json; copy the one that came with the weights there")
    config = read_json(file, "copy it anew")
    if name and (kind := bert_table.kind_of(config, file)) != name:
        raise UserError(f"{folder} holds a {kind}, not a {name}; pass --config.model.name={kind}")
    bert_table.check(config, file, ACTIVATIONS)
    return config


def _weights(folder: Path) -> Path:
    """Return the weights of a folder, in one file, or the index of those in several."""
    file = next((folder / w for w in WEIGHTS if (folder / w).is_file()), None)
    if file is None:
        names = ", ".join(name for name in WEIGHTS if not name.endswith(INDEX))
        raise UserError(f"{folder} has no weights ({names}, or several files with {INDEX}); copy the weights there")
    if file.name.endswith(INDEX):
        for shard in _shards(file):
            _existing(file, shard)
    return file


def _shards(index: Path) -> dict[str, list[str]]:
    """Return the files that an index names, each with the arrays that it must have.

    Raises:
        UserError: the index is damaged, or names files outside its folder.
    """
    found: dict[str, list[str]] = {}
    content = read_json(index, "copy it anew")
    check_fields(content, index, {"weight_map": object_of(STRING)}, "copy it anew")
    if not (files := content.get("weight_map")):
        raise UserError(f"{index}: no index of weights (it has no weight_map); copy it anew")
    for array, shard in files.items():
        found.setdefault(shard, []).append(array)
    if strange := [shard for shard in found if Path(shard).name != shard or len(shard.encode()) > _LONGEST]:
        raise UserError(f"{index}: names {strange[0]!r}, which is no file beside it; copy the folder anew")
    return found


def _existing(index: Path, shard: str) -> Path:
    """Return one of the files that an index names; a UserError where it is not there."""
    file = index.parent / shard
    if not file.is_file():
        raise UserError(f"{index}: names {shard}, which is missing; copy it to {index.parent}")
    return file


def _contents(file: Path) -> Contents:
    """Return the arrays of a file of weights, or of all that an index names, and what was said on reading them."""
    others = [w for w in WEIGHTS[WEIGHTS.index(file.name) + 1 :] if (file.parent / w).is_file()]
    notes = (f"{file.parent} holds several copies of the weights: took {file.name}, not {', '.join(others)}",) * bool(
        others
    )
    if not file.name.endswith(INDEX):
        contents = formats.read_contents(file)
        return Contents(contents.arrays, (*notes, *contents.notes))
    arrays: dict[str, np.ndarray] = {}
    for shard, names in _shards(file).items():
        part = formats.read(_existing(file, shard))
        if absent := [name for name in names if name not in part]:
            raise UserError(
                f"{file.parent / shard}: has no {absent[0]!r}, which {file.name} says it has; copy both anew"
            )
        arrays |= {name: part[name] for name in names}
    return Contents(arrays, notes)


def _converted(
    contents: Contents, file: Path, table: Table, rename: prefixes.Renames
) -> tuple[prefixes.Stripped, Converted]:
    """Return the arrays of a file without a prefix, and what the table made of them."""
    stripped = prefixes.strip(prefixes.rename(contents.arrays, rename, str(file)), table, str(file))
    return stripped, convert(stripped.arrays, table)


def _class_names(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return the names of the classes by ``config.json``, or their numbers."""
    labels = config.get("id2label") or {}
    return tuple(labels.get(str(i), str(i)) for i in range(count))


def _sha256(file: Path) -> str:
    """Return the hash of a file of weights; of several, that of their hashes in the order of their names."""
    if not file.name.endswith(INDEX):
        return pooch.file_hash(str(file))
    hashes = [pooch.file_hash(str(file.parent / shard)) for shard in sorted(_shards(file))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _beside(converted: Converted, kind: str) -> list[str]:
    """Return the names of arrays outside the encoder that no rule knows: heads of other tasks."""
    encoder = {
        bert_table.plain(origin, kind).split(".")[0] for path, origin in converted.origin.items() if not _may_lack(path)
    }
    return [name for name in converted.extra if bert_table.plain(name, kind).split(".")[0] not in encoder]


def _left_out(file: Path, stripped: prefixes.Stripped, beside: Sequence[str]) -> list[str]:
    notes = [f"{file.name}: took the names that begin with {stripped.prefix!r}"] if stripped.prefix else []
    if left := [*stripped.outside, *beside]:
        notes.append(f"{file.name}: left out, as no part of this network: {listed(left)}")
    return notes


def _merged(model: Bert, converted: Any, kept: bool, file: Path) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the loaded variables of a model and the paths of those to be drawn because the file does not have them."""
    wanted = tree.flatten(jax.eval_shape(initializer(model), jax.random.key(0)))
    optional = [p for p in converted.leaves if p not in wanted and _may_lack(p)]
    heads = [p for p in wanted if top(p) == "head" and not kept]
    absent = [p for p in wanted if _may_lack(p) and p not in converted.leaves]
    new = frozenset({*heads, *absent})
    leaves = {p: leaf for p, leaf in converted.leaves.items() if p not in optional and p not in new}
    target = tree.unflatten({p: leaf for p, leaf in wanted.items() if p not in new})
    try:
        return merge(target, converted._replace(leaves=leaves)), new
    except MergeError as e:
        raise MergeError(f"{file} does not fit its config.json: {e}; copy both anew", e.report) from None


def _may_lack(path: str) -> bool:
    return top(path) in _OPTIONAL or top(path).startswith("adapter_")


def _check_vocabulary(made: tokenizers.Tokenizer, model: Bert, folder: Path) -> None:
    size = made.get_vocab_size()
    if not size <= model.vocabulary < size + SLACK:
        raise UserError(
            f"the tokenizer in {folder} knows {size:,} words and the weights {model.vocabulary:,}; "
            "copy the tokenizer that came with these weights there"
        )
    largest, types = tokenize.max_ids(made)
    pair = max(2, model.types)  # a network of one type is for single texts, and its tokenizer may know pairs
    if largest >= model.vocabulary or (model.types and types >= pair):
        raise UserError(
            f"the tokenizer in {folder} makes ids up to {largest:,} and types up to {types:,}, and the weights have "
            f"{model.vocabulary:,} ids and {pair:,} types; copy the tokenizer that came with them there"
        )


def _notes(model: Bert, there: set[str], drawn: frozenset[str], file: Path) -> list[str]:
    if model.output != "text" or "pooler" in there:
        return []  # nothing reads it, or it is there
    if "pooler" in map(top, drawn):
        return [f"{file} has no pooler: it is drawn at random"]
    return [f"{file} has no pooler: texts are means of tokens"] if model.pooling == "mean" else []
