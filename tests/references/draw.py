"""Random weights as a function of their own names, so that a peer and a file of names and shapes give the same ones."""

import math
import re
import zlib

import numpy as np

SCALES = ("gamma", "weight")
VARIANCES = ("moving_variance", "running_var")
OFFSETS = ("bias", "beta", "moving_mean", "running_mean")
TOKENS = ("cls_token", "position_embeddings", "register_tokens", "mask_token")
FACTORS = ("lambda1", "layer_scale_parameter")  # of the branches of transformers and ConvNeXt

# Scales of norms whose output is added to a shortcut: the branch stays below it, so that sums do not grow. BasicBlock
# ends with bn2, which is the second of three norms in a Bottleneck, hence a range between the others.
BRANCHES = (
    (r".*_3_bn/gamma|layer\d\.\d+\.bn3\.weight", 0.1, 0.4),
    (r".*_block1_preact_bn/gamma", 0.4, 1.0),
    (r".*_preact_bn/gamma", 0.1, 0.4),
    (r"layer\d\.\d+\.bn2\.weight|.*_project_BN/gamma|features\.\d+\.conv\.[23]\.weight", 0.3, 0.8),
)


def draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return the value of one variable such that activations of unit inputs stay near one through all layers.

    No value is what a fresh model has, so a reader that swaps or drops any variable changes the outputs. Values are
    float32, but for PyTorch's counters of batches, which are int64 and do not matter.

    Args:
        name: the variable's name in Keras ("conv1_conv/kernel") or PyTorch ("layer1.0.conv1.weight").
        shape: of the variable; kernels as their source lays them out.
        seed: another seed gives another value.
    """
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    layer, leaf = re.split(r"[./](?=[^./]+$)", name)
    if leaf.endswith("kernel") or (leaf == "weight" and len(shape) > 1):
        bound = math.sqrt(3 * _gain(layer) / _fan_in(layer, leaf, shape))
        return _uniform(rng, -bound, bound, shape)
    if leaf in SCALES:
        low, high = next(((low, high) for rx, low, high in BRANCHES if re.fullmatch(rx, name)), (0.5, 1.5))
        return _thin(_uniform(rng, low, high, shape), 3e-3, 1e-2)
    if leaf in TOKENS:
        return _uniform(rng, -0.5, 0.5, shape)
    if leaf in FACTORS:
        return _uniform(rng, 0.1, 0.4, shape)
    if leaf in VARIANCES:
        thin = (3e-2, 1.0) if _is_automatic(layer) else (1e-6, 1e-4)
        return _thin(_uniform(rng, 0.5, 1.5, shape), *thin)
    if leaf in OFFSETS:
        return _uniform(rng, -0.17, 0.17, shape)
    if leaf == "num_batches_tracked":
        return np.full(shape, 7)
    raise ValueError(f"{name} is no variable of a known kind")


def _uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
    return np.float32(low) + np.float32(high - low) * rng.random(shape, np.float32)


def _thin(values: np.ndarray, first: float, second: float) -> np.ndarray:
    """Let two channels in 16 vary so little, as in published weights, that epsilon (1e-5; 1e-3) decides their scale."""
    values[3::16] *= np.float32(first)
    values[11::16] *= np.float32(second)
    return values


def _is_automatic(layer: str) -> bool:
    """Return whether Keras chose this name: InceptionV3's layers, whose norms have no scale to offset a variance."""
    return re.fullmatch(r"(conv2d|batch_normalization)(_\d+)?", layer) is not None


def _gain(layer: str) -> float:
    """Return 2, which ReLU takes back, less what channels of little variance add where no scale offsets them."""
    return 2 / 3.1 if _is_automatic(layer) else 2.0


def _fan_in(layer: str, leaf: str, shape: tuple[int, ...]) -> int:
    if leaf == "weight":
        return math.prod(shape[1:])  # PyTorch: (out, in / groups, H, W)
    return math.prod(shape[:2]) if layer.endswith("depthwise") else math.prod(shape[:-1])
