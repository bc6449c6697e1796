"""What data are is seen from the data: folders, files, arrays and tables."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.boxed import CAT, write_voc
from tests.data.test_dicom import STORED
from tests.data.test_dicom import write as write_dicom
from tl_jax.data import Dataset, Split
from tl_jax.data.decode import Decoding
from tl_jax.data.recognize import RecognizedData, recognize
from tl_jax.data.registry import DatasetOptions, load_dataset
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
PIXELS = np.arange(10 * 6 * 6, dtype=np.uint8).reshape(10, 6, 6)
LABELS = [f"{i % 2}" for i in range(10)]


def load(found: RecognizedData, size: int = 6):
    return load_dataset(found.inputs, DatasetOptions(found.name, found.folder, size=size))


def test_folders_are_known_by_what_lies_in_them(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    assert recognize(tmp_path / "photos")[:2] == ("images", "folder")
    write_voc(tmp_path / "voc", {"a": [CAT]}, {"train": "a"})
    assert recognize(str(tmp_path / "voc"))[:2] == ("boxes", "voc")
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "instances_train.json").write_text("{}")
    assert recognize(tmp_path / "coco")[:2] == ("boxes", "coco")
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed" / "index.csv").write_text("file,label\n")
    assert recognize(tmp_path / "listed")[:2] == ("images", "index")


@pytest.mark.parametrize(
    "name,content,expected",
    [
        ("mail.csv", "text,label\nhello,spam\n", ("texts", "csv", False)),
        ("mail.tsv", "text\tlabel\nhello\tspam\n", ("texts", "tsv", False)),
        ("mail.jsonl", json.dumps({"text": "hello", "label": "spam"}), ("texts", "jsonl", False)),
        ("news.conll", "Ada B-PER\nwrote O\n\nBob B-PER\n", ("texts", "conll", True)),
        ("images.csv", "file,label\na.png,cat\n", ("images", "index", False)),
    ],
)
def test_files_are_known_by_what_stands_in_them(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    found = recognize(tmp_path / name)
    assert (found.inputs, found.name, found.tags) == expected and found.folder == str(tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / f"train.{name.partition('.')[2]}").write_text(content)
    assert recognize(tmp_path / "folder")[:2] == expected[:2]


def test_arrays_are_a_data_set_with_a_fifth_held_out():
    found = recognize((PIXELS, LABELS))
    assert found == recognize((PIXELS.copy(), list(LABELS))) != recognize((PIXELS[::-1], LABELS))  # by their content
    source = load(found)
    assert source.classes == ("0", "1") and source.train.inputs.shape == (8, 6, 6, 3) and len(source.test.labels) == 2
    source = load(recognize(((PIXELS, np.array(LABELS)[:, None]), (PIXELS[:4], LABELS[:4]))))  # as Keras gives them
    assert len(source.train.labels) == 10 and len(source.test.labels) == 4


def test_numbers_are_in_the_order_of_their_values():
    labels = [str(i) for i in (2, 10, 1) * 5]
    assert load(recognize((np.zeros((15, 4, 4, 3), np.uint8), labels))).classes == ("1", "2", "10")


def test_tables_of_files_and_of_texts(tmp_path):
    for i in range(10):
        Image.fromarray(np.full((8 + i, 8, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    files = [tmp_path / f"{i}.png" for i in range(10)]
    found = recognize({"file": files, "label": LABELS})
    assert load(found, 4).train.inputs.shape == (8, 4, 4, 3) and load(found, 8).train.inputs.shape == (8, 8, 8, 3)
    texts = recognize({"text": [f"text {i}" for i in range(10)], "label": LABELS})
    assert texts.inputs == "texts" and load(texts).classes == ("0", "1")
    assert recognize(([f"text {i}" for i in range(10)], LABELS)).inputs == "texts"


@pytest.mark.parametrize(
    "data,message",
    [
        ("nowhere", "no folder or file nowhere; pass a folder FOLDER/CLASS/IMAGE"),
        (3, "data of type int are not supported"),
        ((PIXELS / 255.0, LABELS), "images: unsupported type float64 .*255 . images"),
        ((PIXELS, LABELS[:3]), "10 examples have 3 labels"),
        ({"file": ["a.png"], "class": ["a"]}, "needs the columns file or text, and label, not file, class"),
    ],
)
def test_what_is_not_known_is_said(data, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        recognize(data)


def test_a_dataset_of_ones_own_is_taken_as_it_is():
    split = Split(np.repeat(PIXELS[..., None], 3, axis=-1), np.arange(10, dtype=np.int32) % 2)
    found = recognize(Dataset("mine", split, split, ("a", "b")))
    assert found.inputs == "images" and load(found).name == "mine"


def test_a_table_of_dicom_files_is_read_as_a_folder_is(tmp_path):
    for i in range(20):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        write_dicom(tmp_path / "ab"[i % 2] / f"{i}.dcm", STORED + 10 * i, PatientID=f"p{i}" if i > 5 else f"p{i % 2}")
    files = sorted(tmp_path.rglob("*.dcm"))
    labels = [file.parent.name for file in files]
    decoding = Decoding(windows=("lung", "bone", "bone"))
    found = recognize({"file": files, "label": labels})
    table = load_dataset("images", DatasetOptions(found.name, size=8, decoding=decoding))
    folder = load_dataset("images", DatasetOptions("folder", str(tmp_path), size=8, decoding=decoding))
    np.testing.assert_array_equal(table.train.inputs[:], folder.train.inputs[:])
    assert not set(table.train.groups) & set(table.test.groups)
