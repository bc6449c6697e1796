"""Published and shipped weights by (model, source), and the tables that convert them: what networks have registered."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tl_jax.config.options import Options, option
from tl_jax.models.registry import MODELS, PretrainedSpec
from tl_jax.models.rules import NATIVE_RULE, Table
from tl_jax.utils.errors import UserError, nearest


class Catalog(Mapping[tuple[str, str], PretrainedSpec]):
    """The facts of weights by (model, source)."""

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
_NATIVE_TABLE = Table([NATIVE_RULE])  # of this project's own files, whose names are our paths already


def published_sources() -> tuple[str, ...]:
    """Return the sources whose files some network can be loaded from."""
    return tuple(dict.fromkeys(source for _, source in CATALOG))


@dataclass(frozen=True)
class InitConfig(Options):
    """The weights that training starts from."""

    source: str = option(
        "keras", "whose weights are loaded", lambda: (*published_sources(), "huggingface", "tl_jax", "random")
    )
    layout: str = option("keras", "source whose layout random weights take", lambda: (*published_sources(), "tl_jax"))
    path: str = option(
        "", "file of weights, bundle, or a text network's folder or hub repository; empty: embedded or published"
    )
    rename: tuple[tuple[str, str], ...] = option(
        (), "pairs (regex, replacement): new names for arrays in the file that its table does not know"
    )
    head: str = option("new", "drawn at random, kept from the file, or a probe fitted to the features", HEAD_INITS)
    strength: float = option(0.0, "C of the probe, 1 / penalty; 0: the best on validation, or see `folds`", low=0.0)
    folds: int = option(0, "folds of the training split that choose C by log loss; 0: validation does", low=0, high=10)
    start_loss: float = option(
        0.0,
        "train from a weaker head than the probe: one whose training loss is this share of a guess's; 0: the probe",
        low=0.0,
        high=1.0,
    )


def known_sources(model: str) -> tuple[str, ...]:
    """Return the sources whose files of ``model`` can be read."""
    return (*(MODELS[model].tables if model in MODELS else ()), "tl_jax")


def conversion_table(model: str, source: str) -> Table:
    """Return the conversion table of a source; a UserError names the known ones."""
    if source == "tl_jax":
        return _NATIVE_TABLE
    if source not in known_sources(model):
        raise UserError(f"{model!r} has no weights of {source!r}; {nearest(source, known_sources(model))}")
    return MODELS[model].tables[source]


# Weights that ship with the package, in the project's own format, each with a card beside it.
EMBEDDED_DIR = Path(__file__).parent / "embedded"
EMBEDDED: Mapping[str, Path] = {"resnet8": EMBEDDED_DIR / "resnet8_cifar10.safetensors"}
# What resnet8 was trained on in the files that ship with the package: names to be given instead of a path.
EMBEDDED_RESNET8: Mapping[str, Path] = {
    name: EMBEDDED_DIR / f"resnet8_{name}.safetensors"
    for name in ("cifar10", "mnist", "shapes", "flowers", "faces", "ct")
}
EMBEDDED_BERT = EMBEDDED_DIR / "bert_docs"  # a small BERT with its tokenizer, in Hugging Face's layout
