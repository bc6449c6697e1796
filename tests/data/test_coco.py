"""Folders of COCO written here, damaged ones, and drawn scenes."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.boxed import some
from tl_jax.data import coco, scenes, voc
from tl_jax.errors import UserError

pytestmark = pytest.mark.fast


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


@pytest.mark.parametrize("roboflow", [False, True])
def test_coco_gives_what_voc_gives(tmp_path, roboflow):
    theirs = voc.read(some(tmp_path / "voc"), 128)
    ours = coco.read(write_coco(tmp_path / "coco", roboflow=roboflow), 128)
    assert ours.classes == theirs.classes and ours.tested == "test"
    np.testing.assert_array_equal(ours.train.labels, theirs.train.labels)
    np.testing.assert_array_equal(ours.train.images, theirs.train.images)


def changed(table, row, **values):
    return lambda rows: rows[table][row].update(values)


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
