"""Conversion tables by model and source."""

from collections.abc import Mapping

from tl_jax.errors import UserError, nearest
from tl_jax.weights import inception, mobilenet, resnet, vgg
from tl_jax.weights.rules import OWN, Table

_R50, _TINY = (3, 4, 6, 3), (2, 1, 1, 1)

TABLES: Mapping[str, Mapping[str, Table]] = {
    "vgg16": vgg.tables(vgg.VGG16, norm=False),
    "vgg19": vgg.tables(vgg.VGG19, norm=False),
    "vgg16_bn": vgg.tables(vgg.VGG16, norm=True),
    "vgg19_bn": vgg.tables(vgg.VGG19, norm=True),
    "vgg16_tiny": vgg.tables(vgg.TINY, norm=False),
    "vgg16_bn_tiny": vgg.tables(vgg.TINY, norm=True),
    "resnet18": resnet.tables((2, 2, 2, 2), bottleneck=False),
    "resnet34": resnet.tables(_R50, bottleneck=False),
    "resnet50": resnet.tables(_R50),
    "resnet101": resnet.tables((3, 4, 23, 3)),
    "resnet152": resnet.tables((3, 8, 36, 3)),
    "resnet50_tiny": resnet.tables(_TINY),
    "resnet50v2": resnet.tables_v2(_R50),
    "resnet50v2_tiny": resnet.tables_v2((2, 2, 1, 2)),
    "inception_v3": inception.tables((3, 4, 2)),
    "inception_v3_tiny": inception.tables((1, 1, 1)),
    "mobilenet_v2": mobilenet.tables(mobilenet.DEPTHS),
    **{f"mobilenet_v2_{width}": mobilenet.tables(mobilenet.DEPTHS) for width in ("035", "050", "075", "130", "140")},
    "mobilenet_v2_tiny": mobilenet.tables(mobilenet.TINY),
}

# This project's own files: names are our paths already.
_OWN = Table([OWN])


def sources(model: str) -> tuple[str, ...]:
    """Return the sources whose files of ``model`` can be read."""
    return (*TABLES.get(model, {}), "tl_jax")


def table(model: str, source: str) -> Table:
    """Return the conversion table of a source; a UserError names the known ones."""
    if source == "tl_jax":
        return _OWN
    if source not in TABLES.get(model, {}):
        raise UserError(f"{model!r} has no weights of {source!r}; {nearest(source, sources(model))}")
    return TABLES[model][source]
