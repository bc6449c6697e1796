"""Hugging Face text networks: load a folder or hub repository as model, weights and tokenizer, and save one."""

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
from tl_jax.models.attention import ACTIVATIONS
from tl_jax.models.bert import Bert
from tl_jax.models.rules import Table
from tl_jax.pretrained import bert_table, formats, hub, prefixes
from tl_jax.pretrained.catalog import EMBEDDED_BERT
from tl_jax.pretrained.convert import Converted, MergeError, convert, format_names, merge
from tl_jax.pretrained.torch_file import Contents
from tl_jax.utils import disk, environment, tree
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import STRING, check_fields, object_of, read_json
from tl_jax.utils.log import warn_once

if TYPE_CHECKING:
    import tokenizers


class TextNetwork(NamedTuple):
    """A text model with its weights and tokenizer.

    Attributes:
        model: linen module; ``model.apply(variables, **tokens, train=False)`` gives ``(output, endpoints)``.
        variables: ``{"params": ...}``, float32.
        tokenizer: tokenizer of the folder, without truncation and padding.
        kind: "bert" or "distilbert".
        classes: names of the K classes, if there is a head.
        random_leaves: paths of the randomly initialized leaves.
        path: the weights file; None for random weights.
        sha256: hash of that file.
        notes: lines for the user about the weights.
    """

    model: Bert
    variables: Mapping[str, Any]
    tokenizer: tokenizers.Tokenizer
    kind: str
    classes: tuple[str, ...] = ()
    random_leaves: frozenset[str] = frozenset()
    path: Path | None = None
    sha256: str = ""
    notes: tuple[str, ...] = ()

    @property
    def new_head(self) -> bool:
        """Whether the head is randomly initialized."""
        return any(top_module(path) == "head" for path in self.random_leaves)

    def reinitialize(self, key: jax.Array) -> dict[str, Any]:
        """Return the variables with all random leaves sampled anew from ``key``."""
        new_leaves = leaf_initializer(self.model, self.random_leaves)(key) if self.random_leaves else {}
        return tree.unflatten({**tree.flatten(self.variables), **new_leaves})

    def tokenize(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], max_length: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return the token ids of N texts, or of N pairs, as inputs of the model.

        Args:
            texts: N texts, or N pairs of texts.
            max_length: maximum number of tokens, including [CLS] and [SEP]; None for the model's maximum.

        Returns:
            ``input_ids``, ``attention_mask`` and ``token_type_ids``, int32 (N, L), padded to the longest text.
        """
        max_tokens = min(max_length or self.model.positions, self.model.positions)
        encodings = tokenize.encode_texts(self.tokenizer, texts, max_tokens)
        return tokenize.pad_encodings(encodings, tokenize.pad_id(self.tokenizer))


@functools.cache
def initializer(model: Bert) -> Any:
    """Return the jitted function key -> variables of a model."""
    return jax.jit(lambda key: dict(model.init(key, jnp.zeros((1, 2), jnp.int32))))


@functools.cache
def leaf_initializer(model: Bert, paths: frozenset[str]) -> Any:
    """Return the jitted function key -> the leaves ``paths``; XLA drops the rest of the initialization."""
    return jax.jit(lambda key: {p: leaf for p, leaf in tree.flatten(initializer(model)(key)).items() if p in paths})


def top_module(path: str) -> str:
    """Return the top-level module of a leaf."""
    return path.split("/")[1]


CONFIG_FILE = "config.json"
INDEX_SUFFIX = ".index.json"  # of sharded weights: array name -> file
# In transformers' order of preference.
WEIGHT_FILES = (
    "model.safetensors",
    f"model.safetensors{INDEX_SUFFIX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
)
POOLING_FILE = "1_Pooling/config.json"  # of sentence-transformers
SAVED_FILES = ("model.safetensors", CONFIG_FILE, "tokenizer.json", "tokenizer_config.json")  # written by ``save``
_OPTIONAL = {"head", "pooler", "masked_dense", "masked_norm", "masked_bias"}  # a file may lack them
_MAX_NAME_BYTES = 255  # limit of a file name
# Word embeddings may be padded beyond the vocabulary, at most to a multiple of this.
MAX_VOCABULARY_PADDING = 128


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
    """Build the text network of a folder, or of a Hugging Face hub repository.

    Args:
        name: "bert" or "distilbert", as in ``config.json``.
        path: folder with ``config.json``, weights (``model.safetensors`` or ``pytorch_model.bin``, or shards with the
            ``.index.json`` of one of them) and tokenizer (``tokenizer.json`` or ``vocab.txt``), or a repository
            "owner/name".
        num_classes: K of the head; None for the file's number.
        head: "auto" keeps the file's head if it is of the right kind and has K outputs, else initializes one; "new"
            always initializes one; "keep" requires the file's.
        seed: random seed of the initialization.
        rename: pairs (regex, replacement) for the names of arrays, see ``pretrained.load``.
        **options: attributes of ``Bert``: ``output`` is the kind of head, ``pooling`` its input. Mean pooling is used
            if the file has no pooler, or if sentence-transformers trained the network with it and the file's head is
            not kept.

    Raises:
        UserError: Files are missing, damaged, or belong to another network.
    """
    folder = _find_folder(path)
    if (folder / formats.BUNDLE_FILE).is_file():
        formats.check_bundle(folder, SAVED_FILES)
    config = _read_config(folder, name)
    file = _weights_file(folder)
    attributes = bert_table.model_options(config)
    contents = _read_contents(file)
    bert_table.check_depth(attributes["depth"], name, len(contents.arrays), file)
    stripped, converted = _convert(contents, file, bert_table.conversion_table(name, attributes["depth"]), rename)
    bert_table.check_shapes(attributes, name, converted, file)
    stages_in_file = {path.split("/")[1] for path in converted.leaves}
    attributes["output"] = bert_table.head_kind(config) or "text"
    output, other_heads = options.get("output", attributes["output"]), _other_heads(converted, name)
    file_classes = _classes_of_head(converted) if output == attributes["output"] else 0
    keep_head = _keeps_head(head, num_classes, file_classes, other_heads, f"{file} has no head for {output}")
    classes = file_classes if num_classes is None else num_classes
    if not keep_head:  # heads of other tasks do not matter if the head is new
        converted = converted._replace(extra=[name for name in converted.extra if name not in other_heads])
    reads_pooler = "pooler" in stages_in_file and (keep_head or not _was_trained_on_means(folder))
    attributes["pooling"] = "pooler" if reads_pooler else "mean"
    model = models.create(name, classes, **{**attributes, **options})
    variables, random_leaves = _merge(model, converted, keep_head, file)
    tokenizer = tokenize.read_tokenizer(folder)
    _check_vocabulary(tokenizer, model, folder)
    net = TextNetwork(
        model,
        jax.device_put(variables),
        tokenizer,
        name,
        classes=_class_names(config, classes) if keep_head else (),
        random_leaves=random_leaves,
        path=file,
        sha256=_sha256(file),
        notes=(
            *contents.notes,
            *_left_out_notes(file, stripped, [] if keep_head else other_heads),
            *_notes(model, stages_in_file, random_leaves, file),
        ),
    )
    return net._replace(variables=net.reinitialize(jax.random.key(seed)))


def _classes_of_head(converted: Converted) -> int:
    """Return the number of classes K of a file's head; 0 if it has none."""
    bias = converted.leaves.get("params/head/bias")
    return len(bias) if bias is not None and bias.ndim == 1 else 0


