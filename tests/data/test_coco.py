"""Folders of COCO written here, damaged ones, and drawn scenes."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from tests.data.boxed import some
from tl_jax.data import coco, synthetic, voc
from tl_jax.utils.errors import UserError

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
    theirs = voc.read_voc(some(tmp_path / "voc"), 128)
    ours = coco.read_coco(write_coco(tmp_path / "coco", roboflow=roboflow), 128)
    assert ours.classes == theirs.classes and ours.test_origin == "test"
    np.testing.assert_array_equal(ours.train.labels, theirs.train.labels)
    np.testing.assert_array_equal(ours.train.inputs, theirs.train.inputs)


def changed(table, row, **values):
    return lambda rows: rows[table][row].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("annotations", 0, image_id=8), "annotation 1 has the unknown image_id 8"),
        (changed("annotations", 0, category_id=2), "annotation 1 has the unknown category_id 2"),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"annotation 1 has the bbox \[1, 2, 3\], not four"),
        (changed("annotations", 0, bbox="1 2"), "'bbox' of an entry of annotations is missing or wrong"),
        (changed("annotations", 0, bbox=[50, 0, 20, 10]), r"the box \(50, 0, 70, 10\) of 'cat'"),
        (changed("images", 1, id=7), "two images have the id 7"),
        (changed("images", 1, file_name="z.png"), "the image z.png is in none of"),
        (changed("images", 0, width=65), "a.png has 64x32 pixels, not 65x32"),
        (changed("categories", 0, id=[3]), "'id' of an entry of categories is missing or wrong"),
        (lambda rows: rows.pop("categories"), "no list 'categories'"),
        (lambda rows: rows.update(images=[]), "has the unknown image_id 7"),
        (changed("images", 1, file_name="../train/a.png"), "instances_train.json: .* is also listed in "),
    ],
)
def test_damaged_coco_is_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as raised:
        coco.read_coco(write_coco(tmp_path / "set", change), 64)
    assert "\n" not in str(raised.value)


def test_json_that_is_none(tmp_path):
    file = write_coco(tmp_path / "set") / "annotations" / "instances_train.json"
    for text, message in (
        ("{", "damaged .*line 1 column 2"),
        ("[1]", "no JSON object"),
        ("{}", "no list 'images'"),
        ("\xff", "is damaged"),
    ):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=message):
            coco.read_coco(tmp_path / "set", 64)
    file.unlink()
    with pytest.raises(UserError, match="no annotations of a train split"):
        coco.read_coco(tmp_path / "set", 64)


def test_scenes_have_boxes_that_bound_their_shapes():
    source = synthetic.draw_scenes(train=40, test=5, size=64)
    again = synthetic.draw_scenes(train=40, test=5, size=64)
    np.testing.assert_array_equal(source.train.inputs, again.train.inputs)
    known = source.train.labels[source.train.labels[..., 4] >= 0]
    assert set(known[:, 4]) == {0, 1, 2} and 40 < len(known) < 160
    assert ((known[:, :2] >= 0) & (known[:, 2:4] <= 64) & (known[:, 2:4] > known[:, :2])).all()
    # Beyond a box the background goes on: a pixel further out differs less from the next than one at the edge does.
    steps = []
    for image, labels in zip(source.train.inputs.astype(float), source.train.labels, strict=True):
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


@pytest.mark.parametrize("name", ["dev", "valid", "validation", "test"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_part_called_dev_or_valid_is_tested(tmp_path, name, beside):
    folder = write_coco(tmp_path / "set", roboflow=beside)
    (folder / "val").rename(folder / name)
    if not beside:
        (folder / "annotations" / "instances_val.json").rename(folder / "annotations" / f"instances_{name}2017.json")
        (folder / name).rename(folder / f"{name}2017")
    source = coco.read_coco(folder, 64)
    assert (len(source.train.labels), len(source.test.labels), source.test_origin) == (2, 2, "test")


def test_two_files_of_one_split_are_refused(tmp_path):
    folder = write_coco(tmp_path / "set")
    file = folder / "annotations" / "instances_train.json"
    for year in (2014, 2017):
        (folder / "annotations" / f"instances_train{year}.json").write_bytes(file.read_bytes())
    file.unlink()
    with pytest.raises(
        UserError, match="instances_train2014.json and .*instances_train2017.json are both of the train"
    ):
        coco.read_coco(folder, 64)


def test_of_several_files_the_plainest_name_is_taken(tmp_path):
    folder = write_coco(tmp_path / "set")
    for name in ("train.json", "instances_train_extra.json"):
        (folder / "annotations" / name).write_text("[]")
    assert len(coco.read_coco(folder, 64).train.labels) == 2


def test_a_test_part_without_annotations_is_passed_over(tmp_path, capsys):
    folder = write_coco(tmp_path / "set")
    rows = content() | {"annotations": []}
    (folder / "annotations" / "instances_test.json").write_text(json.dumps(rows))
    (folder / "test").mkdir()
    for name in "ab":
        Image.new("RGB", (64, 32), "blue").save(folder / "test" / f"{name}.png")
    source = coco.read_coco(folder, 64)
    assert (source.test.inputs[0, 0, 0] == (255, 0, 0)).all() and source.validation is None
    assert "instances_test.json: no annotations" in capsys.readouterr().err


@pytest.mark.parametrize("width, height", [("64", "32"), (64.0, 32.0), (" 64 ", "32.0"), (None, None), ("", 0)])
def test_sizes_may_be_texts_and_fractions(tmp_path, width, height):
    source = coco.read_coco(write_coco(tmp_path / "set", changed("images", 0, width=width, height=height)), 64)
    assert len(source.train.labels) == 2


@pytest.mark.parametrize("value, crowd", [("0", 0), (False, 0), (None, 0), (0.0, 0), ("1", 1), (True, 1), (1, 1)])
def test_spellings_of_a_crowd(tmp_path, value, crowd):
    def change(rows):
        for row, spelled in zip(rows["annotations"], (value, 0), strict=True):
            row["iscrowd"] = spelled

    source = coco.read_coco(write_coco(tmp_path / "set", change), 64)
    assert source.train.labels[0, 0, 5] == crowd


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("images", 0, width="65"), "a.png has 64x32 pixels, not 65x32"),
        (changed("images", 0, width=64.5), "a.png has 64x32 pixels, not 64.5x32"),
        (changed("images", 0, width=[64]), "'width' of image 7 is .*, not a size"),
        (changed("images", 0, width=float("nan")), "'width' of image 7 is 'nan', not a size"),
        (changed("images", 0, height=10**400), "'height' of image 7 is '1000.*, not a size"),
        (changed("annotations", 0, bbox=[1, 1, 10**400, 5]), "annotation 1 has a bbox with too large a number"),
        (changed("annotations", 0, bbox=[True, 1, 5, 5]), "annotation 1 has the bbox"),
        (changed("annotations", 0, iscrowd="2"), "annotation 1 has iscrowd='2'"),
        (changed("annotations", 0, iscrowd=[]), "annotation 1 has iscrowd=.."),
        (changed("annotations", 0, image_id=True), "'image_id' of an entry of annotations is missing or wrong"),
        (changed("categories", 0, name="x" * 5000), "1 labels have more than 1,000 characters"),
        (changed("categories", 0, id=1), "two categories have the id 1: dog, cat"),
        (
            lambda rows: [row.update(iscrowd=1) for row in rows["annotations"]],
            "set: all 2 objects of the train split are crowds .iscrowd=1",
        ),
    ],
)
def test_what_coco_says_must_be_possible(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as raised:
        coco.read_coco(write_coco(tmp_path / "set", change), 64)
    assert "\n" not in str(raised.value)


def test_a_turned_picture_has_its_boxes_where_the_stated_size_says(tmp_path):
    """COCO's own sizes are those of the stored pixels; other tools write those of the turned picture."""
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[10:20, 10:30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.rot90(stored, -1)
    for name, shape, box in (("stored", (64, 32), [10, 10, 20, 10]), ("upright", (32, 64), [12, 10, 10, 20])):
        folder = write_coco(
            tmp_path / name,
            lambda rows, box=box, shape=shape: (
                rows["annotations"][1].update(bbox=[0, 0, 5, 5]),
                rows["annotations"][0].update(bbox=box),
                rows["images"][0].update(width=shape[0], height=shape[1]),
            ),
        )
        Image.fromarray(stored).save(folder / "train" / "a.png", exif=exif)
        source = coco.read_coco(folder, 64)
        x0, y0, x1, y1 = source.train.labels[0, 0, :4].astype(int)
        image = source.train.inputs[0]
        assert (image[y0:y1, x0:x1] == 255).all() and (image[..., 0] == 255).sum() == (upright[..., 0] == 255).sum()


def test_a_picture_in_two_parts_is_refused(tmp_path):
    folder = write_coco(tmp_path / "set")
    for part in ("train", "val"):
        for name in "ab":
            (folder / part / f"{name}.png").rename(folder / f"{name}.png")
    with pytest.raises(UserError, match="instances_.*.json: .*a.png is also listed in .*instances_"):
        coco.read_coco(folder, 64)


def test_copies_in_two_parts_are_said(tmp_path, capsys):
    coco.read_coco(write_coco(tmp_path / "copied"), 64)
    assert "copied: 2 of 2 test images are also in train, byte for byte, such as val/a.png" in capsys.readouterr().err


@pytest.mark.parametrize(("stored", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_in_another_unicode_form_are_found(tmp_path, stored, written):
    there, here = (unicodedata.normalize(form, "café") for form in (stored, written))

    def change(rows):
        rows["images"][0]["file_name"] = f"{here}/a.png"
        rows["categories"][1]["name"] = there  # the test part has "cat", which is none of the classes then

    folder = write_coco(tmp_path / "set", change)
    (folder / "train" / there).mkdir()
    (folder / "train" / "a.png").rename(folder / "train" / there / "a.png")
    source = coco.read_coco(folder, 64, classes=(here, "cat", "dog"))
    assert source.classes == (unicodedata.normalize("NFC", "café"), "cat", "dog")
    assert source.train.labels[0, 0, 4] == 0
