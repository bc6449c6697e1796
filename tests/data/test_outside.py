"""Files that data from elsewhere may not lead to: by a name in a list, by a link, or by a folder that is linked."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tl_jax.data import coco, image_folder, image_list, voc
from tl_jax.data.decode import DEFAULT_DECODING
from tl_jax.data.fingerprint import folder_stamp
from tl_jax.data.registry import DatasetOptions
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
COUNT = 10
ALLOWED = DEFAULT_DECODING._replace(outside=True)


def put(where: Path) -> list[Path]:
    """Write pictures of noise."""
    where.mkdir(parents=True, exist_ok=True)
    files = [where / f"{i}.png" for i in range(COUNT)]
    for file in files:
        rng = np.random.default_rng(abs(hash(str(file))) % 2**32)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file)
    return files


def write_coco(top: Path, names) -> None:
    (top / "annotations").mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    boxes = [{"image_id": i, "category_id": 1, "bbox": [1, 1, 5, 5]} for i in range(len(images))]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}
    (top / "annotations" / "instances_train.json").write_text(json.dumps(content))


def write_index(top: Path, names) -> None:
    top.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{name},{i % 2}\n" for i, name in enumerate(names))
    (top / "index.csv").write_text(f"file,label\n{rows}")


READERS = {
    "coco": (
        write_coco,
        lambda top, outside: coco.read_coco(top, 32, decoding=ALLOWED if outside else DEFAULT_DECODING),
    ),
    "index": (
        write_index,
        lambda top, outside: image_list.load_index(
            top, DatasetOptions("index", size=8, decoding=ALLOWED if outside else DEFAULT_DECODING)
        ),
    ),
}
WAYS = {
    "absolute": lambda top, private: str(private),
    "above": lambda top, private: "../" * 12 + str(private)[1:],
    "beside": lambda top, private: f"../{private.name}",
    "link": lambda top, private: (top / "link").symlink_to(private) or "link",
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("way", WAYS)
def test_a_name_leads_outside_only_if_that_is_allowed(tmp_path, kind, way):
    top, private = tmp_path / "set", tmp_path / "private"
    files, (write, read) = put(private), READERS[kind]
    top.mkdir()
    prefix = WAYS[way](top, private)
    write(top, [f"{prefix}/{file.name}" for file in files])
    with pytest.raises(UserError, match=r"0.png is outside .*set, .*config.data.outside=True") as caught:
        read(top, False)
    assert "\n" not in str(caught.value)
    assert len(read(top, True).train.labels) == COUNT * 4 // 5


@pytest.mark.parametrize("kind", READERS)
def test_a_linked_file_leads_outside_only_if_that_is_allowed(tmp_path, kind):
    top, (write, read) = tmp_path / "set", READERS[kind]
    top.mkdir()
    for file in put(tmp_path / "private"):
        (top / file.name).symlink_to(file)
    write(top, [f"{i}.png" for i in range(COUNT)])
    with pytest.raises(UserError, match="0.png is outside"):
        read(top, False)
    assert len(read(top, True).train.labels) == COUNT * 4 // 5


@pytest.mark.parametrize("kind", READERS)
def test_names_within_the_folder_and_a_data_folder_that_is_a_link(tmp_path, kind):
    top, (write, read) = tmp_path / "disk" / "set", READERS[kind]
    put(top / "images")
    (top / "deep").mkdir()
    (tmp_path / "set").symlink_to(top)
    write(top, [f"deep/../images/{i}.png" if kind == "coco" else f"images/{i}.png" for i in range(COUNT)])
    for where in (top, tmp_path / "set"):
        assert len(read(where, False).train.labels) == COUNT * 4 // 5


def test_the_folders_of_a_layout_may_be_links(tmp_path):
    top = tmp_path / "set"
    put(tmp_path / "disk")
    write_coco(top, [f"{i}.png" for i in range(COUNT)])
    (top / "images").mkdir()
    (top / "images" / "train").symlink_to(tmp_path / "disk")
    assert len(coco.read_coco(top, 32).train.labels) == COUNT * 4 // 5


def test_lists_of_voc_name_pictures_of_the_folder_only(tmp_path):
    top = tmp_path / "set"
    put(top / "JPEGImages")
    put(tmp_path / "private")
    (top / "Annotations").mkdir()
    (top / "ImageSets").mkdir()
    (top / "ImageSets" / "train.txt").write_text("../../private/99\n")
    with pytest.raises(UserError, match="has no image named"):
        voc.read_voc(top, 32)


def classes(top: Path) -> None:
    for name in "ab":
        put(top / name)


def count(source) -> int:
    return len(source.train.labels) + len(source.test.labels)


@pytest.mark.parametrize("target", ["/", "/usr", "..", "private"])
def test_a_link_below_a_class_is_not_walked(tmp_path, monkeypatch, capsys, target):
    """Everything below the file system's root would be read, hashed, and become pictures of the class."""
    import os

    top, scan, scanned = tmp_path / "set", os.scandir, []
    classes(top)
    put(tmp_path / "private")
    (top / "a" / "link").symlink_to(tmp_path / target if target == "private" else target)
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(str(path)) or scan(path))
    folder_stamp(str(top))
    assert count(image_folder.read_folder(top, 8)) == 2 * COUNT
    assert not [each for each in scanned if "/a/link" in each] and len(scanned) < 20
    said = capsys.readouterr().err
    assert "not read: 1 linked to a folder" in said and "a/link" in said
    assert ("config.data.outside=True" in said) == (target in ("/usr", "private"))
    assert len(image_folder.list_images(top)) == 2 * COUNT