def _keeps_head(
    head: str, num_classes: int | None, file_classes: int, other_heads: Sequence[str], problem: str
) -> bool:
    """Return whether the head of a file is kept.

    Args:
        head: see ``load``.
        num_classes: requested number of classes.
        file_classes: classes of the file's head of the right kind; 0 for none.
        other_heads: arrays of further heads in the file.
        problem: start of the error message.

    Raises:
        UserError: ``head`` is "keep", but the head does not fit or is not the only one.
    """
    fits = file_classes > 0 and num_classes in (None, file_classes)
    if head == "keep" and not (fits and not other_heads):
        reason = f" alone, but also {format_names(other_heads)}" if fits else ""
        raise UserError(f"{problem} with {num_classes or 'any'} classes{reason}; pass head='new'")
    return fits and head != "new"


def random(name: str, path: str | Path, num_classes: int = 0, *, seed: int = 0, **options: Any) -> TextNetwork:
    """Build the text network of a folder with random weights, with the sizes of its ``config.json``, if any.

    Args:
        name: "bert" or "distilbert".
        path: folder or repository with the tokenizer.
        num_classes: K of the head; 0 for none.
        seed: random seed of the weights.
        **options: attributes of ``Bert``, which take precedence over ``config.json``.
    """
    folder = _find_folder(path)
    tokenizer = tokenize.read_tokenizer(folder)
    attributes = bert_table.model_options(_read_config(folder)) if (folder / CONFIG_FILE).is_file() else {}
    attributes.setdefault("vocabulary", tokenizer.get_vocab_size())
    model = models.create(name, num_classes, **{**attributes, **options})
    _check_vocabulary(tokenizer, model, folder)
    shapes = tree.flatten(jax.eval_shape(initializer(model), jax.random.key(0)))
    if (size := tree.nbytes(shapes)) > (memory := environment.total_memory()):
        raise UserError(
            f"{name} of these sizes: {size / 1e9:,.1f} GB of weights, but {memory / 1e9:,.1f} GB of "
            "memory; lower config.model.options, such as width, hidden or depth"
        )
    all_leaves = frozenset(shapes)
    net = TextNetwork(model, {}, tokenizer, name, random_leaves=all_leaves)
    return net._replace(variables=net.reinitialize(jax.random.key(seed)))


