"""BERT and DistilBERT in Hugging Face's format: array names, and the network options in ``config.json``."""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax.models.rules import INVERSES, Rule, Table, keep, transpose
from tl_jax.pretrained.convert import Converted
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.json_files import STRING, Field, check_fields, integer, list_of, number, object_of

# (ours, theirs, kind of layer) of modules outside the layers, and of those in each layer.
SINGLE_MODULES = {
    "bert": (
        ("embeddings/word", "embeddings.word_embeddings", "embedding"),
        ("embeddings/position", "embeddings.position_embeddings", "embedding"),
        ("embeddings/type", "embeddings.token_type_embeddings", "embedding"),
        ("embeddings/norm", "embeddings.LayerNorm", "norm"),
        ("pooler", "pooler.dense", "dense"),
        ("head", "classifier", "dense"),
        ("masked_dense", "cls.predictions.transform.dense", "dense"),
        ("masked_norm", "cls.predictions.transform.LayerNorm", "norm"),
        ("masked_bias", "cls.predictions.bias", "value"),
    ),
    "distilbert": (
        ("embeddings/word", "embeddings.word_embeddings", "embedding"),
        ("embeddings/position", "embeddings.position_embeddings", "embedding"),
        ("embeddings/norm", "embeddings.LayerNorm", "norm"),
        ("pooler", "pre_classifier", "dense"),
        ("head", "classifier", "dense"),
        ("masked_dense", "vocab_transform", "dense"),
        ("masked_norm", "vocab_layer_norm", "norm"),
        ("masked_bias", "vocab_projector.bias", "value"),
    ),
}
LAYER_MODULES = {
    "bert": (
        "encoder.layer.{}",
        (
            ("attention/query", "attention.self.query", "dense"),
            ("attention/key", "attention.self.key", "dense"),
            ("attention/value", "attention.self.value", "dense"),
            ("attention/output", "attention.output.dense", "dense"),
            ("attention_norm", "attention.output.LayerNorm", "norm"),
            ("up", "intermediate.dense", "dense"),
            ("down", "output.dense", "dense"),
            ("output_norm", "output.LayerNorm", "norm"),
        ),
    ),
    "distilbert": (
        "transformer.layer.{}",
        (
            ("attention/query", "attention.q_lin", "dense"),
            ("attention/key", "attention.k_lin", "dense"),
            ("attention/value", "attention.v_lin", "dense"),
            ("attention/output", "attention.out_lin", "dense"),
            ("attention_norm", "sa_layer_norm", "norm"),
            ("up", "ffn.lin1", "dense"),
            ("down", "ffn.lin2", "dense"),
            ("output_norm", "output_layer_norm", "norm"),
        ),
    ),
}
# (theirs, ours, transform) of a module's leaves.
MODULE_LEAVES = {
    "dense": ((".weight", "/kernel", transpose), (".bias", "/bias", keep)),
    "norm": ((".weight", "/scale", keep), (".bias", "/bias", keep)),
    "embedding": ((".weight", "/embedding", keep),),
    "value": (("", "", keep),),
}
# Tied copies of the word embeddings and of the bias, position indices, and the head of next sentence prediction.
IGNORED = (
    r"embeddings\.position_ids",
    r"cls\.predictions\.decoder\.(weight|bias)",
    r"vocab_projector\.weight",
    r"cls\.seq_relationship\.(weight|bias)",
)
UNPREFIXED = ("head", "pooler", "masked_dense", "masked_norm", "masked_bias")  # ours, outside the prefix "bert."
# Option of the model -> its name in config.json, by kind.
OPTIONS = {
    "bert": {
        "vocabulary": "vocab_size",
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "hidden": "intermediate_size",
        "positions": "max_position_embeddings",
        "types": "type_vocab_size",
        "epsilon": "layer_norm_eps",
        "activation": "hidden_act",
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "head_dropout": "classifier_dropout",
    },
    "distilbert": {
        "vocabulary": "vocab_size",
        "width": "dim",
        "depth": "n_layers",
        "heads": "n_heads",
        "hidden": "hidden_dim",
        "positions": "max_position_embeddings",
        "activation": "activation",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "head_dropout": "seq_classif_dropout",
    },
}
# Limits of each option, about a hundred times the largest published networks.
SIZES: Mapping[str, Field] = {
    "vocabulary": integer(1, 10_000_000),
    "width": integer(1, 100_000),
    "depth": integer(1, 1_000),
    "heads": integer(1, 10_000),
    "hidden": integer(1, 1_000_000),
    "positions": integer(1, 1_000_000),
    "types": integer(0, 64),
    "epsilon": number(0, 1),
    "activation": STRING,
    "dropout": number(0, 0.99),
    "attention_dropout": number(0, 0.99),
    "head_dropout": number(0, 0.99),
}
OTHER_FIELDS = {"model_type": STRING, "architectures": list_of(STRING), "id2label": object_of(STRING)}
# Leaves whose shapes follow from options: they reveal another network's file before a model is built.
SHAPES = {
    "params/embeddings/word/embedding": ("vocabulary", "width"),
    "params/embeddings/position/embedding": ("positions", "width"),
    "params/embeddings/type/embedding": ("types", "width"),
    "params/layer1/up/kernel": ("width", "hidden"),
}
_COPY = "copy the config.json of these weights there"


