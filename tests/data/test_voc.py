"""Folders of Pascal VOC written here, damaged ones, and real cells."""

import numpy as np
import pytest
from PIL import Image

from tests.data.boxed import CAT, OBJECT, XML, some, write_voc
from tl_jax.data import coco, voc
from tl_jax.errors import UserError


@pytest.mark.fast
def test_voc_is_read_and_scaled(tmp_path):
    source = voc.read(some(tmp_path / "set"), 128)
    assert source.classes == ("cat", "dog") and source.tested == "test" and source.validation is None
    assert source.train.images.shape == (2, 64, 128, 3) and source.train.images.dtype == np.uint8
    expected = [[[20, 20, 60, 40, 0, 0], [0, 0, 128, 64, 1, 1]], [[0, 0, 0, 0, -1, 0]] * 2]
    np.testing.assert_array_equal(source.train.labels, np.array(expected, np.float32))
    np.testing.assert_array_equal(source.test.labels[0], [[20, 20, 60, 40, 0, 0], [0, 0, 0, 0, -1, 0]])


@pytest.mark.fast
@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        ({"train": "ab", "val": "c"}, (2, 1, None)),
        ({"train": "a", "val": "b", "test": "c"}, (1, 1, 1)),
        ({"trainval": "ab", "test": "c", "val": "b"}, (2, 1, None)),
    ],
)
def test_parts_are_those_of_the_lists(tmp_path, parts, sizes):
    source = voc.read(some(tmp_path / "set", **parts), 64)
    validation = None if source.validation is None else len(source.validation.labels)
    assert (len(source.train.labels), len(source.test.labels), validation) == sizes


@pytest.mark.fast
def test_without_lists_a_fifth_is_held_out(tmp_path):
    folder = write_voc(tmp_path / "set", {f"p{i}": [("cat", 0, i, 0, 30, 20)] for i in range(10)})
    (folder / "ImageSets" / "Main").rmdir()
    one, two = voc.read(folder, 64), voc.read(folder, 64)
    assert len(one.train.labels) == 8 and len(one.test.labels) == 2 and one.tested == "a fifth held out"
    np.testing.assert_array_equal(one.test.labels, two.test.labels)
    lefts = np.concatenate([one.train.labels[:, 0, 0], one.test.labels[:, 0, 0]])
    assert sorted(lefts) == list(range(10))


@pytest.mark.fast
def test_pictures_of_other_shapes_lie_at_the_top_left_of_grey(tmp_path):
    folder = write_voc(tmp_path / "set", {"a": [CAT]}, {"train": "a", "test": "t"})
    Image.new("RGB", (20, 40), "blue").save(folder / "JPEGImages" / "t.png")
    tall = XML.format(w=20, h=40, objects=OBJECT.format("cat", 0, 0, 0, 20, 40))
    (folder / "Annotations" / "t.xml").write_text(tall)
    source = voc.read(folder, 64)
    assert source.test.images.shape == (1, 64, 64, 3)
    assert (source.test.images[0, :, :32] == [0, 0, 255]).all() and (source.test.images[0, :, 32:] == 127).all()
    np.testing.assert_array_equal(source.test.labels[0, 0], [0, 0, 32, 64, 0, 0])
    np.testing.assert_array_equal(source.train.labels[0, 0], [10, 10, 30, 20, 0, 0])


@pytest.mark.fast
def test_boxes_without_area_are_said_and_left_out(tmp_path, capsys):
    objects = [CAT, ("cat", 0, 5, 5, 5, 9), ("cat", 0, 64, 3, 65, 9)]
    source = voc.read(write_voc(tmp_path / "set", {"a": objects, "b": [CAT]}, {"train": "a", "test": "b"}), 64)
    assert (source.train.labels[0, :, 4] >= 0).sum() == 1
    assert "set: 2 boxes without area left out, in a.xml" in capsys.readouterr().err


def damage(name, text):
    return lambda folder: (folder / name).write_text(text)


def remove(name):
    return lambda folder: (folder / name).unlink()


