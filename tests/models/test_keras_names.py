"""Keras' spellings and automatic names: what is told by order, and what is refused as no order of Keras."""

import jax
import numpy as np
import pytest

from tests.pretrained.fake import random_variables
from tl_jax import models
from tl_jax.models import inception
from tl_jax.pretrained import catalog, network
from tl_jax.pretrained.convert import MergeError, convert, merge
from tl_jax.utils import tree

pytestmark = pytest.mark.fast
KERAS = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


def variables(name, **options):
    return random_variables(network.variable_shapes(models.create(name, 6, **options)))


def loaded(name, arrays):
    shapes = network.variable_shapes(models.create(name, 6))
    return merge(shapes, convert(arrays, catalog.conversion_table(name, "keras")))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def automatic(tree_of, first, order="listed"):
    """Return the arrays of a tiny InceptionV3 as Keras names and lists them, counting from ``first``."""
    leaves = tree.flatten(tree_of)
    made, listed = inception._creation_order((1, 1, 1)), inception._keras_order((1, 1, 1))
    number = {unit: first + i for i, unit in enumerate(made if order != "nameless" else listed)}
    arrays = {}
    for unit in {"listed": listed, "nameless": listed, "made": made}[order]:
        for layer, module in (("conv2d", "conv"), ("batch_normalization", "bn")):
            name = f"{layer}_{number[unit]}" if number[unit] else layer
            for path, leaf in leaves.items():
                if f"/{unit}/{module}/" in path:
                    last = path.rpartition("/")[2]
                    arrays[f"{name}/{last if module == 'conv' else KERAS[last]}"] = leaf
    return arrays | {f"predictions/{leaf}": leaves[f"params/head/{leaf}"] for leaf in ("kernel", "bias")}


@pytest.mark.parametrize("first", [0, 1, 94])
def test_automatic_names_count_from_anywhere(first):
    expected = variables("inception_v3_tiny")
    arrays = automatic(expected, first)
    assert next(iter(arrays)) == f"conv2d{f'_{first}' if first else ''}/kernel"
    same(loaded("inception_v3_tiny", arrays), expected)


def test_layers_that_keras_numbers_as_it_lists_them():
    expected = variables("inception_v3_tiny")
    same(loaded("inception_v3_tiny", automatic(expected, 0, "nameless")), expected)


def test_another_order_than_keras_is_refused_although_shapes_might_fit():
    arrays = automatic(variables("inception_v3_tiny"), 1)
    names = list(arrays)
    convs = [name for name in names if name.startswith("conv2d")]
    # Two layers of one shape, swapped in the order of the file: their numbers no longer fit.
    a, b = next((a, b) for i, a in enumerate(convs) for b in convs[i + 1 :] if arrays[a].shape == arrays[b].shape)
    swapped = [{a: b, b: a}.get(name, name) for name in names]
    with pytest.raises(MergeError, match="extra: conv2d"):
        loaded("inception_v3_tiny", {name: arrays[name] for name in swapped})
    with pytest.raises(MergeError):
        loaded("inception_v3_tiny", {name: arrays[name] for name in sorted(names)})


def test_the_published_spelling_of_vgg():
    expected = variables("vgg16_tiny")
    arrays = {}
    for path, leaf in tree.flatten(expected).items():
        *layer, last = path.removeprefix("params/").split("/")
        name = "predictions" if layer == ["head"] else layer[0]
        name = f"block{layer[0][5:]}_{layer[1]}" if len(layer) == 2 else name
        arrays[f"{name}/{name}_{'W' if last == 'kernel' else 'b'}_1"] = leaf
    same(loaded("vgg16_tiny", arrays), expected)


def test_a_chain_is_told_by_order_whatever_its_layers_are_called():
    expected = variables("mobilenet_v2_tiny")
    leaves, arrays = tree.flatten(expected), {}
    order = [("stem", "conv"), ("stem", "bn")]
    blocks = [(1, 1), (2, 1), (2, 2), (3, 1), (4, 1)]
    for number, (stage, block) in enumerate(blocks):
        for unit in ("expand", "depthwise", "project")[number == 0 :]:
            order += [(f"stage{stage}/block{block}/{unit}", "conv"), (f"stage{stage}/block{block}/{unit}", "bn")]
    order += [("final", "conv"), ("final", "bn")]
    for i, (unit, module) in enumerate(order):
        for path, leaf in leaves.items():
            if path.partition("/")[2].startswith(f"{unit}/{module}/"):
                last = path.rpartition("/")[2]
                depthwise = unit.endswith("depthwise") and module == "conv"
                spelled = "depthwise_kernel" if depthwise else last if module == "conv" else KERAS[last]
                arrays[f"mobl{i}_conv/{spelled}"] = leaf.transpose(0, 1, 3, 2) if depthwise else leaf
    arrays |= {f"Logits/{leaf}": leaves[f"params/head/{leaf}"] for leaf in ("kernel", "bias")}
    same(loaded("mobilenet_v2_tiny", arrays), expected)


def test_names_that_mean_nothing_are_no_chain_in_a_resnet():
    arrays = {f"layer{i}/kernel": np.zeros((1, 1, 8, 8), np.float32) for i in range(20)}
    with pytest.raises(MergeError, match="extra: layer0/kernel"):
        loaded("resnet50_tiny", arrays)


def test_a_name_may_have_any_number_of_digits():
    arrays = automatic(variables("inception_v3_tiny"), 1)
    long = {name.replace("conv2d_", f"conv2d_{'9' * 5_000}"): array for name, array in arrays.items()}
    assert long.keys() != arrays.keys()
    with pytest.raises(MergeError):
        loaded("inception_v3_tiny", long)


@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 0, 5), (1,) * 6])
def test_arrays_of_another_rank_are_no_weights(shape):
    names = ("classifier.0.weight", "features.0.weight")
    with pytest.raises(MergeError, match="wrong"):
        arrays = {name: np.zeros(shape, np.float32) for name in names}
        network_of = network.variable_shapes(models.create("vgg16_tiny", 6))
        merge(network_of, convert(arrays, catalog.conversion_table("vgg16_tiny", "torchvision")))
