"""Files as Keras and torchvision would write them, made without either from our own variables."""

import re

import h5py
import numpy as np

from tl_jax.utils import tree

_KERAS = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
_TORCH = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def random_variables(shapes, seed=0):
    """Return variables with sane random values: positive variances, kernels that keep activations near one."""
    rng = np.random.default_rng(seed)
    leaves = {}
    for path, leaf in tree.flatten(shapes).items():
        if path.endswith(("var", "scale")):
            leaves[path] = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            fan = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
            leaves[path] = rng.normal(size=leaf.shape) * (2 / fan) ** 0.5
    return tree.unflatten({path: leaf.astype(np.float32) for path, leaf in leaves.items()})


def _parts(path):
    """Split "params/stage1/block2/bn3/scale" into (stage, block, kind, index, leaf)."""
    _, *where, leaf = path.split("/")
    if where == ["head"]:
        return None, None, "head", None, leaf
    if where[0] == "stem":
        return 0, None, where[1], None, leaf
    kind = re.sub(r"\d", "", where[2])
    return int(where[0][5:]), int(where[1][5:]), kind, where[2][len(kind) :], leaf


def keras_arrays(variables):
    """Return {"conv2_block1_1_conv/kernel": array, ...}."""
    out = {}
    for path, array in tree.flatten(variables).items():
        stage, block, kind, index, leaf = _parts(path)
        norm = kind.endswith("bn")
        leaf = _KERAS[leaf] if norm else leaf
        if kind == "head":
            name = "predictions"
        elif stage == 0:
            name = "conv1_bn" if norm else "conv1_conv"
        else:
            name = f"conv{stage + 1}_block{block}_{index or 0}_{'bn' if norm else 'conv'}"
        out[f"{name}/{leaf}"] = array
    return out


def torchvision_arrays(variables):
    """Return {"layer1.0.conv1.weight": array, ...} with BatchNorm's counters."""
    out = {}
    for path, array in tree.flatten(variables).items():
        stage, block, kind, index, leaf = _parts(path)
        norm = kind.endswith("bn")
        leaf = _TORCH[leaf] if norm else {"kernel": "weight"}.get(leaf, leaf)
        if kind == "head":
            name, array = "fc", array.T
        elif stage == 0:
            name = "bn1" if norm else "conv1"
        elif kind.startswith("shortcut"):
            name = f"layer{stage}.{block - 1}.downsample.{int(norm)}"
        else:
            name = f"layer{stage}.{block - 1}.{kind}{index}"
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        out[f"{name}.{leaf}"] = array
        if norm:
            out[f"{name}.num_batches_tracked"] = np.asarray(7)
    return out


def write_keras_h5(path, variables):
    """Write the published HDF5 layout of Keras 2: ``/conv1_conv/conv1_conv/kernel:0``."""
    layers = {}
    for name, array in keras_arrays(variables).items():
        layer, leaf = name.split("/")
        layers.setdefault(layer, {})[f"{layer}/{leaf}:0"] = array
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.2.4"
        for layer, weights in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in weights]
            for name, array in weights.items():
                group[name] = array
