"""Data that change while a process runs, as in a notebook: what is read next is what the files say now."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.configs import change
from tests.data.boxed import CAT, DOG, write_voc
from tl_jax.config import recipe, schema
from tl_jax.data.fingerprint import folder_stamp
from tl_jax.data.registry import DatasetOptions, load_dataset
from tl_jax.tasks.detection import Detection
from tl_jax.tasks.image_classification import ImageClassification
from tl_jax.tasks.text_classification import TextClassification

pytestmark = pytest.mark.fast


def config(top, name, *fields):
    return schema.freeze(change(recipe.get_config(), ("data.name", name), ("data.dir", str(top)), *fields))


def test_a_label_that_was_mended_counts_in_the_next_run(tmp_path):
    for i in range(20):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(tmp_path / f"{i}.png")
    rows = [f"{i}.png,{'ab'[i % 2]}" for i in range(20)]
    (tmp_path / "index.csv").write_text("\n".join(["file,label", *rows]))
    assert ImageClassification.load_source(config(tmp_path, "index"), 4).classes == ("a", "b")
    (tmp_path / "index.csv").write_text("\n".join(["file,label", *rows]).replace(",b", ",c"))
    for place in (tmp_path, tmp_path / "index.csv"):
        assert ImageClassification.load_source(config(place, "index"), 4).classes == ("a", "c")


def test_boxes_people_and_texts_are_read_anew_once_they_change(tmp_path):
    boxes = config(tmp_path / "voc", "voc", ("task", "detection"))
    write_voc(tmp_path / "voc", {name: [CAT] for name in "abcdef"}, {"train": "abcd", "test": "ef"})
    assert Detection.load_source(boxes, 64) is Detection.load_source(boxes, 64)
    xml = tmp_path / "voc" / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("cat", "dog"))
    assert Detection.load_source(boxes, 64).classes == ("cat", "dog") == (CAT[0], DOG[0])

    for i in range(8):
        (tmp_path / "people" / f"p{i // 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "people" / f"p{i // 2}" / f"{i}.png")
    people = DatasetOptions("folder", str(tmp_path / "people"), 8)
    assert load_dataset("people", people).identities == ("p0", "p1", "p2", "p3")
    (tmp_path / "people" / "p3").rename(tmp_path / "people" / "q")
    assert load_dataset("people", people).identities == ("p0", "p1", "p2", "q")

    (tmp_path / "texts").mkdir()
    file, lines = tmp_path / "texts" / "train.jsonl", [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(20)]
    file.write_text("\n".join(map(json.dumps, lines)))
    texts = config(tmp_path / "texts", "jsonl", ("task", "text"))
    assert TextClassification.load_data(texts).classes == ("a", "b")
    file.write_text(file.read_text().replace('"b"', '"c"'))
    assert TextClassification.load_data(texts).classes == ("a", "c")


def test_a_link_that_leads_nowhere_hides_no_change(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "gone")
    before = folder_stamp(str(tmp_path))
    (tmp_path / "b.png").write_bytes(b"x")
    assert folder_stamp(str(tmp_path)) != before


def test_links_to_a_folder_above_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    before = folder_stamp(str(tmp_path))
    (tmp_path / "a" / "x.png").write_bytes(b"x")
    assert folder_stamp(str(tmp_path)) != before
