"""Tables read backwards: names against files made by hand, and back through the tables, for every family and source."""

import h5py
import jax
import numpy as np
import pytest

from tests.pretrained import fake
from tl_jax import models, pretrained
from tl_jax.export import frameworks
from tl_jax.models.registry import MODELS
from tl_jax.models.rules import Table
from tl_jax.pretrained import catalog, network
from tl_jax.pretrained.catalog import CATALOG
from tl_jax.pretrained.convert import convert
from tl_jax.utils import tree

pytestmark = pytest.mark.fast
TINY = [(name, source) for name, entry in MODELS.items() if name.endswith("tiny") for source in entry.tables]


def variables(name, source):
    options = dict(CATALOG[name, source].options)
    if name.startswith("inception") and source != "keras":
        options["aux"] = True
    return fake.random_variables(network.variable_shapes(models.create(name, 6, **options)))


def arrays(found):
    assert len({entry.name for entry in found}) == len(found)
    return {entry.name: entry.array for entry in found}


@pytest.mark.parametrize("source,expected", [("keras", fake.keras_arrays), ("torchvision", fake.torchvision_arrays)])
def test_names_are_those_of_the_other_library(source, expected):
    values = variables("resnet50_tiny", source)
    found = arrays(frameworks.named_arrays(values, catalog.conversion_table("resnet50_tiny", source)))
    wanted = {name: array for name, array in expected(values).items() if not name.endswith("num_batches_tracked")}
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("name,source", TINY)
def test_the_table_brings_every_leaf_back(name, source):
    values, table = variables(name, source), catalog.conversion_table(name, source)
    back = convert(arrays(frameworks.named_arrays(values, table)), table)
    assert not back.conflicts and not back.extra
    leaves = tree.flatten(values)
    assert back.leaves.keys() == leaves.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(back.leaves[path], leaf)


def test_a_leaf_that_no_rule_leads_to_is_refused():
    with pytest.raises(ValueError, match="no rule of the table produces params/adapter/kernel"):
        frameworks.named_arrays(
            {"params": {"adapter": {"kernel": np.zeros(3)}}}, catalog.conversion_table("resnet18", "torchvision")
        )
    assert frameworks.named_arrays({}, Table([])) == []


@pytest.mark.parametrize("name", [name for name, source in TINY if source == "keras"])
def test_a_file_of_keras_is_read_again(name, tmp_path):
    values, table, file = (
        variables(name, "keras"),
        catalog.conversion_table(name, "keras"),
        tmp_path / "keras.weights.h5",
    )
    frameworks.save_keras(file, values, table)
    again, spec, _ = pretrained.read_foreign(name, "keras", file)
    jax.tree.map(np.testing.assert_array_equal, dict(again), values)
    assert spec.num_classes == 6
    with h5py.File(file) as content:
        head = "dense_2" if name.startswith("vgg") else "dense"  # behind fc1 and fc2
        assert content[f"layers/{head}"].attrs["name"] == "predictions"
        assert "conv2d_1" in content["layers"] and "conv2d_0" not in content["layers"]


def test_layers_that_keras_does_not_have_are_refused(tmp_path):
    values = variables("resnet50_tiny", "keras")
    values["params"]["adapter_stage1"] = {"kernel": np.zeros(3)}
    with pytest.raises(ValueError, match="Keras has no layers adapter_stage1"):
        frameworks.save_keras(tmp_path / "keras.weights.h5", values, catalog.conversion_table("resnet50_tiny", "keras"))
    assert not list(tmp_path.iterdir())