def leaf_names(kind: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    """Yield (our path, their name without prefix, transform) for every array that a file may hold."""
    stem, layer = LAYER_MODULES[kind]
    modules = list(SINGLE_MODULES[kind])
    for i in range(depth):
        modules += [
            (f"layer{i + 1}/{ours}", f"{stem.format(i)}.{theirs}", layer_kind) for ours, theirs, layer_kind in layer
        ]
    for ours, theirs, layer_kind in modules:
        for their_leaf, our_leaf, transform in MODULE_LEAVES[layer_kind]:
            yield f"params/{ours}{our_leaf}", theirs + their_leaf, transform


def conversion_table(kind: str, depth: int) -> Table:
    """Return the conversion table; the prefix "bert." is optional, and norms may use ``gamma`` and ``beta``."""
    rules = [Rule(re.escape(theirs), ours, transform) for ours, theirs, transform in leaf_names(kind, depth)]
    return Table(rules, IGNORED, lambda arrays, _: {name: strip_prefix(name, kind) for name in arrays})


def strip_prefix(name: str, kind: str) -> str:
    """Return the current name of an array, without its prefix."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name.removeprefix(f"{kind}.")))


def check_config(config: Mapping[str, Any], file: Path, activations: Collection[str]) -> None:
    """Check the types and ranges in a ``config.json`` before a model is built from it.

    Args:
        config: content of the file.
        file: its path, for messages.
        activations: names of the supported activations.

    Raises:
        UserError: A field is invalid; the message names file and field.
    """
    kind = model_kind(config, file)
    names = OPTIONS[kind]
    check_fields(config, file, {theirs: SIZES[ours] for ours, theirs in names.items()}, _COPY)
    if missing := [theirs for theirs in list(names.values())[:5] if config.get(theirs) is None]:
        raise UserError(f"{file}: {', '.join(missing)} missing; {_COPY}")
    width, heads, activation = (names[option] for option in ("width", "heads", "activation"))
    if config[width] % config[heads]:
        raise UserError(f"{file}: {width}={config[width]} is not a multiple of {heads}={config[heads]}; {_COPY}")
    if (name := config.get(activation)) is not None and name not in activations:
        raise UserError(f"{file}: {activation}={name!r} is not supported; {nearest(name, activations)}")


def check_depth(depth: int, kind: str, arrays: int, file: Path) -> None:
    """Raise UserError if a file has too few arrays for ``depth`` layers, which have at least sixteen each.

    Without this check, listing the names of the layers could exhaust memory.

    Raises:
        UserError: The depth does not fit; the message names field and file.
    """
    if depth > arrays:
        raise UserError(
            f"{file} does not fit its config.json: it has {arrays} arrays for {OPTIONS[kind]['depth']}={depth}; "
            "copy both again"
        )


def check_shapes(attributes: Mapping[str, Any], kind: str, converted: Converted, file: Path) -> None:
    """Compare the sizes in a ``config.json``, as model attributes, with the shapes of a file's arrays.

    Raises:
        UserError: A size differs; the message names the fields and the array.
    """
    for path, sizes in SHAPES.items():
        if path not in converted.leaves or any(size not in attributes for size in sizes):
            continue
        if (shape := converted.leaves[path].shape) != tuple(attributes[size] for size in sizes):
            fields = " and ".join(f"{OPTIONS[kind].get(size, size)}={attributes[size]}" for size in sizes)
            raise UserError(
                f"{file} does not fit its config.json: {converted.origin[path]} has the wrong shape {shape} for "
                f"{fields}; copy both again"
            )


def model_kind(config: Mapping[str, Any], file: Path | str = "config.json") -> str:
    """Return the kind of network that a ``config.json`` describes; ``file`` is for messages.

    Raises:
        UserError: The network or its variant is not supported.
    """
    check_fields(config, file, OTHER_FIELDS, _COPY)
    kind = config.get("model_type") or ""
    if kind not in SINGLE_MODULES:
        raise UserError(f"{file}: model_type {kind!r} is not supported; {nearest(kind, SINGLE_MODULES)}")
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise UserError(f"{file}: decoders and relative positions are not supported; use a plain encoder")
    return kind


def model_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``models.create`` for a checked ``config.json``."""
    kind = model_kind(config)
    options = {ours: config[theirs] for ours, theirs in OPTIONS[kind].items() if config.get(theirs) is not None}
    options.setdefault("head_dropout", options.get("dropout", 0.1))
    return options if kind == "bert" else {**options, "types": 0, "pooler": "relu"}


def head_kind(config: Mapping[str, Any]) -> str:
    """Return the head of the file according to its architecture: "text", "tokens", "masked", or "" for none."""
    name = next(iter(config.get("architectures") or ()), "")
    known = {"SequenceClassification": "text", "TokenClassification": "tokens"}
    known |= {"MaskedLM": "masked", "PreTraining": "masked"}
    return known.get(name.partition("For")[2], "")


def export_arrays(variables: Mapping[str, np.ndarray], kind: str, depth: int) -> dict[str, np.ndarray]:
    """Return arrays under Hugging Face's names, given leaves by path."""
    arrays = {}
    for ours, theirs, transform in leaf_names(kind, depth):
        if ours in variables:
            array = np.asarray(variables[ours], np.float32)
            unprefixed = ours.split("/")[1] in UNPREFIXED and not (kind == "bert" and ours.startswith("params/pooler"))
            arrays[theirs if unprefixed else f"{kind}.{theirs}"] = np.ascontiguousarray(INVERSES[transform](array))
    return arrays


def make_config(kind: str, model: Any, classes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the ``config.json`` of one of our models."""
    suffixes = {"text": "SequenceClassification", "tokens": "TokenClassification", "masked": "MaskedLM"}
    name = {"bert": "Bert", "distilbert": "DistilBert"}[kind]
    # For a head on mean pooling, transformers' class would add an untrained pooler.
    has_head = model.output == "masked" or (model.num_classes and (model.output, model.pooling) != ("text", "mean"))
    config: dict[str, Any] = {
        "architectures": [f"{name}For{suffixes[model.output]}" if has_head else f"{name}Model"],
        "model_type": kind,
        **{theirs: getattr(model, ours) for ours, theirs in OPTIONS[kind].items()},
        "pad_token_id": 0,
    }
    if model.num_classes:
        names = classes or [f"LABEL_{i}" for i in range(model.num_classes)]
        config["id2label"] = {str(i): n for i, n in enumerate(names)}
        config["label2id"] = {n: i for i, n in enumerate(names)}
    return config
