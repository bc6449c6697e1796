"""Prepared TFDS sets from elsewhere: what is damaged, or claims what cannot be, is one line that names the file."""

import json
import sys

import numpy as np
import pytest

from tests.data.prepared import CLASSES, TEXT, image_feature, png, prepare
from tl_jax.data import faces, text_datasets, tfds
from tl_jax.data.text import Columns
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\nshowpage\n%%EOF\n"


def rows(*labels):
    return [{"image": png(i), "label": label} for i, label in enumerate(labels)]


def load(folder):
    return tfds.load("odd", str(folder), 8)


def change(path, function):
    content = json.loads(path.read_text())
    function(content)
    path.write_text(json.dumps(content))


def test_a_set_made_by_hand_is_read(tmp_path):
    prepare(tmp_path, {"train": rows(0, 1, 1), "test": rows(1, 0)})
    source = load(tmp_path)
    assert source.train.labels.tolist() == [0, 1, 1] and source.classes == ("dark", "light")
    assert source.train.inputs.shape == (3, 8, 8, 3)


@pytest.mark.parametrize("label", [10**6, 2**40 + 1, -(2**40) + 1, 2, -2, 2**63 - 1])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_label_out_of_range_is_named(tmp_path, part, label):
    parts = {"train": rows(0, 1, 1), "test": rows(1, 0, 1)}
    parts[part] = rows(0, 1, label)
    prepare(tmp_path, parts)
    with pytest.raises(UserError, match=rf"odd:1.0.0, {part}: example 2 has the label {label}, .*2 classes are 0 to 1"):
        load(tmp_path)


def test_a_training_label_that_is_hidden_is_named(tmp_path):
    prepare(tmp_path, {"train": rows(0, -1, 1), "test": rows(1, 0)})
    with pytest.raises(UserError, match="odd:1.0.0, train: example 1 has the label -1"):
        load(tmp_path)


def test_a_label_of_a_text_out_of_range_is_named(tmp_path):
    texts = [{"text": b"some words", "label": label} for label in (0, 1, 2**40 + 1)]
    prepare(tmp_path, {"train": texts}, {"text": TEXT, "label": CLASSES})
    with pytest.raises(UserError, match=f"example 2 has the label {2**40 + 1}"):
        text_datasets.load("odd", str(tmp_path), Columns())


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"image": EPS, "label": 0}, "not JPEG, PNG"),
        ({"image": b"\x89PNG garbage", "label": 0}, "not JPEG, PNG"),
        ({"image": png()[:60], "label": 0}, "cannot decode"),
        ({"image": b"", "label": 0}, "cannot decode"),
        ({"label": 0}, "'image' is not bytes"),
        ({"image": png()}, "'label' is not an integer"),
        ({"image": 5, "label": 0}, "'image' is not bytes"),
        ({"image": png(), "label": 1.5}, "'label' is not an integer"),
        ({"image": png(), "label": b"dark"}, "'label' is not an integer"),
        (b"\xff\xff no record", "cannot read .*DecodeError"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, monkeypatch, record, said):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was run"))
    prepare(tmp_path, {"train": [*rows(0, 1), record], "test": rows(1, 0)})
    with pytest.raises(UserError, match=said) as caught:
        load(tmp_path)
    assert "odd:1.0.0, train example 2" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [b"\xff\xfe", b"x" * 200, 5])
def test_a_damaged_name_of_a_person_is_named(tmp_path, label):
    features = {"image": image_feature(), "label": TEXT}
    prepare(tmp_path, {"train": [{"image": png(), "label": each} for each in (b"Ada", label)]}, features, "lfw")
    with pytest.raises(UserError, match=r"lfw:1.0.0, train example 1.*label"):
        faces.load_lfw(str(tmp_path), 8)


def test_images_are_of_the_size_that_the_set_says(tmp_path):
    features = {"image": image_feature(10**9, 10**9, 3), "label": CLASSES}
    prepare(tmp_path, {"train": rows(0, 1), "test": rows(1, 0)}, features)
    with pytest.raises(UserError, match="train example 0 has 8x8 pixels, but features.json has 1000000000x"):
        load(tmp_path)


def test_floats_are_four_channels(tmp_path):
    features = {"image": image_feature(-1, -1, 1, dtype="float32"), "label": CLASSES}
    prepare(tmp_path, {"train": rows(0, 1), "test": rows(1, 0)}, features)
    with pytest.raises(UserError, match="four channels"):
        load(tmp_path)


