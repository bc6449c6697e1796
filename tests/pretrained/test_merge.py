"""Conversion tables and the strict merge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained.fake import keras_arrays, random_variables, torchvision_arrays
from tl_jax import models
from tl_jax.models.rules import Rule, Table, oihw_to_hwio
from tl_jax.pretrained import catalog
from tl_jax.pretrained.convert import MergeError, convert, merge
from tl_jax.pretrained.network import variable_shapes
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
FAKES = {"keras": keras_arrays, "torchvision": torchvision_arrays}


@pytest.fixture(params=FAKES)
def case(request):
    """The variables of a tiny ResNet and the same under a source's names."""
    model = models.create("resnet50_tiny", 5, layout=request.param)
    variables = random_variables(variable_shapes(model))
    return (
        model,
        variables,
        FAKES[request.param](variables),
        catalog.conversion_table("resnet50_tiny", request.param),
    )


def test_every_leaf_comes_back(case):
    model, variables, arrays, table = case
    merged = merge(variable_shapes(model), convert(arrays, table))
    jax.tree.map(np.testing.assert_array_equal, merged, variables)


def test_everything_that_does_not_fit_is_listed_at_once(case):
    model, _, arrays, table = case
    names = list(arrays)
    gone, bent, bad = names[0], names[5], names[8]
    arrays = {**arrays, "stranger/kernel": np.zeros(3), bent: arrays[bent][..., None]}
    arrays[bad] = np.full_like(arrays[bad], np.inf)
    del arrays[gone]
    with pytest.raises(MergeError) as error:
        merge(variable_shapes(model), convert(arrays, table))
    report = error.value.report
    assert len(report.missing) == 1 and list(report.extra) == ["stranger/kernel"] and len(report.wrong) == 2
    for offender in (report.missing[0], "stranger/kernel", "shape", "not finite"):
        assert offender in str(error.value)


def test_integers_are_refused_and_half_precision_widened(case):
    model, variables, arrays, table = case
    name = next(iter(arrays))
    with pytest.raises(MergeError, match="int32"):
        merge(variable_shapes(model), convert({**arrays, name: arrays[name].astype(np.int32)}, table))
    for dtype in (np.float16, jnp.bfloat16):
        merged = merge(variable_shapes(model), convert({k: v.astype(dtype) for k, v in arrays.items()}, table))
        for path, leaf in tree.flatten(merged).items():
            assert leaf.dtype == np.float32
            np.testing.assert_allclose(leaf, tree.flatten(variables)[path], rtol=1e-2, atol=1e-2)


def test_two_names_for_one_leaf_and_two_rules_for_one_name_are_errors():
    shape = {"params": {"a": jax.ShapeDtypeStruct((2,), np.float32)}}
    twice = Table([Rule(r"x\d", "params/a")])
    with pytest.raises(MergeError, match="both map to params/a"):
        merge(shape, convert({"x1": np.ones(2), "x2": np.ones(2)}, twice))
    vague = Table([Rule(r"x", "params/a"), Rule(r".", "params/a")])
    with pytest.raises(MergeError, match="x matches 2 rules"):
        merge(shape, convert({"x": np.ones(2)}, vague))


def test_no_leaf_is_left_at_its_initial_value():
    shape = {"params": {"a": jax.ShapeDtypeStruct((2,), np.float32), "head": jax.ShapeDtypeStruct((3,), np.float32)}}
    with pytest.raises(MergeError, match="1 missing: params/head"):
        merge(shape, convert({"x": np.ones(2)}, Table([Rule("x", "params/a")])))


def test_ignored_names_are_dropped_and_wrong_ranks_reported_not_raised():
    table = Table([Rule("k", "params/k", oihw_to_hwio)], ignored=("counter",))
    converted = convert({"k": np.ones(3), "counter": np.ones(1)}, table)
    assert not converted.extra
    with pytest.raises(MergeError, match="shape"):
        merge({"params": {"k": jax.ShapeDtypeStruct((1, 1, 1, 3), np.float32)}}, converted)


def test_keras_and_torchvision_tables_cover_the_whole_of_resnet50():
    for source, fake in FAKES.items():
        shapes = variable_shapes(models.create("resnet50", 1000, layout=source))
        variables = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
        merged = merge(shapes, convert(fake(variables), catalog.conversion_table("resnet50", source)))
        assert tree.count(merged) == tree.count(shapes)


def test_unknown_source_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean 'torchvision'"):
        catalog.conversion_table("resnet50", "torchvison")