def save(folder: Path, net: TextNetwork, classes: Sequence[str] = (), dtype: str = "float32") -> None:
    """Write a network into a folder in transformers' format: ``config.json``, ``model.safetensors``, tokenizer.

    A head on mean pooling, for which transformers has no class, is in the weights file, but ``config.json`` describes
    the network below it.

    Raises:
        UserError: The head reads the bare first token, which these files cannot distinguish from mean pooling.
    """
    if net.model.num_classes and net.model.output == "text" and net.model.pooling == "first":
        raise UserError("pooling='first': not supported by Hugging Face's files; train with 'pooler' or 'mean'")
    leaves = {path: np.asarray(leaf) for path, leaf in tree.flatten(net.variables).items()}
    config = bert_table.make_config(net.kind, net.model, tuple(classes) or net.classes)
    config["pad_token_id"] = net.tokenizer.token_to_id("[PAD]")
    disk.write_text(folder / CONFIG_FILE, json.dumps(config, indent=2))
    arrays = {n: leaf.astype(dtype) for n, leaf in bert_table.export_arrays(leaves, net.kind, net.model.depth).items()}
    with disk.atomic_write(folder / WEIGHT_FILES[0]) as temporary:
        safetensors.numpy.save_file(arrays, temporary, {"format": "pt"})  # required by transformers
    disk.write_text(folder / "tokenizer.json", net.tokenizer.to_str(pretty=True))
    name = {"bert": "BertTokenizerFast", "distilbert": "DistilBertTokenizerFast"}[net.kind]
    tokenizer_config = {"tokenizer_class": name, "model_max_length": net.model.positions}
    disk.write_text(folder / "tokenizer_config.json", json.dumps(tokenizer_config, indent=2))


def resolve_folder(source: str, path: str) -> str:
    """Return the folder of ``config.init``: the given one, or the one that ships with the package."""
    return path or (str(EMBEDDED_BERT) if source in ("tl_jax", "random") else "")


def stage_names(name: str, source: str, path: str, **options: Any) -> tuple[str, ...]:
    """Return the names of the stages of a folder's network. Raises UserError if a file is missing."""
    folder = _find_folder(resolve_folder(source, path))
    tokenize.read_tokenizer(folder)
    if source != "random":
        _read_config(folder)
        _weights_file(folder)
    attributes = bert_table.model_options(_read_config(folder)) if (folder / CONFIG_FILE).is_file() else {}
    return models.create(name, 0, **{**attributes, **options}).stage_names()


