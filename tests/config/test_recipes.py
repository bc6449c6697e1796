"""Every recipe builds, is valid and stays within tl_jax/config/schema.py; what is not known there is refused."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import site_tables
from absl import flags as absl_flags

from configs import ct_classification, masked_words, ner_bert
from tl_jax import cli
from tl_jax.config import recipe as recipe_module
from tl_jax.config import schema, validate
from tl_jax.train.task import TASKS
from tl_jax.train.workdir import write_json
from tl_jax.transfer import methods, phases
from tl_jax.transfer.regularizers import REGULARIZERS
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tl_jax" / "config"
RECIPES = sorted((ROOT / "configs").glob("[a-z]*.py"))


def load(path, variant=""):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_are_valid_and_have_a_smoke_variant(path):
    whole, smoke = load(path), load(path, "smoke")
    validate.validate(whole)
    validate.validate(smoke)
    assert load(path).to_dict() == whole.to_dict()  # building one leaves the next as it was
    assert whole.name == path.stem and smoke.to_dict() != whole.to_dict()
    with pytest.raises(UserError, match="has no variant 'smoek'; did you mean 'smoke'"):
        load(path, "smoek")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_headers_say_how_to_run(path):
    assert f"python run.py --config=configs/{path.name}" in path.read_text() or path.stem == "digits_resnet"


VARIANTS = [(p, v) for p in RECIPES for v in sorted(set(re.findall(rf"{p.name}:(\w+)", p.read_text())))]


@pytest.mark.parametrize("path,variant", VARIANTS, ids=lambda value: getattr(value, "stem", value))
def test_variants_that_headers_name_are_valid(path, variant):
    assert VARIANTS and validate.validate(load(path, variant)).task in TASKS


def accepted(path, names):
    """Return those of some names of mechanisms that a recipe has as a variant and its task can have."""
    found = []
    for name in names:
        try:
            validate.validate(load(path, name))
        except UserError:
            continue
        found.append(name)
    return found


def recipe_table():
    """Return the rows of the table of recipes in the docs: files, and what is said of them."""
    page = ROOT / "docs" / "pages" / "recipes.md"
    rows = re.findall(r"^\| (`configs/.*?) \| (.*) \|$", page.read_text(), re.M)
    return [
        ([ROOT / "configs" / Path(file).name for file in re.findall(r"`(.+?)`", files)], said) for files, said in rows
    ]


def test_the_docs_name_every_recipe():
    assert {path for paths, _ in recipe_table() for path in paths} == {*RECIPES, ROOT / "configs" / "stored.py"}


NAMED = [(path, said) for paths, said in recipe_table() for path in paths if path in RECIPES]


@pytest.mark.parametrize("path,said", NAMED, ids=lambda value: getattr(value, "stem", ""))
def test_a_recipe_has_the_variants_that_the_docs_name(path, said):
    variants = re.findall(r"`(\w+)`", said.partition("variant")[2])
    for name in variants:
        validate.validate(load(path, name))
    assert "smoke" in variants or path.stem in ("digits_resnet", "cifar_small", "source_small")
    known, fits = accepted(path, methods.METHODS), methods.names_for_task(load(path).task)
    if "any method" in said:
        assert set(fits) <= set(known)
    elif "most methods" in said:
        assert 2 * len(known) > len(fits)
    else:
        assert set(known) <= set(variants), "methods that the docs do not name"


def test_a_mechanism_that_is_added_is_a_variant_of_the_recipes_that_the_howto_lists():
    with methods.METHODS.temporary():
        methods.METHODS.add("added", methods.METHODS["ema"], __name__)
        page = site_tables.expand((ROOT / "docs" / "pages" / "howto" / "mechanism.md").read_text())
        listed = re.findall(r"^\| `(\w+)` \| .*`added`.* \|$", page, re.M)
        assert len(listed) > 1 and listed == [path.stem for path in RECIPES if accepted(path, ["added"])]


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
        ("optim.lr", -1.0, "config.optim.lr=-1.0 must be at least 0"),
        ("optim.lr", float("nan"), "is not a finite number"),
        ("data.validation", 1.5, "must be at most 0.9"),
        ("batch_size", 0, "config.batch_size=0 must be at least 1"),
        (
            "phases",
            ({"name": "a", "epochs": 1.0, "lrscale": 1.0},),
            r"config.phases\[0\].lrscale; did you mean 'lr_scale'",
        ),
        ("phases", ({"name": "a"},), "name or epochs is missing"),
        ("phases", ({"name": "a", "epochs": -5.0},), r"config.phases\[0\].epochs=-5.0 must be at least"),
        ("phases", ({"name": "a", "epochs": 1.0, "recipe": "haed"},), "did you mean 'head'"),
        ("phases", ({"name": "a", "epochs": 1.0, "recipe": "head", "rules": ((".*", "t"),)},), "remove one"),
        ("freeze.rules", (("(", "x"),), "not a regular expression"),
        ("optim.lr", float("inf"), "is not a finite number"),
        ("seeds", (0, 0), "write different integers"),
        ("seeds", ("x",), "write different integers"),
        ("arms", ("a",), "write pairs"),
        ("arms", (("from scratch", ()),), "arm 'from scratch': the name is no word"),
        ("arms", (("a", ()), ("a", ())), "same name twice"),
        ("arms", (("a", (("optim.name", "adm"),)),), "arm 'a': config.optim.name='adm' is unknown"),
        ("arms", (("a", (("optim.lr", "abc"),)),), "config.optim.lr='abc': wrong type"),
        ("arms", (("a", (("optim.lrr", 1.0),)),), "unknown field config.optim.lrr; did you mean 'optim.lr'"),
    ],
)
def test_wrong_values_are_refused_by_name(field, value, message):
    config = recipe_module.override(recipe_module.get_config(), ((field, value),))
    with pytest.raises(UserError, match=message):
        validate.validate(config)


@pytest.mark.parametrize(
    "changes,message",
    [
        ((("epochs", 3.0), ("phases", ({"name": "a", "epochs": 1.0},))), "config.epochs has no effect"),
        (
            (("freeze.recipe", "head"), ("phases", ({"name": "a", "epochs": 1.0, "recipe": "all"},))),
            "freeze.recipe has no effect",
        ),
        ((("init.source", "random"), ("init.path", "x.h5")), "init.path has no effect"),
        ((("init.source", "random"), ("init.head", "keep")), "init.head=keep needs pretrained weights"),
        ((("init.layout", "torchvision"),), "init.layout has an effect with"),
        ((("eval_checkpoint", "best"), ("data.validation", 0.0)), "eval_checkpoint=best needs a validation split"),
        ((("data.train_examples", 5), ("data.per_class", 5)), "both set"),
        ((("seed", 7), ("seeds", (0, 1))), "seed has no effect with config.seeds"),
        ((("adapt.kind", "lora"), ("freeze.recipe", "head")), "the adapters are frozen"),
        ((("freeze.recipe", "adapters"),), "freeze.recipe=adapters needs config.adapt.kind"),
        ((("adapt.rank", 4),), "have an effect with config.adapt.kind only"),
        ((("adapt.kind", "lora"), ("freeze.recipe", "adapters"), ("adapt.targets", "(")), "not a regular expression"),
        ((("wise_ft", True),), "wise_ft needs a useful head at the start"),
        ((("patience", 3), ("data.validation", 0.0)), "patience needs a validation split"),
        ((("regularize.mixup", 0.2), ("regularize.cutmix", 1.0)), "both set"),
        ((("regularize.mixup", 0.2), ("regularize.co_tuning", 1.0)), "needs one label per image"),
        ((("regularize.endpoints", ("stage1",)),), "endpoints has an effect with"),
        ((("pretext.weight", 0.5),), "pretext fields need config.pretext.name"),
        ((("pretext.name", "simclr"),), "pretext.name has no effect"),
        ((("phases", ({"name": "a", "epochs": 1.0, "objective": "pretext"},)),), "pretext fields need"),
        ((("phases", ({"name": "a", "epochs": 1.0},) * 2),), "duplicate or empty names"),
        ((("phases", ({"name": "a", "epochs": 1.0, "stages": 2},)),), "stages has an effect with"),
        ((("freeze.stages", 2),), "freeze.stages has an effect with"),
        ((("freeze.recipe", "last_n_stages"), ("freeze.stages", 9)), "does not have 9 stages"),
        ((("optim.lr_multipliers", ("train", 0.1)),), "is not a pair"),
        ((("optim.lr_multipliers", (("train", -1.0),)),), "is not a pair"),
        ((("optim.lr_multipliers", (("trunk", 0.1),)),), "group 'trunk' is in no freeze rule"),
        ((("test_views", 3),), "must be 1, 2 or 10"),
        ((("epochs", 0.0), ("patience", 2)), "no effect with config.epochs=0"),
        ((("epochs", 0.0), ("regularize.label_smoothing", 0.1)), "label_smoothing has no effect with config.epochs=0"),
        ((("freeze.recipe", "head"), ("regularize.bss", 1e-3)), "bss has no effect if only the head is trained"),
        ((("freeze.recipe", "head"), ("optim.layer_decay", 0.5)), "layer_decay has no effect if only the head"),
        (
            (("adapt.kind", "lora"), ("freeze.recipe", "adapters"), ("regularize.l2_sp", 0.1)),
            "l2_sp has no effect if only adapters and the head are trained",
        ),
        (
            (("optim.momentum", 0.5),),
            "optim.momentum has an effect with config.optim.name=sgd only; set it back to 0.9",
        ),
        (
            (("optim.name", "sgd"), ("optim.epsilon", 0.1)),
            "optim.epsilon has an effect with .*adam only; set it back to 1e-08",
        ),
        ((("cache.features", "off"), ("cache.gigabytes", 1.0)), "cache.gigabytes has no effect with config.cache"),
        ((("cache.views", 4),), "cache.views has no effect without augmentation"),
        ((("cache.views", 4), ("augment.flip", True), ("regularize.mixup", 0.2)), "with config.regularize.mixup"),
        (
            (("pretext.name", "rotation"), ("pretext.weight", 1.0), ("pretext.width", 8)),
            "has an effect with .*simclr or",
        ),
        (
            (("data.name", "npz"), ("data.windows", ("bone",))),
            "data.windows has an effect with",
        ),
        (
            (("phases", ({"name": "a", "epochs": 1.0, "batch_stats": "train"},)), ("freeze.batch_stats", "frozen")),
            "freeze.batch_stats has no effect: every phase sets its own",
        ),
    ],
)
def test_fields_that_would_be_ignored_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        validate.validate(recipe_module.override(recipe_module.get_config(), changes))


def parsed(monkeypatch, *flags):
    """Return the configuration that a command line gives."""
    values = absl_flags.FlagValues()
    monkeypatch.setattr(sys, "argv", ["run.py", *flags])
    cli.define_flags(values)
    cli.parse_flags(sys.argv, values)
    return values["config"].value


@pytest.mark.parametrize(
    "recipe,changes",
    [
        (ct_classification, (("data.name", "digits"),)),  # the recipe has data.fit=pad, and digits are square
        (ner_bert, (("cache.features", "off"),)),  # nothing of tagged words is cached anyway
        (masked_words, (("cache.features", "off"),)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_field_that_is_met_anyway_is_not_refused(recipe, changes):
    values = validate.validate(recipe_module.override(recipe.get_config(), changes)).flat()
    assert all(values[field] == value for field, value in changes)


def test_the_recipe_decides_about_the_task(monkeypatch):
    with pytest.raises(UserError, match="config.task is set by the recipe; .*--config=agnews_bert, .*voc"):
        parsed(monkeypatch, "--config=digits_resnet", "--config.task=detection")


def test_a_field_of_one_phase_is_set_from_the_command_line(monkeypatch):
    before = [dict(phase) for phase in load(ROOT / "configs" / "cifar_inception.py").phases]
    flags = ("--config.phases[1].batch_stats=frozen", "--config.phases[0].epochs=3", "--config.optim.lr=0.5")
    config = parsed(monkeypatch, "--config=cifar_inception", *flags)
    assert [dict(phase) for phase in config.phases] == [
        {**before[0], "epochs": 3},
        {**before[1], "batch_stats": "frozen"},
    ]
    assert config.optim.lr == 0.5
    validate.validate(config)
    sizes, parts = {"train": 1000, "unlabelled": 1000}, TASKS[config.task].stage_names(schema.freeze(config))
    assert [phase.batch_stats for phase in phases.resolve(schema.freeze(config), sizes, parts)] == ["auto", "frozen"]


@pytest.mark.parametrize(
    "flags,message",
    [
        (("--config=cifar_inception", "--config.phases[2].epochs=3"), r"phases\[2\]: cifar_inception has 2 phases, ph"),
        (("--config=digits_resnet", "--config.phases[0].epochs=3"), r"phases\[0\]: digits_resnet has no phases"),
        (("--config=cifar_inception", "--config.phases[1].batch_stat=frozen"), "did you mean 'batch_stats'"),
        (("--config=cifar_inception", "--config.phases[1].epochs=many"), r"phases\[1\].epochs='many' is no number"),
        (("--config=cifar_inception", "--config.phases[1].epochs"), "has no value; write --config"),
    ],
)
def test_a_field_of_a_phase_that_is_none_is_refused(monkeypatch, flags, message):
    with pytest.raises(UserError, match=message):
        parsed(monkeypatch, *flags)


def test_arms_may_differ_in_a_field_of_one_phase():
    config = load(ROOT / "configs" / "cifar_inception.py")
    config.arms = (("plain", ()), ("still", (("phases[1].batch_stats", "frozen"),)))
    validate.validate(config)
    found = [member.phases[1].get("batch_stats", "auto") for _, _, member in recipe_module.comparison_runs(config)]
    assert found == ["auto", "frozen"]


def test_a_misspelt_field_in_a_recipe_is_refused():
    with pytest.raises(AttributeError, match="unknown field 'lrr'; did you mean 'lr'"):
        recipe_module.get_config().optim.lrr = 1.0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_stored_configuration_comes_back(tmp_path, path):
    for variant in ("", "smoke"):
        config = load(path, variant)
        write_json(tmp_path / "config.json", config.to_dict())
        stored = load(CONFIG / "stored.py", str(tmp_path))
        validate.validate(stored)
        assert stored.to_dict() == config.to_dict()


def test_members_are_all_arms_with_all_seeds():
    config = recipe_module.override(
        recipe_module.get_config(), (("seeds", (3, 4)), ("arms", (("a", ()), ("b", (("optim.lr", 0.5),)))))
    )
    members = recipe_module.comparison_runs(config)
    assert [(arm, seed) for arm, seed, _ in members] == [("a", 3), ("b", 3), ("a", 4), ("b", 4)]
    assert [member.optim.lr for _, _, member in members] == [1e-3, 0.5, 1e-3, 0.5]
    assert all(member.seed == seed and not member.seeds and not member.arms for _, seed, member in members)


def test_the_kind_of_task_decides_about_the_fields():
    config = recipe_module.get_config("text")
    assert "augment" not in config and config.data.text == ("text",)
    with pytest.raises(AttributeError, match="start from recipe.get_config.'image'"):
        config.task = "image"
    other = recipe_module.with_task(recipe_module.override(config, (("optim.lr", 0.5),)), "image")
    assert (other.task, other.optim.lr, other.augment.flip) == ("image", 0.5, False) and "text" not in other.data


def test_a_frozen_configuration_can_be_edited_again():
    config = recipe_module.load("cifar_vgg").get_config("hidden")
    frozen = validate.validate(config)
    assert hash(frozen) == hash(schema.freeze(config)) and frozen.phases[0].rules == config.phases[0]["rules"]
    assert frozen.model.options["fc"] is True and frozen.phases[0].layer_decay is None
    assert (
        schema.freeze(schema.edit(frozen))
        == frozen
        != validate.validate(recipe_module.override(frozen, (("seed", 3),)))
    )
    with pytest.raises(AttributeError):  # of dataclasses that are frozen
        frozen.optim.lr = 3.0  # pyright: ignore


def test_every_field_is_read_somewhere():
    """A field that no code reads would be a promise without effect."""
    code = "\n".join(p.read_text() for p in (ROOT / "tl_jax").rglob("*.py"))
    code = re.sub(r'"[^"\n]*"', "", code)
    attributes = {path.rpartition(".")[2] for path in schema.all_fields()} - set(REGULARIZERS)  # which are read as one
    unread = {name for name in attributes if not re.search(rf"\.{name}\b", code)}
    assert not unread
