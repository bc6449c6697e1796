"""Folders of Pascal VOC written here, damaged ones, and real cells."""

import unicodedata

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.boxed import CAT, OBJECT, XML, some, write_voc
from tl_jax.data import coco, voc
from tl_jax.utils.errors import UserError


@pytest.mark.fast
def test_voc_is_read_and_scaled(tmp_path):
    source = voc.read_voc(some(tmp_path / "set"), 128)
    assert source.classes == ("cat", "dog") and source.test_origin == "test" and source.validation is None
    assert source.train.inputs.shape == (2, 64, 128, 3) and source.train.inputs.dtype == np.uint8
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
    source = voc.read_voc(some(tmp_path / "set", **parts), 64)
    validation = None if source.validation is None else len(source.validation.labels)
    assert (len(source.train.labels), len(source.test.labels), validation) == sizes


@pytest.mark.fast
def test_without_lists_a_fifth_is_held_out(tmp_path):
    folder = write_voc(tmp_path / "set", {f"p{i}": [("cat", 0, i, 0, 30, 20)] for i in range(10)})
    (folder / "ImageSets" / "Main").rmdir()
    one, two = voc.read_voc(folder, 64), voc.read_voc(folder, 64)
    assert len(one.train.labels) == 8 and len(one.test.labels) == 2 and one.test_origin == "a fifth held out"
    np.testing.assert_array_equal(one.test.labels, two.test.labels)
    lefts = np.concatenate([one.train.labels[:, 0, 0], one.test.labels[:, 0, 0]])
    assert sorted(lefts) == list(range(10))


@pytest.mark.fast
def test_pictures_of_other_shapes_lie_at_the_top_left_of_grey(tmp_path):
    folder = write_voc(tmp_path / "set", {"a": [CAT]}, {"train": "a", "test": "t"})
    Image.new("RGB", (20, 40), "blue").save(folder / "JPEGImages" / "t.png")
    tall = XML.format(w=20, h=40, objects=OBJECT.format("cat", 0, 0, 0, 20, 40))
    (folder / "Annotations" / "t.xml").write_text(tall)
    source = voc.read_voc(folder, 64)
    assert source.test.inputs.shape == (1, 64, 64, 3)
    assert (source.test.inputs[0, :, :32] == [0, 0, 255]).all() and (source.test.inputs[0, :, 32:] == 127).all()
    np.testing.assert_array_equal(source.test.labels[0, 0], [0, 0, 32, 64, 0, 0])
    np.testing.assert_array_equal(source.train.labels[0, 0], [10, 10, 30, 20, 0, 0])


@pytest.mark.fast
def test_boxes_without_area_are_said_and_left_out(tmp_path, capsys):
    objects = [CAT, ("cat", 0, 5, 5, 5, 9), ("cat", 0, 64, 3, 65, 9)]
    source = voc.read_voc(write_voc(tmp_path / "set", {"a": objects, "b": [CAT]}, {"train": "a", "test": "b"}), 64)
    assert (source.train.labels[0, :, 4] >= 0).sum() == 1
    assert "set: 2 boxes without area dropped, in a.xml" in capsys.readouterr().err


@pytest.mark.fast
@pytest.mark.parametrize("listed", [True, False])
def test_names_in_another_unicode_form_are_found(tmp_path, listed):
    one, two = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    pictures = {one: [("crème", 0, 10, 10, 30, 20)], **{name: [("cr\u0065\u0300me", 0, 1, 2, 3, 4)] for name in "abcd"}}
    folder = write_voc(tmp_path / "set", pictures, {"train": [two, "a", "b", "c"], "test": "d"} if listed else {})
    if not listed:
        (folder / "ImageSets" / "Main").rmdir()
    (folder / "Annotations" / f"{one}.xml").rename(folder / "Annotations" / f"{two}.xml")
    source = voc.read_voc(folder, 64)
    assert source.classes == ("crème",) and len(source.train.labels) == 4 and len(source.test.labels) == 1


@pytest.mark.fast
@pytest.mark.parametrize(
    "kind", ['SYSTEM "annotation.dtd"', 'PUBLIC "-//VOC//2012" "http://127.0.0.1:9/annotation.dtd"']
)
def test_a_document_type_is_passed_over(tmp_path, monkeypatch, kind):
    """Some tools name one; nothing is fetched for it."""
    folder = write_voc(tmp_path / "set", {"a": [CAT], "b": [CAT]}, {"train": "a", "test": "b"})
    path = folder / "Annotations" / "a.xml"
    path.write_text(f"<!DOCTYPE annotation {kind}>\n{path.read_text()}")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something was fetched"))
    assert len(voc.read_voc(folder, 64).train.labels) == 1


