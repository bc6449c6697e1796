"""Every recipe builds, is valid and stays within the fields of configs/base.py, which refuses what it does not know."""

import importlib.util
import re
from pathlib import Path

import pytest

from configs import base
from tl_jax.errors import UserError

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parent.parent
RECIPES = sorted(p for p in (ROOT / "configs").glob("[a-z]*.py") if p.stem != "base")


def load(path, variant=""):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_are_valid_and_have_a_smoke_variant(path):
    whole, smoke = load(path), load(path, "smoke")
    base.validate(whole)
    base.validate(smoke)
    assert load(path).to_dict() == whole.to_dict()  # building one leaves the next as it was
    assert whole.name == path.stem and smoke.to_dict() != whole.to_dict()
    with pytest.raises(UserError, match="has no variant 'smoek'; did you mean 'smoke'"):
        load(path, "smoek")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_headers_say_how_to_run(path):
    assert f"python run.py --config=configs/{path.name}" in path.read_text() or path.stem == "digits_resnet"


def test_the_article_is_as_written():
    config = load(ROOT / "configs" / "cifar_resnet.py", "article")
    assert (config.model.name, config.init.source, config.input.size, config.input.scaling) == (
        "resnet50",
        "keras",
        32,
        "unit",
    )
    assert (config.optim.name, config.optim.lr, config.batch_size, config.epochs) == ("adam", 1e-3, 64, 10.0)
    assert (config.freeze.recipe, config.phases, config.data.validation) == ("head", (), 0.0)


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("optim.name", "adm", "did you mean 'adam'"),
        ("model.name", "resnet5", "did you mean 'resnet50'"),
        ("input.scaling", "caffee", "did you mean 'caffe'"),
        ("optim.lr", -1.0, "config.optim.lr=-1.0 is below 0"),
        ("optim.lr", float("nan"), "is not a number"),
        ("data.validation", 1.5, "is above 0.9"),
        ("batch_size", 0, "config.batch_size=0 is below 1"),
        (
            "phases",
            ({"name": "a", "epochs": 1.0, "lrscale": 1.0},),
            r"config.phases\[0\].lrscale; did you mean 'lr_scale'",
        ),
        ("phases", ({"name": "a"},), "needs a name and a number of epochs"),
        ("arms", (("a", (("optim.lrr", 1.0),)),), "unknown field config.optim.lrr; did you mean 'optim.lr'"),
    ],
)
def test_wrong_values_are_refused_by_name(field, value, message):
    config = base.override(base.get_config(), ((field, value),))
    with pytest.raises(UserError, match=message):
        base.validate(config)


@pytest.mark.parametrize(
    "changes,message",
    [
        ((("epochs", 3.0), ("phases", ({"name": "a", "epochs": 1.0},))), "config.epochs=3.0 has no effect"),
        ((("freeze.recipe", "head"), ("phases", ({"name": "a", "epochs": 1.0, "recipe": "all"},))), "have no effect"),
        ((("init.source", "random"), ("init.path", "x.h5")), "x.h5 is not read"),
    ],
)
def test_fields_that_would_be_ignored_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        base.validate(base.override(base.get_config(), changes))


def test_a_misspelt_field_in_a_recipe_is_refused():
    with pytest.raises(AttributeError, match='Did you mean "lr"'):
        base.get_config().optim.lrr = 1.0


def test_every_field_is_read_somewhere():
    """A field that no code reads would be a promise without effect."""
    code = "\n".join(p.read_text() for p in (ROOT / "tl_jax").rglob("*.py"))
    code += (ROOT / "configs" / "base.py").read_text().split("def get_config")[1]
    whole = {f for f in base.FIELDS if re.search(rf"config\.{f.split('.')[0]}\.to_dict\(\)", code)}
    unread = {f for f in base.FIELDS if f not in whole and not re.search(rf"config\.{re.escape(f)}\b", code)}
    assert not unread
