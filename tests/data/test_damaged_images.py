"""Damaged image files: all of a data set are told at once, in every reader; and the limit on pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.boxed import CAT, write_voc
from tests.data.test_coco import write_coco
from tl_jax.data import coco, faces, image_folder, image_list, voc
from tl_jax.data.registry import DatasetOptions
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def photos(top: Path, count: int = 10, sizes: tuple[int, ...] = (32,)) -> Path:
    """Write JPEG files of noise, of one side or several in turn, to two class folders."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (top / name).mkdir(parents=True)
        for i in range(count):
            side = sizes[i % len(sizes)]
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(top / name / f"{i:02}.jpg")
    return top


def damage(top: Path, *names: str) -> list[str]:
    """Damage files in ways of which the headers of only some tell."""
    for i, name in enumerate(names):
        path = top / name
        whole = path.read_bytes()
        if i % 4 == 3:
            path.unlink()
            path.symlink_to(top / "nowhere.jpg")
        else:
            path.write_bytes((whole[:-100], b"", b"<html>404</html>")[i % 4])
    return [str(top / name) for name in names]


@pytest.mark.parametrize("sizes", [(32,), (32, 40)])
def test_all_damaged_files_of_a_folder_are_named_in_one_error(tmp_path: Path, sizes) -> None:
    top = photos(tmp_path / "set", sizes=sizes)
    names = damage(top, "a/05.jpg", "a/07.jpg", "b/03.jpg", "b/09.jpg")
    with pytest.raises(UserError, match="set: 4 of 20 images cannot be read: ") as caught:
        image_folder.read_folder(top, 32)
    text = str(caught.value)
    assert all(f"cannot decode {name} (" in text for name in names) and "\n" not in text
    assert "truncated" in text and text.endswith("; replace or remove it")


def test_of_many_damaged_files_five_are_shown(tmp_path: Path) -> None:
    top = photos(tmp_path / "set")
    damage(top, *(f"a/{i:02}.jpg" for i in range(8)))
    with pytest.raises(UserError, match="8 of 20 images cannot be read: .*a/04.jpg .* | and 3 more; replace") as caught:
        image_folder.read_folder(top, 32)
    assert "a/05.jpg" not in str(caught.value)


def test_a_set_that_is_decoded_while_training_names_all_damaged_files(tmp_path: Path) -> None:
    source = image_folder.read_folder(photos(tmp_path / "set"), 32, max_bytes=100)
    damage(tmp_path / "set", "a/05.jpg", "a/07.jpg", "b/03.jpg")
    with pytest.raises(UserError, match="set: 3 of 20 images cannot be read: .*a/05.jpg.*a/07.jpg.*b/03.jpg"):
        np.asarray(source.train.inputs[:])


def test_other_readers_name_all_damaged_files_too(tmp_path: Path) -> None:
    top = photos(tmp_path / "set")
    files = sorted(path.relative_to(top) for path in top.glob("*/*.jpg"))
    (top / "index.csv").write_text("file,label\n" + "".join(f"{file},{file.parts[0]}\n" for file in files))
    damage(top, "a/05.jpg", "b/03.jpg")
    with pytest.raises(UserError, match="2 of 20 images cannot be read: .*a/05.jpg.*b/03.jpg"):
        image_list.load_index(top, DatasetOptions("index", size=32))
    with pytest.raises(UserError, match="2 of 20 images cannot be read: .*a/05.jpg.*b/03.jpg"):
        faces.read_faces(top, 32)
    boxed = write_voc(tmp_path / "voc", {name: [CAT] for name in "abc"}, {"train": "ab", "test": "c"})
    listed = write_coco(tmp_path / "coco")
    for path in (*boxed.glob("JPEGImages/[ac].png"), *listed.glob("train/*.png")):
        path.write_bytes(b"nothing")
    for read, where, count in ((voc.read_voc, boxed, "2 of 3"), (coco.read_coco, listed, "2 of 4")):
        with pytest.raises(UserError, match=f"{count} images cannot be read: cannot decode .*a.png .*"):
            read(where, 64)


def test_annotations_that_cannot_be_used_are_named_in_one_error(tmp_path: Path) -> None:
    outside = ("cat", 0, 10, 10, 300, 20)
    top = write_voc(tmp_path / "set", {"a": [outside], "b": [CAT], "c": [outside]}, {"train": "abc", "test": "d"})
    write_voc(tmp_path / "more", {"d": [CAT]})
    for kind, ending in (("JPEGImages", "png"), ("Annotations", "xml")):
        (tmp_path / "more" / kind / f"d.{ending}").rename(top / kind / f"d.{ending}")
    with pytest.raises(UserError, match="annotations of 2 of 4 images cannot be used: .*a.xml: .*c.xml: "):
        voc.read_voc(top, 64)
    (top / "Annotations" / "a.xml").write_text("<annotation>")
    (top / "Annotations" / "c.xml").unlink()
    with pytest.raises(UserError, match="2 of 3 images cannot be used: cannot read .*a.xml .*no annotation .*c.xml"):
        voc.read_voc(top, 64)


def test_absent_pictures_of_coco_are_named_in_one_error(tmp_path: Path) -> None:
    top = write_coco(tmp_path / "set")
    for path in top.glob("train/*.png"):
        path.unlink()
    with pytest.raises(UserError, match="2 of 2 images cannot be used: .*a.png.*b.png"):
        coco.read_coco(top, 64)


def test_the_limit_on_pixels_can_be_raised_and_lowered(tmp_path: Path, monkeypatch) -> None:
    top = photos(tmp_path / "set")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # Pillow refuses above its double, 800
    with pytest.raises(UserError, match="20 of 20 .*more than 400 pixels .*; .*raise config.data.max_pixels"):
        image_folder.read_folder(top, 32)
    assert len(image_folder.read_folder(top, 32, max_pixels=32 * 32).train.labels) == 16
    with pytest.raises(UserError, match="more than 1,023 pixels"):
        image_folder.read_folder(top, 32, max_pixels=32 * 32 - 1)


def test_a_header_that_contradicts_the_image_is_refused(tmp_path: Path, monkeypatch) -> None:
    """A PNG may have its EXIF behind the pixels; whoever reads the header must see it as well."""
    top = photos(tmp_path / "set")
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.random.default_rng(1).integers(0, 256, (20, 32, 3), np.uint8)
    Image.fromarray(wide).save(top / "a" / "turned.png", exif=exif)
    source = image_folder.read_folder(top, 32, fit="stretch")
    turned = np.rot90(wide, -1)
    square = np.asarray(Image.fromarray(np.ascontiguousarray(turned)).resize((32, 32), Image.Resampling.BILINEAR))
    found = [each.tobytes() for part in (source.train, source.test) for each in part.inputs]
    assert square.tobytes() in found


def test_json_of_coco_says_which_image(tmp_path: Path) -> None:
    top = write_coco(tmp_path / "set")
    file = top / "annotations" / "instances_train.json"
    rows = json.loads(file.read_text())
    rows["images"][0]["width"] = "wide"
    file.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="'width' of image 7 is 'wide', not a size; correct it"):
        coco.read_coco(top, 64)