def _find_folder(path: str | Path | None) -> Path:
    if not path:
        raise UserError("text weights need a folder or a hub repository; pass config.init.path=FOLDER")
    folder = Path(path).expanduser()
    if folder.is_dir():
        return formats.export_of(folder)
    if folder.exists() or len(folder.parts) != 2:
        raise UserError(
            f"{folder}: not a folder; pass one with config.json, weights and tokenizer, or a repository of the hub as "
            "OWNER/NAME, such as google-bert/bert-base-uncased"
        )
    downloaded = hub.download_folder(str(path), (CONFIG_FILE,), WEIGHT_FILES, tokenize.FILES)
    hub.download_if_there(str(path), "tokenizer_config.json")
    if (index := next((downloaded / w for w in WEIGHT_FILES if (downloaded / w).is_file()), downloaded)).name.endswith(
        INDEX_SUFFIX
    ):
        for shard in _read_index(index):
            hub.download_from_hub(str(path), shard)
    if not hub.download_if_there(str(path), POOLING_FILE):
        warn_once(f"{path}: without a connection, its pooling is unknown; if it was trained with mean pooling, set "
                  "config.model.options.pooling=mean")  # fmt: skip
    return downloaded


def _was_trained_on_means(folder: Path) -> bool:
    """Return whether the folder is a sentence-transformers model with mean pooling, which trains no pooler."""
    file = folder / POOLING_FILE
    return file.is_file() and read_json(file, "copy it again, or delete it").get("pooling_mode_mean_tokens") is True


def _read_config(folder: Path, name: str = "") -> dict[str, Any]:
    """Return the checked ``config.json``. Raises UserError if it is invalid, or of another model than ``name``."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{folder}: config.json is missing; copy the one of these weights there")
    config = read_json(file, "copy it again")
    if name and (kind := bert_table.model_kind(config, file)) != name:
        raise UserError(f"{folder}: holds a {kind}, not a {name}; pass config.model.name={kind}")
    bert_table.check_config(config, file, ACTIVATIONS)
    return config


def _weights_file(folder: Path) -> Path:
    """Return the weights file of a folder, or the index of sharded weights."""
    file = next((folder / w for w in WEIGHT_FILES if (folder / w).is_file()), None)
    if file is None:
        names = ", ".join(name for name in WEIGHT_FILES if not name.endswith(INDEX_SUFFIX))
        raise UserError(f"{folder}: no weights ({names}, or shards with {INDEX_SUFFIX}); copy the weights there")
    if file.name.endswith(INDEX_SUFFIX):
        for shard in _read_index(file):
            _check_shard(file, shard)
    return file


def _read_index(index: Path) -> dict[str, list[str]]:
    """Return the files listed in an index, each with its arrays.

    Raises:
        UserError: The index is damaged, or names files outside its folder.
    """
    shards: dict[str, list[str]] = {}
    content = read_json(index, "copy it again")
    check_fields(content, index, {"weight_map": object_of(STRING)}, "copy it again")
    if not (files := content.get("weight_map")):
        raise UserError(f"{index}: not an index of weights (no weight_map); copy it again")
    for array, shard in files.items():
        shards.setdefault(shard, []).append(array)
    if invalid := [shard for shard in shards if Path(shard).name != shard or len(shard.encode()) > _MAX_NAME_BYTES]:
        raise UserError(f"{index}: names {invalid[0]!r}, which is not a file next to it; copy the folder again")
    return shards


def _check_shard(index: Path, shard: str) -> Path:
    """Return a file listed in an index. Raises UserError if it is missing."""
    file = index.parent / shard
    if not file.is_file():
        raise UserError(f"{index}: names {shard}, which is missing; copy it to {index.parent}")
    return file


def _read_contents(file: Path) -> Contents:
    """Return the arrays of a weights file or of all shards of an index, with notes from reading them."""
    others = [w for w in WEIGHT_FILES[WEIGHT_FILES.index(file.name) + 1 :] if (file.parent / w).is_file()]
    notes = (f"{file.parent}: has several copies of the weights; used {file.name}, not {', '.join(others)}",) * bool(
        others
    )
    if not file.name.endswith(INDEX_SUFFIX):
        contents = formats.read_contents(file)
        return Contents(contents.arrays, (*notes, *contents.notes))
    arrays: dict[str, np.ndarray] = {}
    for shard, names in _read_index(file).items():
        shard_arrays = formats.read_arrays(_check_shard(file, shard))
        if missing := [name for name in names if name not in shard_arrays]:
            raise UserError(
                f"{file.parent / shard}: {missing[0]!r} is missing, but listed in {file.name}; copy both again"
            )
        arrays |= {name: shard_arrays[name] for name in names}
    return Contents(arrays, notes)


def _convert(
    contents: Contents, file: Path, table: Table, rename: prefixes.Renames
) -> tuple[prefixes.Stripped, Converted]:
    """Return the arrays of a file without a prefix, and the converted file."""
    stripped = prefixes.strip_prefix(prefixes.rename_arrays(contents.arrays, rename, str(file)), table, str(file))
    return stripped, convert(stripped.arrays, table)


def _class_names(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return the class names of ``config.json``, or class numbers."""
    labels = config.get("id2label") or {}
    return tuple(labels.get(str(i), str(i)) for i in range(count))


