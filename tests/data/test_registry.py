"""A data set of the user's own is one file, whose import is all that a run needs; it says which fields it reads."""

import contextlib
import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import detection_voc, digits_resnet, faces_verification, sst2_bert
from tests.text import network
from tl_jax import training
from tl_jax.config import recipe, schema, validate
from tl_jax.data import DATASETS, DatasetOptions, registry
from tl_jax.data.dataset import Dataset, Split
from tl_jax.pretrained import huggingface
from tl_jax.train.task import TASKS
from tl_jax.utils.errors import UserError

OWN_SETS = '''
"""Data sets that are no part of the package."""

from pathlib import Path

import numpy as np

from tl_jax.data import register_dataset, synthetic
from tl_jax.data.dataset import Dataset, Split
from tl_jax.data.faces import draw_faces


@register_dataset("rings")
def rings(options):
    rng = np.random.default_rng(0)

    def draw(count):
        labels = np.arange(count, dtype=np.int32) % 2
        images = rng.integers(0, 99, (count, options.size, options.size, 3)) + 150 * labels[:, None, None, None]
        return Split(images.astype(np.uint8), labels)

    return Dataset(options.name, draw(40), draw(20), ("disc", "ring"))


@register_dataset("crates", inputs="boxes")
def crates(options):
    return synthetic.draw_scenes(12, 6, options.size)._replace(name="crates")


@register_dataset("masks", "hats", inputs="people")
def masks(options):
    return draw_faces()._replace(name=options.name)


@register_dataset("moods", inputs="texts", layout="words.txt")
def moods(options):
    good, bad = (Path(options.folder) / "words.txt").read_text().split()
    texts = np.array([f"a {word} film {i}" for i in range(20) for word in (bad, good)], object)
    labels = np.arange(40, dtype=np.int32) % 2
    return Dataset("moods", Split(texts[:30], labels[:30]), Split(texts[30:], labels[30:]), ("bad", "good"))
'''


@pytest.fixture
def own_sets(tmp_path, monkeypatch):
    """Import the data sets above from a file that is no part of the package; afterwards nobody knows them."""
    (tmp_path / "own_sets.py").write_text(OWN_SETS)
    (tmp_path / "words.txt").write_text("great awful")
    monkeypatch.syspath_prepend(tmp_path)
    with contextlib.ExitStack() as stack:
        for entries in DATASETS.values():
            stack.enter_context(entries.temporary())
        yield importlib.import_module("own_sets")
        sys.modules.pop("own_sets")


def configure(made, name: str, *changes):
    common = (
        ("data.generate", False),
        ("data.name", name),
        ("arms", ()),
        ("seeds", ()),
        ("epochs", 1.0),
        ("data.train_examples", 0),
    )
    return recipe.override(made.get_config("smoke"), (*common, *changes))


def text_config(folder: Path):
    huggingface.save(folder / "net", network(folder / "net"))
    fields = (("data.columns", ()), ("data.text", ("text",)), ("init.path", str(folder / "net")))
    return configure(sst2_bert, "moods", ("data.dir", str(folder)), *fields, ("init.source", "huggingface"))


@pytest.mark.fast
def test_every_kind_of_task_loads_its_own_sets(own_sets, tmp_path):
    size = ("input.size", 32)
    for config, classes in (
        (configure(digits_resnet, "rings", size), ("disc", "ring")),
        (configure(detection_voc, "crates", size), ("disc", "square", "triangle")),
        (configure(faces_verification, "hats", size), None),
        (text_config(tmp_path), ("bad", "good")),
    ):
        validate.validate(config)
        source = TASKS[config.task].load_data(schema.freeze(config))
        assert source.name == config.data.name and source.classes[:3] == (classes or source.classes[:3])


