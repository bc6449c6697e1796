"""Facts that travel with weights: how the network is built, what its inputs look like, where its file comes from."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class PretrainedSpec:
    """What must be known to use a weights file correctly.

    Attributes:
        model: name in ``tl_jax.models``.
        source: dialect of the file's names and layouts ("keras", "torchvision", "timm", "tl_jax").
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
    parameters: int = 0
    top1: float = 0.0
    top5: float = 0.0
    measured: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain JSON types."""
        return {**dataclasses.asdict(self), "options": {k: v for k, v in self.options.items()}}