def many_shards(info):
    info["splits"][0]["shardLengths"] = ["1"] * 300_000


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (many_shards, "declares 300,001 files of records, but its folder has 5"),
        (lambda info: info["splits"][0].update(shardLengths=["9" * 18]), "has 2 of 9{18} train examples"),
        (lambda info: info["splits"][0].update(shardLengths=["9" * 5000]), "cannot read the data set"),
        (lambda info: info["splits"][0].update(shardLengths=[{}]), "cannot read the data set"),
        (lambda info: info["splits"][0].update(filepathTemplate="../../{SPLIT}"), "is outside its folder"),
        (lambda info: info["splits"][0].update(filepathTemplate="/etc/{SPLIT}"), "is outside its folder"),
        (lambda info: info["splits"][0].update(filepathTemplate="{DATASET}.x"), "no file"),
        (lambda info: info["splits"][0].update(name=["train"]), "cannot read the data set"),
        (lambda info: info.update(splits=5), "cannot read the data set"),
        (lambda info: info.update(splits=[]), "has no train split"),
        (lambda info: info.update(version="x"), "cannot read the data set"),
        (lambda info: info.update(fileFormat="tfrecord"), "prepare it again with file_format='array_record'"),
        (lambda info: info.update(fileFormat=7), "cannot read the data set"),
    ],
)
def test_what_a_set_says_of_itself_is_checked(tmp_path, function, said):
    folder = prepare(tmp_path, {"train": rows(0, 1), "test": rows(1, 0)})
    change(folder / "dataset_info.json", function)
    with pytest.raises(UserError, match=said):
        load(tmp_path)


@pytest.mark.parametrize("content", ["[" * 200_000, "", "[]", "\x00", '{"splits": [{"n": ' + "9" * 5000 + "}]}"])
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_a_description_that_is_none_is_one_line(tmp_path, file, content):
    folder = prepare(tmp_path, {"train": rows(0, 1), "test": rows(1, 0)})
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=f"{file} is damaged.*; prepare the data set again"):
        load(tmp_path)


def test_features_bring_no_code_along(tmp_path, monkeypatch):
    folder = prepare(tmp_path, {"train": rows(0, 1), "test": rows(1, 0)})
    (tmp_path / "hostile_feature.py").write_text("raise SystemExit('code of a data set was run')\n")
    monkeypatch.syspath_prepend(tmp_path)

    def other(content):
        content["featuresDict"]["features"]["image"]["pythonClassName"] = "hostile_feature.Image"

    change(folder / "features.json", other)
    with pytest.raises(UserError, match="features.json has a feature 'hostile_feature.Image' that is not in TFDS"):
        load(tmp_path)
    assert "hostile_feature" not in sys.modules


@pytest.fixture
def no_tensorflow(monkeypatch):
    """Whoever imports TensorFlow gets an ImportError, whether it is installed, or imported already, or not."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)


@pytest.mark.usefixtures("no_tensorflow")
@pytest.mark.parametrize("dtype", ["\ufeffuint8", "../../uint8", "", "V8", "uint8,uint8", "variant"])
def test_a_type_that_is_none_is_not_asked_for_in_tensorflow(tmp_path, dtype):
    features = {"image": image_feature(dtype=dtype), "label": CLASSES}
    prepare(tmp_path, {"train": rows(0, 1), "test": rows(1, 0)}, features)
    with pytest.raises(UserError, match="features.json has the unknown dtype"):
        load(tmp_path)


@pytest.mark.usefixtures("no_tensorflow")
@pytest.mark.parametrize("content", [[], {}, None, {"shape": {}}])
def test_a_type_that_is_absent_is_not_asked_for_in_tensorflow(tmp_path, content):
    image = {"image": content, "pythonClassName": image_feature()["pythonClassName"]}
    prepare(tmp_path, {"train": rows(0, 1), "test": rows(1, 0)}, {"image": image, "label": CLASSES})
    with pytest.raises(UserError, match="features.json has a feature Image without a dtype"):
        load(tmp_path)


@pytest.mark.parametrize("count", ["1" + "0" * 12, "1000001", "-1", "x", "9" * 5000])
def test_a_number_of_classes_is_one(tmp_path, count):
    folder = prepare(tmp_path, {"train": rows(0, 1), "test": rows(1, 0)})

    def claim(content):
        content["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = count

    change(folder / "features.json", claim)
    with pytest.raises(UserError, match="classes, not a number up to 1,000,000"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (b"dark\ndark\n", "labels.txt has 1 different names of 2 classes"),
        (b"dark\n", "labels.txt has 1 different names of 2 classes"),
        (b"a\nb\nc\n", "labels.txt has 3 different names of 2 classes"),
        (b"\xff\n\xfe\n", "labels.txt, line 1: not UTF-8"),
        (b"x" * 5000 + b"\ny\n", "labels.txt: 1 labels have more than 1,000 characters"),
    ],
)
def test_names_of_classes_are_names(tmp_path, names, said):
    folder = prepare(tmp_path, {"train": rows(0, 1), "test": rows(1, 0)})
    (folder / "label.labels.txt").write_bytes(names)
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def test_files_of_records_that_are_none_are_one_line(tmp_path):
    folder = prepare(tmp_path, {"train": rows(0, 1), "test": rows(1, 0)})
    file = folder / "odd-train.array_record-00000-of-00001"
    whole = file.read_bytes()
    for content in (b"", b"no records", whole[: len(whole) // 2], np.zeros(1 << 17, np.uint8).tobytes()):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"odd-train|0 of 2 train examples"):
            load(tmp_path)