def test_images_of_ones_own_are_trained_on(own_sets, tmp_path):
    fields = (("input.size", 8), ("batch_size", 10), ("eval_batch_size", 20), ("augment.crop_pad", 0))
    config = configure(digits_resnet, "rings", *fields, ("data.per_class", 0))
    assert config.model.name == "resnet8"
    summary = training.train(config, tmp_path / "run")
    assert summary["examples_evaluated"] == 20 and summary["metrics"]["accuracy"] > 0.5
    assert json.loads((tmp_path / "run" / "facts.json").read_text())["data"] == "rings"


def test_texts_of_ones_own_are_trained_on(own_sets, tmp_path):
    summary = training.train(text_config(tmp_path), tmp_path / "run")
    assert summary["examples_evaluated"] == 10 and np.isfinite(summary["metrics"]["loss"])


@pytest.mark.fast
def test_one_copy_is_kept_until_a_file_or_the_function_changes(own_sets, tmp_path):
    options = DatasetOptions("moods", str(tmp_path))
    first = registry.load_dataset("texts", options)
    assert registry.load_dataset("texts", options) is first
    assert registry.load_dataset("texts", dataclasses.replace(options, size=8)) is not first
    (tmp_path / "words.txt").write_text("fine dull")
    changed = registry.load_dataset("texts", options)
    assert changed.train.inputs[1] == "a fine film 0" != first.train.inputs[1]
    importlib.reload(own_sets)  # as a notebook runs a cell again
    assert registry.load_dataset("texts", options) is not changed


@pytest.mark.fast
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((("data.dir", "x"),), "config.data.dir='x' has no effect with config.data.name=rings, which reads no folder"),
        ((("data.range", (0, 9)),), "data.range has no effect with config.data.name=rings"),
        ((("data.max_pixels", 9),), "data.max_pixels has no effect with config.data.name=rings"),
        ((("data.outside", True),), "data.outside has an effect with config.data.name=flowers, folder, index only"),
        ((("data.label", "x"),), "data.label is only for texts and config.data.name=index"),
    ],
)
def test_fields_that_a_set_does_not_read_are_refused(own_sets, fields, message):
    with pytest.raises(UserError, match=message):
        validate.validate(configure(digits_resnet, "rings", *fields))


@pytest.mark.fast
def test_a_set_that_reads_a_field_is_named_beside_the_others(own_sets):
    @registry.register_dataset("scans", fields=("dir", "group", "windows"))
    def scans(options: DatasetOptions) -> Dataset:
        return Dataset(
            "scans", *2 * (Split(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2, dtype=np.int32)),), ("a", "b")
        )

    assert registry.names("images", "group") == ("flowers", "folder", "index", "scans")
    validate.validate(configure(digits_resnet, "scans", ("data.group", "patient"), ("data.dir", "x")))
    with pytest.raises(UserError, match="data.group has an effect with config.data.name=flowers, folder, index, scans"):
        validate.validate(configure(digits_resnet, "rings", ("data.group", "patient")))


@pytest.mark.fast
def test_what_cannot_be_registered_or_found(own_sets):
    with pytest.raises(UserError, match=r"data set 'folder' of .* is already registered by tl_jax.data.image_folder"):
        registry.register_dataset("folder")(own_sets.rings)
    with pytest.raises(UserError, match="own_sets.rings: no field 'windws'; did you mean 'windows'"):
        registry.register_dataset("other", fields=("windws",))(own_sets.rings)
    with pytest.raises(UserError, match=r"data.name='mask' has no people; did you mean 'masks'\?; a custom one needs"):
        registry.read_dataset("people", DatasetOptions("mask"))
    with pytest.raises(UserError, match=r"no data set 'ring' under .*; did you mean 'rings'.*--import=MODULE"):
        registry.read_dataset("images", DatasetOptions("ring", str(Path(own_sets.__file__).parent)))
    with pytest.raises(UserError, match="data.name=moods needs files; set config.data.dir to a path with words.txt"):
        registry.read_dataset("texts", DatasetOptions("moods"))
