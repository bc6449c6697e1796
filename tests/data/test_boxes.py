"""Pictures with boxes: folders of VOC and COCO written here, damaged ones, drawn scenes, and real cells."""

import json

import numpy as np
import pytest
from PIL import Image

from tl_jax.data import coco, scenes, voc
from tl_jax.errors import UserError

XML = "<annotation><size><width>{w}</width><height>{h}</height><depth>3</depth></size>{objects}</annotation>"
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)
CAT, DOG = ("cat", 0, 10, 10, 30, 20), ("dog", 1, 0, 0, 64, 32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Decoded pictures of a test are its own."""
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))


def write_voc(folder, pictures, parts=None, size=(64, 32)):
    """Write pictures (width, height) with objects ``pictures`` {name: [(class, difficult, corners ...)]}."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for name, objects in pictures.items():
        Image.new("RGB", size, "red").save(folder / "JPEGImages" / f"{name}.png")
        text = XML.format(w=size[0], h=size[1], objects="".join(OBJECT.format(*each) for each in objects))
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    for part, names in (parts or {}).items():
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
    return folder


def some(folder, **parts):
    return write_voc(folder, {"a": [CAT, DOG], "b": [], "c": [CAT]}, parts or {"train": "ab", "test": "c"})


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


def content():
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": 64, "height": 32}, {"id": 9, "file_name": "b.png"}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 10, 20, 10]},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 64, 32.4], "iscrowd": 1},
        ],
    }


def write_coco(folder, change=lambda rows: None, roboflow=False):
    for part in ("train", "val"):
        place = folder / part
        place.mkdir(parents=True)
        for name in "ab":
            Image.new("RGB", (64, 32), "red").save(place / f"{name}.png")
        rows = content()
        change(rows) if part == "train" else None
        (folder / "annotations").mkdir(exist_ok=True)
        file = place / "_annotations.coco.json" if roboflow else folder / "annotations" / f"instances_{part}.json"
        file.write_text(json.dumps(rows))
    return folder


@pytest.mark.fast
@pytest.mark.parametrize("roboflow", [False, True])
def test_coco_gives_what_voc_gives(tmp_path, roboflow):
    theirs = voc.read(some(tmp_path / "voc"), 128)
    ours = coco.read(write_coco(tmp_path / "coco", roboflow=roboflow), 128)
    assert ours.classes == theirs.classes and ours.tested == "test"
    np.testing.assert_array_equal(ours.train.labels, theirs.train.labels)
    np.testing.assert_array_equal(ours.train.images, theirs.train.images)


def changed(table, row, **values):
    return lambda rows: rows[table][row].update(values)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("annotations", 0, image_id=8), "the annotation 1 is of the image 8, which is not among the images"),
        (changed("annotations", 0, category_id=2), "the annotation 1 has the category 2, which is not among"),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"the annotation 1 has the bbox \[1, 2, 3\] instead of four"),
        (changed("annotations", 0, bbox="1 2"), "'bbox' of an entry of annotations is missing or wrong"),
        (changed("annotations", 0, bbox=[50, 0, 20, 10]), r"the box \(50, 0, 70, 10\) of 'cat'"),
        (changed("images", 1, id=7), "two images with the id 7"),
        (changed("images", 1, file_name="z.png"), "names the picture z.png, which is in none of"),
        (changed("images", 0, width=65), "says that a.png has 65x32 pixels"),
        (changed("categories", 0, id=[3]), "'id' of an entry of categories is missing or wrong"),
        (lambda rows: rows.pop("categories"), "has no list 'categories'"),
        (lambda rows: rows.update(images=[]), "is of the image 7, which is not among"),
    ],
)
def test_damaged_coco_is_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as raised:
        coco.read(write_coco(tmp_path / "set", change), 64)
    assert "\n" not in str(raised.value)


@pytest.mark.fast
def test_json_that_is_none(tmp_path):
    file = write_coco(tmp_path / "set") / "annotations" / "instances_train.json"
    for text, message in (
        ("{", "cannot read .*JSONDecodeError"),
        ("[1]", "has no list 'images'"),
        ("\xff", "cannot read"),
    ):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=message):
            coco.read(tmp_path / "set", 64)
    file.unlink()
    with pytest.raises(UserError, match="no annotations of a train part"):
        coco.read(tmp_path / "set", 64)


@pytest.mark.fast
def test_scenes_have_boxes_that_bound_their_shapes():
    source = scenes.scenes(train=40, test=5, size=64)
    again = scenes.scenes(train=40, test=5, size=64)
    np.testing.assert_array_equal(source.train.images, again.train.images)
    known = source.train.labels[source.train.labels[..., 4] >= 0]
    assert set(known[:, 4]) == {0, 1, 2} and 40 < len(known) < 160
    assert ((known[:, :2] >= 0) & (known[:, 2:4] <= 64) & (known[:, 2:4] > known[:, :2])).all()
    # Beyond a box the background goes on: a pixel further out differs less from the next than one at the edge does.
    steps = []
    for image, labels in zip(source.train.images.astype(float), source.train.labels, strict=True):
        for x0, y0, _, y1, kind, _ in labels.astype(int):
            if kind == 1 and x0 >= 2:  # a square has a whole edge
                column = image[y0 + 1 : y1 - 1]
                steps.append(
                    [
                        np.abs(column[:, x0] - column[:, x0 - 1]).mean(),
                        np.abs(column[:, x0 - 1] - column[:, x0 - 2]).mean(),
                    ]
                )
    edge, beyond = np.mean(steps, axis=0)
    assert edge > 3 * beyond


@pytest.mark.slow
@pytest.mark.data
def test_real_cells_are_all_read(data_dir, capsys):
    source = voc.read(data_dir / "bccd", 64)
    assert "2 boxes without area left out, in BloodImage_00338.xml, BloodImage_00343.xml" in capsys.readouterr().err
    parts = source.train, source.validation, source.test
    assert [len(part.labels) for part in parts] == [205, 87, 72] and source.classes == ("Platelets", "RBC", "WBC")
    classes = np.concatenate([part.labels[..., 4].ravel() for part in parts])
    assert [(classes == k).sum() for k in range(3)] == [361, 4153, 372]  # as README.md of the data counts, less two