def _sha256(file: Path) -> str:
    """Return the hash of a weights file; for shards, the hash of their hashes in the order of their names."""
    if not file.name.endswith(INDEX_SUFFIX):
        return pooch.file_hash(str(file))
    hashes = [pooch.file_hash(str(file.parent / shard)) for shard in sorted(_read_index(file))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _other_heads(converted: Converted, kind: str) -> list[str]:
    """Return the unknown names outside the encoder: heads of other tasks."""
    encoder = {
        bert_table.strip_prefix(origin, kind).split(".")[0]
        for path, origin in converted.origin.items()
        if not _is_optional(path)
    }
    return [name for name in converted.extra if bert_table.strip_prefix(name, kind).split(".")[0] not in encoder]


def _left_out_notes(file: Path, stripped: prefixes.Stripped, other_heads: Sequence[str]) -> list[str]:
    notes = [f"{file.name}: used the names with prefix {stripped.prefix!r}"] if stripped.prefix else []
    if left_out := [*stripped.other_names, *other_heads]:
        notes.append(f"{file.name}: dropped, not part of this network: {format_names(left_out)}")
    return notes


def _merge(model: Bert, converted: Any, keep_head: bool, file: Path) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the loaded variables of a model, and the paths of leaves that the file lacks."""
    expected = tree.flatten(jax.eval_shape(initializer(model), jax.random.key(0)))
    optional = [p for p in converted.leaves if p not in expected and _is_optional(p)]
    heads = [p for p in expected if top_module(p) == "head" and not keep_head]
    missing = [p for p in expected if _is_optional(p) and p not in converted.leaves]
    random_leaves = frozenset({*heads, *missing})
    leaves = {p: leaf for p, leaf in converted.leaves.items() if p not in optional and p not in random_leaves}
    target = tree.unflatten({p: leaf for p, leaf in expected.items() if p not in random_leaves})
    try:
        return merge(target, converted._replace(leaves=leaves)), random_leaves
    except MergeError as e:
        raise MergeError(f"{file} does not fit its config.json: {e}; copy both again", e.report) from None


def _is_optional(path: str) -> bool:
    return top_module(path) in _OPTIONAL or top_module(path).startswith("adapter_")


def _check_vocabulary(tokenizer: tokenizers.Tokenizer, model: Bert, folder: Path) -> None:
    size = tokenizer.get_vocab_size()
    if not size <= model.vocabulary < size + MAX_VOCABULARY_PADDING:
        raise UserError(
            f"{folder}: the tokenizer has {size:,} words, but the weights {model.vocabulary:,}; "
            "copy the tokenizer of these weights there"
        )
    max_id, max_type = tokenize.max_ids(tokenizer)
    num_types = max(2, model.types)  # a network with one type takes single texts; its tokenizer may support pairs
    if max_id >= model.vocabulary or (model.types and max_type >= num_types):
        raise UserError(
            f"{folder}: the tokenizer has ids up to {max_id:,} and types up to {max_type:,}, but the weights "
            f"{model.vocabulary:,} ids and {num_types:,} types; copy the tokenizer of these weights there"
        )


def _notes(model: Bert, stages_in_file: set[str], random_leaves: frozenset[str], file: Path) -> list[str]:
    if model.output != "text" or "pooler" in stages_in_file:
        return []  # unused or present
    if "pooler" in map(top_module, random_leaves):
        return [f"{file}: no pooler; it is randomly initialized"]
    return [f"{file}: no pooler; mean pooling is used"] if model.pooling == "mean" else []