def damage(name, text):
    return lambda folder: (folder / name).write_text(text)


def remove(name):
    return lambda folder: (folder / name).unlink()


def objects(*each):
    return damage("Annotations/a.xml", XML.format(w=64, h=32, objects="".join(OBJECT.format(*one) for one in each)))


def emptied(folder):
    for path in (folder / "JPEGImages").iterdir():
        path.unlink()


ELSEWHERE = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><annotation>&e;</annotation>'
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
        (objects(("", 0, 1, 10, 10, 20)), "an object has no name"),
        (
            damage("Annotations/c.xml", XML.format(w=64, h=32, objects=OBJECT.format("cow", *CAT[1:]))),
            "'cow' is an unknown class",
        ),
        (
            damage("Annotations/b.xml", XML.format(w=32, h=64, objects="")),
            "b.png has 64x32 pixels, not 32x64",
        ),
        (damage("Annotations/a.xml", "<annotation><object>"), "cannot read .*a.xml .*ParseError"),
        (damage("Annotations/a.xml", BOMB), "cannot read .*a.xml .*EntitiesForbidden"),
        (damage("Annotations/a.xml", ELSEWHERE), "cannot read .*a.xml .*EntitiesForbidden"),
        (
            damage("Annotations/a.xml", "<?xml version='1.0' encoding='rot13'?><a/>"),
            "cannot read .*a.xml .*LookupError",
        ),
        (damage("Annotations/a.xml", "<a>" * 200_000), "cannot read .*a.xml .*ParseError"),
        (
            damage("Annotations/a.xml", "<a>" * 200_000 + "</a>" * 200_000),
            "set: no image of the train split has an ob",
        ),
        (objects(("x" * 5000, *CAT[1:])), "1 labels have more than 1,000 characters"),
        (objects(("cat", 0, "9" * 5000, 10, 10, 20)), "the box .inf, 10, 10, 20. of 'cat'"),
        (
            damage("Annotations/a.xml", XML.format(w=64, h=32, objects="")),
            "set: no image of the train split has an obj",
        ),
        (damage("JPEGImages/a.png", "not a picture"), "cannot decode .*a.png"),
        (damage("ImageSets/Main/test.txt", "c\nzz\n"), "test.txt: .* has no image named zz"),
        (damage("ImageSets/Main/test.txt", "c\na\n"), "test.txt: a is also listed in .*train.txt"),
        (damage("ImageSets/Main/test.txt", "\n"), "set: the test split has no images"),
        (remove("ImageSets/Main/train.txt"), "neither train.txt nor trainval.txt"),
        (remove("Annotations/a.xml"), "no annotation .*a.xml of a.png"),
        (remove("JPEGImages/a.png"), "train.txt: .*JPEGImages has no image"),
        (emptied, "JPEGImages has no images"),
    ],
)
def test_damaged_voc_is_one_line(tmp_path, harm, message):
    folder = some(tmp_path / "set")
    harm(folder)
    with pytest.raises(UserError, match=message) as raised:
        voc.read_voc(folder, 64)
    assert "\n" not in str(raised.value)


@pytest.mark.fast
def test_folders_that_are_none(tmp_path):
    for read in (voc.read_voc, coco.read_coco):
        with pytest.raises(UserError, match="check config.data.dir"):
            read(tmp_path / "nothing", 64)
    with pytest.raises(UserError, match="'cat' is an unknown class; choose one of dog, horse"):
        voc.read_voc(some(tmp_path / "set"), 64, classes=("dog", "horse"))
    assert voc.read_voc(tmp_path / "set", 64, classes=("dog", "cat")).train.labels[0, :, 4].tolist() == [1, 0]


@pytest.mark.slow
@pytest.mark.data
def test_real_cells_are_all_read(data_dir, capsys):
    source = voc.read_voc(data_dir / "bccd", 64)
    assert "2 boxes without area dropped, in BloodImage_00338.xml, BloodImage_00343.xml" in capsys.readouterr().err
    parts = source.train, source.validation, source.test
    assert [len(part.labels) for part in parts] == [205, 87, 72] and source.classes == ("Platelets", "RBC", "WBC")
    classes = np.concatenate([part.labels[..., 4].ravel() for part in parts])
    assert [(classes == k).sum() for k in range(3)] == [361, 4153, 372]  # as README.md of the data counts, less two