def test_folders_outside_are_read_if_that_is_allowed(tmp_path):
    classes(tmp_path / "set")
    put(tmp_path / "private")
    (tmp_path / "set" / "a" / "link").symlink_to(tmp_path / "private")
    assert count(image_folder.read_folder(tmp_path / "set", 8, outside=True)) == 3 * COUNT
    assert len(image_folder.read_single_split(tmp_path / "set", 8, decoding=ALLOWED)[1]) == 3 * COUNT
    assert len(image_folder.list_images(tmp_path / "set", True)) == 3 * COUNT


def test_the_folder_of_a_class_may_be_a_link_and_what_is_in_it_counts(tmp_path):
    top = tmp_path / "set"
    put(top / "a")
    put(tmp_path / "disk" / "b")
    put(tmp_path / "disk" / "b" / "more")
    (tmp_path / "disk" / "b" / "again").symlink_to(tmp_path / "disk" / "b" / "more")
    (top / "b").symlink_to(tmp_path / "disk" / "b")
    before = folder_stamp(str(top))
    assert count(image_folder.read_folder(top, 8)) == 4 * COUNT
    (tmp_path / "disk" / "b" / "0.png").unlink()
    assert folder_stamp(str(top)) != before


def test_the_folder_of_a_class_is_no_link_to_one_above(tmp_path, capsys):
    top = tmp_path / "set"
    classes(top)
    (top / "c").symlink_to("/")
    assert image_folder.read_folder(top, 8).classes == ("a", "b")
    assert "1 linked to a folder above it (c)" in capsys.readouterr().err


def test_links_that_lead_to_each_other_end(tmp_path):
    """Each of ten folders has a link to each other one, which would make millions of paths."""
    top = tmp_path / "set"
    classes(top)
    for i in range(10):
        (top / "a" / str(i)).mkdir()
    for i in range(10):
        for j in range(10):
            (top / "a" / str(i) / f"to{j}").symlink_to(top / "a" / str(j))
    assert len(image_folder.list_images(top)) == 2 * COUNT


def test_the_field_is_described():
    assert "data.outside" in (ROOT / "docs" / "pages" / "howto" / "data.md").read_text()