def objects(*each):
    return damage("Annotations/a.xml", XML.format(w=64, h=32, objects="".join(OBJECT.format(*one) for one in each)))


def emptied(folder):
    for path in (folder / "JPEGImages").iterdir():
        path.unlink()


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'


@pytest.mark.fast
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (objects(("cat", 0, 10, 10, 80, 20)), r"a.xml: the box \(10, 10, 80, 20\) of 'cat' .* 64x32 pixels"),
        (objects(("cat", 0, 30, 10, 10, 20)), r"the box \(30, 10, 10, 20\) of 'cat'"),
        (objects(("cat", 0, -5, 10, 10, 20)), r"the box \(-5, 10, 10, 20\) of 'cat'"),
        (objects(("cat", 0, "nan", 10, 10, 20)), "the box .* of 'cat'"),
        (objects(("cat", 0, "x", 10, 10, 20)), "<bndbox/xmin> is 'x', not a number"),
        (objects(("", 0, 1, 10, 10, 20)), "an object without a name"),
        (
            damage("Annotations/c.xml", XML.format(w=64, h=32, objects=OBJECT.format("cow", *CAT[1:]))),
            "'cow' is none of",
        ),
        (
            damage("Annotations/b.xml", XML.format(w=32, h=64, objects="")),
            "says that b.png has 32x64 pixels, but it has 64x32",
        ),
        (damage("Annotations/a.xml", "<annotation><object>"), "cannot read .*a.xml .*ParseError"),
        (damage("Annotations/a.xml", BOMB), "cannot read .*a.xml .*EntitiesForbidden"),
        (
            damage("Annotations/a.xml", XML.format(w=64, h=32, objects="")),
            "no picture of the train part of set has an obj",
        ),
        (damage("JPEGImages/a.png", "not a picture"), "cannot decode .*a.png"),
        (damage("ImageSets/Main/test.txt", "c\nzz\n"), "test.txt names zz, but .* has no picture of that name"),
        (damage("ImageSets/Main/test.txt", "c\na\n"), "test.txt names a, which .*train.txt has already"),
        (damage("ImageSets/Main/test.txt", "\n"), "the test part of set has no pictures"),
        (remove("ImageSets/Main/train.txt"), "has neither train.txt nor trainval.txt"),
        (remove("Annotations/a.xml"), "no annotation .*a.xml of a.png"),
        (remove("JPEGImages/a.png"), "train.txt names a, but .*JPEGImages has no picture"),
        (emptied, "JPEGImages has no pictures"),
    ],
)
def test_damaged_voc_is_one_line(tmp_path, harm, message):
    folder = some(tmp_path / "set")
    harm(folder)
    with pytest.raises(UserError, match=message) as raised:
        voc.read(folder, 64)
    assert "\n" not in str(raised.value)


@pytest.mark.fast
def test_folders_that_are_none(tmp_path):
    for reader in (voc, coco):
        with pytest.raises(UserError, match="check --config.data.dir"):
            reader.read(tmp_path / "nothing", 64)
    with pytest.raises(UserError, match="'cat' is none of the classes; choose one of dog, horse"):
        voc.read(some(tmp_path / "set"), 64, classes=("dog", "horse"))
    assert voc.read(tmp_path / "set", 64, classes=("dog", "cat")).train.labels[0, :, 4].tolist() == [1, 0]


@pytest.mark.slow
@pytest.mark.data
def test_real_cells_are_all_read(data_dir, capsys):
    source = voc.read(data_dir / "bccd", 64)
    assert "2 boxes without area left out, in BloodImage_00338.xml, BloodImage_00343.xml" in capsys.readouterr().err
    parts = source.train, source.validation, source.test
    assert [len(part.labels) for part in parts] == [205, 87, 72] and source.classes == ("Platelets", "RBC", "WBC")
    classes = np.concatenate([part.labels[..., 4].ravel() for part in parts])
    assert [(classes == k).sum() for k in range(3)] == [361, 4153, 372]  # as README.md of the data counts, less two
