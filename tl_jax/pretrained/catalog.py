"""Published and embedded weights by (model, source), with their conversion tables, from the model registry."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tl_jax.config.options import Options, option
from tl_jax.models.registry import MODELS, PretrainedSpec
from tl_jax.models.rules import NATIVE_RULE, Table
from tl_jax.utils.errors import UserError, nearest


class Catalog(Mapping[tuple[str, str], PretrainedSpec]):
    """Facts of weights by (model, source)."""

    def __getitem__(self, key: tuple[str, str]) -> PretrainedSpec:
        name, source = key
        if name in MODELS:
            for spec in MODELS[name].weights:
                if spec.source == source:
                    return spec
        raise KeyError(key)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((name, spec.source) for name, entry in MODELS.items() for spec in entry.weights)

    def __len__(self) -> int:
        return sum(len(entry.weights) for entry in MODELS.values())


CATALOG = Catalog()
HEAD_INITS = ("new", "keep", "logistic", "ridge")
_NATIVE_TABLE = Table([NATIVE_RULE])  # our own files use our paths as names


def published_sources() -> tuple[str, ...]:
    """Return the sources from which some network can be loaded."""
    return tuple(dict.fromkeys(source for _, source in CATALOG))


@dataclass(frozen=True)
class InitConfig(Options):
    """Initialization settings."""

    source: str = option(
        "keras", "source of the pretrained weights", lambda: (*published_sources(), "tl_jax", "random")
    )
    layout: str = option(
        "keras", "source whose architecture variant random weights use", lambda: (*published_sources(), "tl_jax")
    )
    path: str = option(
        "", "weights file, bundle, or a text network's folder or hub repository; empty: embedded or published weights"
    )
    rename: tuple[tuple[str, str], ...] = option(
        (), "pairs (regex, replacement) that rename arrays in the file to the names of its conversion table"
    )
    head: str = option("new", "head: random, kept from the file, or a probe fitted to the features", HEAD_INITS)
    strength: float = option(0.0, "C = 1 / penalty of the probe; 0: the best on validation, or see `folds`", low=0.0)
    folds: int = option(0, "folds of the training split for choosing C by log loss; 0: use validation", low=0, high=10)
    start_loss: float = option(
        0.0,
        "fine-tune from a weaker head than the probe, whose training loss is this share of a guess's; 0: the probe",
        low=0.0,
        high=1.0,
    )


def known_sources(model: str) -> tuple[str, ...]:
    """Return the sources from which ``model`` can be loaded."""
    return (*(MODELS[model].tables if model in MODELS else ()), "tl_jax")


def conversion_table(model: str, source: str) -> Table:
    """Return the conversion table of a source. Raises UserError for an unknown source."""
    if source == "tl_jax":
        return _NATIVE_TABLE
    if source not in known_sources(model):
        raise UserError(f"{model!r}: no weights of source {source!r}; {nearest(source, known_sources(model))}")
    return MODELS[model].tables[source]


# Weights that ship with the package, in our own format, each with a model card.
EMBEDDED_DIR = Path(__file__).parent / "embedded"
EMBEDDED: Mapping[str, Path] = {"resnet8": EMBEDDED_DIR / "resnet8_cifar10.safetensors"}
# Datasets on which the embedded resnet8 weights were trained; these names are accepted instead of a path.
EMBEDDED_RESNET8: Mapping[str, Path] = {
    name: EMBEDDED_DIR / f"resnet8_{name}.safetensors"
    for name in ("cifar10", "mnist", "shapes", "flowers", "faces", "ct")
}
EMBEDDED_BERT = EMBEDDED_DIR / "bert_docs"  # a small BERT with its tokenizer, in Hugging Face's format
