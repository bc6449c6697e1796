"""Published weights files by (model, source): the facts that loading and preprocessing are derived from."""

from collections.abc import Mapping
from pathlib import Path

from tl_jax.errors import UserError, nearest
from tl_jax.specs import PretrainedSpec
from tl_jax.weights import resnet
from tl_jax.weights.rules import Rule, Table

_KERAS = (
    "https://storage.googleapis.com/tensorflow/keras-applications/resnet/resnet50_weights_tf_dim_ordering_tf_kernels"
)
_TORCH = "https://download.pytorch.org/models/"

# URLs and MD5s as the keras package states them; torchvision's file names carry the start of their SHA-256.
CATALOG: Mapping[tuple[str, str], PretrainedSpec] = {
    (spec.model, spec.source): spec
    for spec in (
        PretrainedSpec(
            model="resnet50",
            source="keras",
            options={"layout": "keras"},
            scaling="caffe",
            url=f"{_KERAS}.h5",
            digest="md5:2cb95161c43110f7111970584f804107",
            headless_url=f"{_KERAS}_notop.h5",
            headless_digest="md5:4d473c1dd8becc155b73f8504c6f6626",
            licence="Apache-2.0 (Keras Applications)",
            top1=74.9,
        ),
        PretrainedSpec(
            model="resnet50",
            source="torchvision",
            options={"layout": "torchvision"},
            scaling="torch",
            url=f"{_TORCH}resnet50-0676ba61.pth",
            digest="sha256:0676ba61",
            licence="BSD-3-Clause (torchvision)",
            top1=76.13,
        ),
        # Files without a published counterpart: tiny members for tests, in the same dialects.
        PretrainedSpec(model="resnet50_tiny", source="keras", options={"layout": "keras"}, scaling="caffe"),
        PretrainedSpec(model="resnet50_tiny", source="torchvision", options={"layout": "torchvision"}),
    )
}

# Weights that ship with the package, in the project's own format, each with a card beside it.
EMBEDDED_DIR = Path(__file__).parent / "embedded"
EMBEDDED: Mapping[str, Path] = {"resnet8": EMBEDDED_DIR / "resnet8_cifar10.safetensors"}

# This project's own files: names are our paths already.
OWN = Table([Rule(r"((?:params|batch_stats)/.*)", r"\1")])

TABLES: Mapping[str, Mapping[str, Table]] = {
    "resnet50": resnet.TABLES,
    "resnet50_tiny": resnet.TABLES,
}


def sources(model: str) -> tuple[str, ...]:
    """Return the sources whose files of ``model`` can be read."""
    return (*TABLES.get(model, {}), "tl_jax")


def table(model: str, source: str) -> Table:
    """Return the conversion table of a source; a UserError names the known ones."""
    if source == "tl_jax":
        return OWN
    if source not in TABLES.get(model, {}):
        raise UserError(f"no {source!r} weights of {model!r} are known; {nearest(source, sources(model))}")
    return TABLES[model][source]
