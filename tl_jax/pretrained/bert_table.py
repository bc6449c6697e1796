"""BERT and DistilBERT as Hugging Face stores them: names of arrays, and what ``config.json`` says of the network."""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax.models.rules import INVERSES, Rule, Table, keep, transpose
from tl_jax.pretrained.convert import Converted
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.json_files import STRING, Field, check_fields, integer, list_of, number, object_of

# (ours, theirs, kind of layer) of what is there once, and once in each layer.
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
# (theirs, ours, transform) of a layer's leaves.
MODULE_LEAVES = {
    "dense": ((".weight", "/kernel", transpose), (".bias", "/bias", keep)),
    "norm": ((".weight", "/scale", keep), (".bias", "/bias", keep)),
    "embedding": ((".weight", "/embedding", keep),),
    "value": (("", "", keep),),
}
# Copies of the words' embeddings and of the bias, positions that are counted, and a task that nobody goes on with.
IGNORED = (
    r"embeddings\.position_ids",
    r"cls\.predictions\.decoder\.(weight|bias)",
    r"vocab_projector\.weight",
    r"cls\.seq_relationship\.(weight|bias)",
)
UNPREFIXED = ("head", "pooler", "masked_dense", "masked_norm", "masked_bias")  # ours, without their prefix "bert."
# Option of the model: its name in config.json, by kind.
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
# What each option may be; the largest published networks of these kinds have about a hundredth of these sizes.
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
# Leaves whose shapes are those of options: which tell that a file is another network's before one is built.
SHAPES = {
    "params/embeddings/word/embedding": ("vocabulary", "width"),
    "params/embeddings/position/embedding": ("positions", "width"),
    "params/embeddings/type/embedding": ("types", "width"),
    "params/layer1/up/kernel": ("width", "hidden"),
}
_COPY = "copy the config.json that came with the weights there"


def leaf_names(kind: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    """Yield (our path, their name without prefix, transform) of every array that a file may hold."""
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
    """Return the conversion table; names may begin with "bert." or not, and norms may have ``gamma`` and ``beta``."""
    rules = [Rule(re.escape(theirs), ours, transform) for ours, theirs, transform in leaf_names(kind, depth)]
    return Table(rules, IGNORED, lambda arrays, _: {name: strip_prefix(name, kind) for name in arrays})


def strip_prefix(name: str, kind: str) -> str:
    """Return the name of an array without its prefix, as it is called today."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name.removeprefix(f"{kind}.")))


def check_config(config: Mapping[str, Any], file: Path, activations: Collection[str]) -> None:
    """Check what stands in a ``config.json``: types and ranges, before anything is built of it.

    Args:
        config: its content.
        file: it comes from, for messages.
        activations: names of those that are known.

    Raises:
        UserError: names the file and the field.
    """
    kind = model_kind(config, file)
    names = OPTIONS[kind]
    check_fields(config, file, {theirs: SIZES[ours] for ours, theirs in names.items()}, _COPY)
    if missing := [theirs for theirs in list(names.values())[:5] if config.get(theirs) is None]:
        raise UserError(f"{file} lacks {', '.join(missing)}; {_COPY}")
    width, heads, activation = (names[option] for option in ("width", "heads", "activation"))
    if config[width] % config[heads]:
        raise UserError(
            f"{file}: {width} is {config[width]}, no multiple of {heads}, which is {config[heads]}; {_COPY}"
        )
    if (name := config.get(activation)) is not None and name not in activations:
        raise UserError(f"{file}: {activation} is {name!r}, which is not known here; {nearest(name, activations)}")


def check_depth(depth: int, kind: str, arrays: int, file: Path) -> None:
    """Refuse more layers than a file has arrays, of which each layer has sixteen: their names alone may be too many.

    Raises:
        UserError: names the field and the file.
    """
    if depth > arrays:
        raise UserError(
            f"{file} does not fit its config.json: it has {arrays} arrays for {OPTIONS[kind]['depth']}={depth}; "
            "copy both anew"
        )


def check_shapes(attributes: Mapping[str, Any], kind: str, converted: Converted, file: Path) -> None:
    """Compare the sizes that a ``config.json`` states, as attributes of a model, with those of the arrays of a file.

    Raises:
        UserError: names the fields and the array.
    """
    for path, sizes in SHAPES.items():
        if path not in converted.leaves or any(size not in attributes for size in sizes):
            continue
        if (shape := converted.leaves[path].shape) != tuple(attributes[size] for size in sizes):
            fields = " and ".join(f"{OPTIONS[kind].get(size, size)}={attributes[size]}" for size in sizes)
            raise UserError(
                f"{file} does not fit its config.json: {converted.origin[path]} has the wrong shape {shape} for "
                f"{fields}; copy both anew"
            )


def model_kind(config: Mapping[str, Any], file: Path | str = "config.json") -> str:
    """Return which of the networks a ``config.json`` describes; ``file`` is for messages.

    Raises:
        UserError: another one, or a variant that is not built here.
    """
    check_fields(config, file, OTHER_FIELDS, _COPY)
    kind = config.get("model_type") or ""
    if kind not in SINGLE_MODULES:
        raise UserError(f"{file} has model_type {kind!r}; {nearest(kind, SINGLE_MODULES)}")
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise UserError(f"{file} describes a decoder, or positions that are not absolute; take a plain encoder")
    return kind


def model_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``models.create`` that a ``config.json``, which was checked, stands for."""
    kind = model_kind(config)
    options = {ours: config[theirs] for ours, theirs in OPTIONS[kind].items() if config.get(theirs) is not None}
    options.setdefault("head_dropout", options.get("dropout", 0.1))
    return options if kind == "bert" else {**options, "types": 0, "pooler": "relu"}


def head_kind(config: Mapping[str, Any]) -> str:
    """Return which head the file has, as its architecture says: "text", "tokens", "masked", or "" for none."""
    name = next(iter(config.get("architectures") or ()), "")
    known = {"SequenceClassification": "text", "TokenClassification": "tokens"}
    known |= {"MaskedLM": "masked", "PreTraining": "masked"}
    return known.get(name.partition("For")[2], "")


def export_arrays(variables: Mapping[str, np.ndarray], kind: str, depth: int) -> dict[str, np.ndarray]:
    """Return arrays under Hugging Face's names, from leaves by path."""
    arrays = {}
    for ours, theirs, transform in leaf_names(kind, depth):
        if ours in variables:
            array = np.asarray(variables[ours], np.float32)
            unprefixed = ours.split("/")[1] in UNPREFIXED and not (kind == "bert" and ours.startswith("params/pooler"))
            arrays[theirs if unprefixed else f"{kind}.{theirs}"] = np.ascontiguousarray(INVERSES[transform](array))
    return arrays


def make_config(kind: str, model: Any, classes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the ``config.json`` of a model of ours."""
    suffixes = {"text": "SequenceClassification", "tokens": "TokenClassification", "masked": "MaskedLM"}
    name = {"bert": "Bert", "distilbert": "DistilBert"}[kind]
    # To a head on the mean, a class of transformers would add a pooler that nobody trained.
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