BOX = (10, 20, 60, 90)  # of a white object on black


def write_turned(folder, orientation, frame, size=(200, 120), count=10):
    """Write a set of JPEG files with a white object, stored with an EXIF orientation, and its box.

    ``frame`` is whose pixels the box counts: "stored", or "upright" as the turned picture has them; "stated" writes the
    size of that frame down, too.
    """
    stored = np.zeros((size[1], size[0], 3), np.uint8)
    stored[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for i in range(count):
        path = folder / "JPEGImages" / f"{i}.jpg"
        Image.fromarray(stored).save(path, exif=exif)
        with Image.open(path) as image:
            turned = np.asarray(ImageOps.exif_transpose(image) if frame.startswith("upright") else image)
        rows, columns = (np.flatnonzero((turned[..., 0] > 127).any(axis)) for axis in (1, 0))
        box = OBJECT.format("cat", 0, columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        text = XML.format(w=turned.shape[1], h=turned.shape[0], objects=box)
        (folder / "Annotations" / f"{i}.xml").write_text(
            text if frame.endswith("stated") else text.replace("size>", "no>")
        )
    return folder


def overlap(image, box):
    """Return the IoU of a box and the white pixels of an image."""
    inside = np.zeros(image.shape[:2], bool)
    x0, y0, x1, y1 = np.rint(box).astype(int)
    inside[y0:y1, x0:x1] = True
    white = image[..., 0] > 127
    return (inside & white).sum() / (inside | white).sum()


@pytest.mark.fast
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "frame, size", [("stored", (200, 120)), ("stored stated", (200, 120)), ("stored stated", (120, 120))]
)
def test_boxes_of_the_stored_pixels_are_turned_with_the_picture(tmp_path, orientation, frame, size, capsys):
    source = voc.read_voc(write_turned(tmp_path / f"s{orientation}{frame}{size}", orientation, frame, size), 256)
    assert overlap(source.train.inputs[0], source.train.labels[0, 0, :4]) > 0.9
    with Image.open(next(tmp_path.glob("*/JPEGImages/0.jpg"))) as file:
        upright = ImageOps.exif_transpose(file).size
    assert source.train.inputs.shape[1:3] == tuple(-(-side * 256 // max(upright) // 32) * 32 for side in upright[::-1])
    unsure = orientation > 1 and (frame == "stored" or size[0] == size[1] or orientation < 5)
    assert ("10 images with an EXIF orientation whose annotations do not show" in capsys.readouterr().err) == unsure


@pytest.mark.fast
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_the_turned_picture_are_known_by_its_size(tmp_path, orientation, capsys):
    source = voc.read_voc(write_turned(tmp_path / "set", orientation, "upright stated"), 256)
    assert overlap(source.train.inputs[0], source.train.labels[0, 0, :4]) > 0.9
    assert "EXIF" not in capsys.readouterr().err


@pytest.mark.fast
def test_boxes_a_few_pixels_outside_are_clipped_with_a_count(tmp_path, capsys):
    pictures = {name: [CAT, ("cat", 0, -3, 5, 67, 20)] for name in "ab"} | {"c": [CAT]}
    source = voc.read_voc(write_voc(tmp_path / "set", pictures, {"train": "ab", "test": "c"}), 64)
    np.testing.assert_array_equal(source.train.labels[:, 1, :4], [[0, 5, 64, 20]] * 2)
    line = "set: 2 boxes clipped at the edge of their image, in a.xml, b.xml"
    assert line in capsys.readouterr().err


@pytest.mark.fast
def test_a_rare_class_stays_in_train(tmp_path):
    usual = voc.read_voc(write_voc(tmp_path / "usual", {f"{i}": [CAT] for i in range(10)}), 64)
    assert usual.classes == ("cat",)
    for rare in range(10):
        pictures = {f"{i}": [("rare" if i == rare else "cat", 0, i, 0, 30, 20)] for i in range(10)}
        source = voc.read_voc(write_voc(tmp_path / f"{rare}", pictures), 64)
        assert source.classes == ("cat", "rare") and len(source.test.labels) == 2
        assert (source.train.labels[..., 4] == 1).sum() == 1 and (source.test.labels[..., 4] == 0).all()


@pytest.mark.fast
def test_pictures_of_which_each_has_its_own_class_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match="each image has a class of its own"):
        voc.read_voc(write_voc(tmp_path / "set", {f"{i}": [(f"k{i}", *CAT[1:])] for i in range(10)}), 64)


@pytest.mark.fast
@pytest.mark.parametrize("lists", ["ImageSets/Main", "ImageSets"])
@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Test"])
def test_a_list_called_valid_or_dev_is_the_other_split(tmp_path, lists, name):
    folder = some(tmp_path / "set", train="a")
    (folder / "ImageSets" / "Main" / "train.txt").unlink()
    (folder / "ImageSets" / "Main").rmdir()
    (folder / lists).mkdir(exist_ok=True)
    (folder / lists / "train.txt").write_text("a\nb\n")
    (folder / lists / f"{name}.txt").write_text("c\n")
    (folder / lists / "cat_train.txt").write_text("a 1\n")  # of one class: VOC has such lists, too
    source = voc.read_voc(folder, 64)
    assert (len(source.train.labels), len(source.test.labels), source.test_origin) == (2, 1, "test")


@pytest.mark.fast
def test_other_texts_beside_the_lists_are_no_lists(tmp_path):
    folder = write_voc(tmp_path / "set", {f"{i}": [CAT] for i in range(10)})
    (folder / "ImageSets" / "notes.txt").write_text("hello\n")
    assert voc.read_voc(folder, 64).test_origin == "a fifth held out"


@pytest.mark.fast
def test_two_lists_of_one_split_are_refused(tmp_path):
    with pytest.raises(UserError, match="'val' and 'valid' both denote the validation split"):
        voc.read_voc(some(tmp_path / "set", train="a", val="b", valid="c"), 64)


@pytest.mark.fast
@pytest.mark.parametrize(
    "written",
    ["{}", "{}.png", "JPEGImages/{}.png", "{}  1", "{} -1", "VOC\\JPEGImages\\{}.png", "{}.png 1"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_name_pictures_with_blanks_endings_and_marks(tmp_path, written, encoding):
    folder = write_voc(tmp_path / "set", {name: [CAT] for name in ("IMG 1", "IMG 2", "é 0.5")})
    for part, names in (("train", ("IMG 1", "é 0.5")), ("test", ("IMG 2",))):
        text = "".join(written.format(name) + "\r\n" for name in names)
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text(text, encoding=encoding)
    source = voc.read_voc(folder, 64)
    assert (len(source.train.labels), len(source.test.labels)) == (2, 1)


@pytest.mark.fast
def test_the_picture_that_an_annotation_names_is_taken(tmp_path):
    folder = some(tmp_path / "set")
    for name in "abc":
        Image.new("RGB", (64, 32), "blue").save(folder / "JPEGImages" / f"{name}.bmp")
    with pytest.raises(UserError, match="<filename> does not select one of a.bmp and a.png"):
        voc.read_voc(folder, 64)
    for ending, colour in (("bmp", (0, 0, 255)), ("png", (255, 0, 0))):
        for path in (folder / "Annotations").glob("*.xml"):
            text = path.read_text().partition("<filename>")[0].removesuffix("</annotation>")
            path.write_text(f"{text}<filename>{path.stem}.{ending}</filename></annotation>")
        assert (voc.read_voc(folder, 64).train.inputs == colour).all()


@pytest.mark.fast
def test_files_that_a_mac_leaves_are_skipped(tmp_path):
    folder = write_voc(tmp_path / "set", {f"{i}": [CAT] for i in range(5)})
    for path in [*folder.glob("JPEGImages/*"), *folder.glob("Annotations/*")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5")
    assert len(voc.read_voc(folder, 64).train.labels) == 4


@pytest.mark.fast
def test_pictures_without_an_annotation_are_left_out_with_a_count(tmp_path, capsys):
    folder = write_voc(tmp_path / "set", {f"{i}": [CAT] for i in range(7)})
    for i in (2, 4):
        (folder / "Annotations" / f"{i}.xml").unlink()
    source = voc.read_voc(folder, 64)
    assert len(source.train.labels) + len(source.test.labels) == 5
    assert "2 of 7 images have no annotation and are skipped: 2.png, 4.png" in capsys.readouterr().err


@pytest.mark.fast
def test_objects_that_are_all_difficult_are_named_so(tmp_path):
    pictures = {f"{i}": [("cat", 1, *CAT[2:])] for i in range(5)}
    with pytest.raises(UserError, match="set: all 4 objects of the train split are crowds .*difficult=1"):
        voc.read_voc(write_voc(tmp_path / "set", pictures), 64)
