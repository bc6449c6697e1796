"""Predictions for many inputs: a table with a row for each, damaged ones among them, and features beside it."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import absl.flags
import numpy as np
import pytest
from PIL import Image

from tl_jax import cli, predictions
from tl_jax.data.decode import DEFAULT_DECODING
from tl_jax.data.text import Columns, read_unlabelled
from tl_jax.tasks import image_inputs
from tl_jax.utils.errors import UserError

ROWS = [
    {"input": "a,b.png", "probabilities": {"cat": 0.25, "dög": 0.75, "fox": 0.0}, "embedding": np.array([1.0, 2.0])},
    {"input": "bad.png", "error": "cannot decode bad.png; replace it"},
    {
        "input": 'the "third"\nline',
        "probabilities": {"cat": 0.5, "dög": 0.2, "fox": 0.3},
        "embedding": np.array([3, 4]),
    },
]


def task(rows, classes=("cat", "dög", "fox"), columns=("probabilities",), others=None):
    """A task that has the rows as predictions, given one by one, and other columns of its inputs."""
    return SimpleNamespace(
        classes=classes, prediction_columns=columns, read_inputs=lambda inputs: rows,
        input_columns=lambda inputs: others,
        predict=lambda variables, inputs, embeddings: (dict(row) for row in inputs),
    )  # fmt: skip


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_other_columns_of_a_table_follow_the_input(tmp_path):
    others = [{"id": "7", "label": "cat", "probabilities": "mine"}, {}, {"id": "9", "label": "", "input_label": "x"}]
    path = predictions.write(task(ROWS, others=others), None, ["x"], tmp_path / "p.csv", top=1).path
    rows = read_csv(path)
    renamed = ["input_input_label", "input_probabilities", "input_label"]
    assert list(rows[0]) == ["input", "id", *renamed, "label", "probability", "error"]
    assert [(row["id"], row["input_input_label"], row["input_label"], row["label"]) for row in rows] == [
        ("7", "cat", "", "dög"), ("", "", "", ""), ("9", "", "x", "cat"),
    ]  # fmt: skip
    lines = predictions.write(task(ROWS, others=others), None, ["x"], tmp_path / "p.jsonl").path.read_text()
    first, *_, last = map(json.loads, lines.splitlines())
    assert (first["id"], first["input_probabilities"], first["probabilities"]["cat"]) == ("7", "mine", 0.25)
    assert last["id"] == "9" and list(last)[:2] == ["input", "id"]


def test_a_csv_table_has_a_row_for_each_input(tmp_path, caplog):
    written = predictions.write(task(ROWS), None, ["x"], tmp_path / "new" / "p.csv", embeddings=True)
    assert (written.inputs, written.damaged, written.path) == (3, 1, tmp_path / "new" / "p.csv")
    first, bad, third = read_csv(written.path)
    assert (first["input"], first["label"], float(first["probability"])) == ("a,b.png", "dög", 0.75)
    assert [float(first[f"probability_{name}"]) for name in ("cat", "dög", "fox")] == [0.25, 0.75, 0.0]
    assert bad["error"] == ROWS[1]["error"] and bad["label"] == bad["probability_cat"] == "" and first["error"] == ""
    assert third["input"] == 'the "third"\nline' and third["label"] == "cat"
    found = np.load(tmp_path / "new" / "p.embeddings.npy")
    np.testing.assert_array_equal(found, np.array([[1, 2], [np.nan, np.nan], [3, 4]], np.float32))


def test_only_the_most_likely_classes_are_kept_if_asked(tmp_path):
    first, _, third = read_csv(predictions.write(task(ROWS), None, ["x"], tmp_path / "p.csv", top=2).path)
    assert list(first) == ["input", "label", "probability", "label_2", "probability_2", "error"]
    assert (first["label_2"], float(first["probability_2"])) == ("cat", 0.25)
    assert (third["label"], third["label_2"], float(third["probability_2"])) == ("cat", "fox", 0.3)
    lines = predictions.write(task(ROWS), None, ["x"], tmp_path / "p.jsonl", top=2).path.read_text().splitlines()
    first, bad, _ = map(json.loads, lines)
    assert first == {
        "input": "a,b.png", "label": "dög", "probability": 0.75, "probabilities": {"dög": 0.75, "cat": 0.25}
    }  # fmt: skip
    assert bad == ROWS[1]


def test_boxes_and_words_are_json_in_a_cell(tmp_path):
    row = {"input": "a.png", "boxes": [{"class": "cat", "score": 0.5, "box": [1.0, 2.0, 3.0, 4.0]}]}
    (found,) = read_csv(predictions.write(task([row], columns=("boxes",)), None, ["x"], tmp_path / "p.csv").path)
    assert list(found) == ["input", "boxes", "error"] and json.loads(found["boxes"]) == row["boxes"]


def test_a_name_that_is_no_utf_8_does_not_end_a_table(tmp_path):
    row = {**ROWS[0], "input": "\udcff.jpg"}
    for name in ("p.csv", "p.jsonl"):
        written = predictions.write(task([row]), None, ["x"], tmp_path / name)
        assert r"\udcff.jpg" in written.path.read_text()


def test_inputs_are_whatever_gives_them(tmp_path):
    image = Image.new("RGB", (3, 2))
    for inputs in (image, (each for each in ["x"]), np.zeros((2, 2, 3), np.uint8), "x", tmp_path):
        assert predictions.write(task(ROWS), None, inputs, tmp_path / "p.csv").inputs == 3
    for inputs in (None, 5):
        with pytest.raises(UserError, match="input (None|5): not supported; pass files, texts or arrays"):
            predictions.predict(task(ROWS), None, inputs)


def test_images_are_numbered_and_opened_ones_are_read_as_their_files(tmp_path):
    batch = np.zeros((3, 4, 4, 3), np.uint8)
    assert [image.name for image in image_inputs.list_inputs([batch, batch[0]])] == [f"image {i}" for i in range(4)]
    turned = Image.Exif()
    turned[274] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 4)).astype(np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png", exif=turned)
    (opened,), (named,) = (
        image_inputs.list_inputs(each) for each in (Image.open(tmp_path / "a.png"), tmp_path / "a.png")
    )
    read = [image_inputs.read_pixels(image, DEFAULT_DECODING) for image in (opened, named)]
    assert read[0].shape == (6, 4, 3)
    np.testing.assert_array_equal(*read)
    with pytest.raises(UserError, match="more than 8 bits"):
        image_inputs.list_inputs(Image.fromarray(pixels[..., 0].astype(np.uint16)))


def test_features_have_rows_for_inputs_that_were_damaged_before_any_was_read(tmp_path):
    predictions.write(task([ROWS[1], ROWS[1], ROWS[0]]), None, ["x"], tmp_path / "p.csv", embeddings=True)
    assert np.isnan(np.load(tmp_path / "p.embeddings.npy")).all(1).tolist() == [True, True, False]


def test_nothing_is_written_if_nothing_can_be_read(tmp_path):
    with pytest.raises(UserError, match="2 of 2 inputs cannot be read: cannot decode bad.png"):
        predictions.write(task([ROWS[1], ROWS[1]]), None, ["x"], tmp_path / "p.csv", embeddings=True)
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_an_input_or_no_table_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("text\nhello\n")
    with pytest.raises(UserError, match="x.csv: also an input"):
        predictions.write(task(ROWS), None, [str(tmp_path / "x.csv")], tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == "text\nhello\n"
    with pytest.raises(UserError, match="p.xlsx: unknown suffix; use .csv or .jsonl"):
        predictions.write(task(ROWS), None, ["x"], tmp_path / "p.xlsx")


def test_images_are_named_by_tables_arrays_and_folders(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 6, 5, 3)).astype(np.uint8)
    (tmp_path / "some" / "deeper").mkdir(parents=True)
    Image.fromarray(pixels[0]).save(tmp_path / "some" / "deeper" / "a.png")
    (tmp_path / "list.csv").write_text("id,file\n1,some/deeper/a.png\n2,\n3,~$lost.png\n4\n")
    (tmp_path / "list.jsonl").write_text('{"file": "some/deeper/a.png"}\nnonsense\n')
    given = [tmp_path / "some", tmp_path / "list.csv", str(tmp_path / "list.jsonl"), pixels[1:], pixels[0, :, :, 0]]
    images = image_inputs.list_inputs([*given, Image.fromarray(pixels[2])])
    rows = list(
        image_inputs.predict_rows(images, DEFAULT_DECODING, 4, np.copy, lambda _, found: [{"is": p} for p in found])
    )
    expected = [pixels[0]] * 2 + ["", "", ""] + [pixels[0], "", pixels[1], pixels[2]]
    expected += [np.repeat(pixels[0, :, :, :1], 3, axis=2), pixels[2]]
    assert len(rows) == len(expected)
    for row, right in zip(rows, expected, strict=True):
        assert ("error" in row) == isinstance(right, str)
        np.testing.assert_array_equal(row.get("is", ""), right)
    assert "list.csv:3: the text in 'file' is empty" in rows[2]["error"] and "lost.png" in rows[3]["error"]
    assert "list.csv:5: 1 columns, not 2" in rows[4]["error"] and "list.jsonl:2: not JSON" in rows[6]["error"]
    assert rows[1]["input"] == str(tmp_path / "some/deeper/a.png")
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros(3, np.uint8)):
        with pytest.raises(UserError, match=r"pass uint8 \(H, W, 3\)"):
            image_inputs.list_inputs(wrong)


@pytest.mark.parametrize(
    ("kind", "content", "texts"),
    [
        ("csv", 'text,n\na,1\nb\n"c, d",2\n ,3\ne"x"e,4\n', ["a", None, "c, d", None, 'e"x"e']),
        ("csv", 'text\n"a" b\nc\n"d"\n', [None, "c", "d"]),
        ("tsv", "text\tn\na\t1\nb\nc\t2\n", ["a", None, "c"]),
        ("jsonl", '{"text": "a"}\n{"text": null}\n[1]\n{"text": "b"}\n{"other": 1}\n', ["a", None, None, "b", None]),
        ("lines", "a\n\nb\n", ["a", "b"]),
        ("jsonl", '[{"text": "a"}, {"text": null}, {"text": "b"}]', ["a", None, "b"]),  # all in one line
    ],
)
def test_a_damaged_line_has_its_error_and_the_others_their_text(tmp_path, kind, content, texts):
    (tmp_path / "x").write_text(content)
    rows = read_unlabelled(tmp_path / "x", kind, Columns())
    assert [None if isinstance(row, UserError) else row.text for row in rows] == texts
    assert all(str(tmp_path / "x:") in str(row) for row in rows if isinstance(row, UserError))


def test_predictions_are_a_table_with_images_in_a_notebook(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    rows = [
        {"input": str(tmp_path / "a.png"), "probabilities": {"<b>": 0.75, "c": 0.25}},
        {"input": "<script>", "error": "cannot <i>decode</i>"},
        {"input": "x", "boxes": [{"class": "cat", "score": 0.5, "box": [0, 0, 1, 1]}]},
        {"input": "Ada", "entities": [{"text": "Ada", "kind": "PER"}]},
        {"input": "y", "person": "Ann"},
    ]
    found = predictions.Predictions(map(predictions.as_prediction, rows))
    shown = found._repr_html_()
    assert shown.count("<tr>") == 6 and shown.count('<img src="data:image/png;base64,') == 1
    assert "<script>" not in shown and "<b>" not in shown and "&lt;b&gt; 0.750" in shown
    assert repr(found).splitlines()[1:] == [
        "<script>: error: cannot <i>decode</i>", "x: cat 0.50", "Ada: Ada (PER)", "y: Ann"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=eval", "--output=x.csv"], "--output has an effect with --mode=predict only"),
        (["--mode=predict", "--top=3"], "--top and --embeddings apply to --output"),
    ],
)
def test_flags_that_have_no_effect_are_refused(flags, message):
    values = absl.flags.FlagValues()
    cli.define_flags(values)
    values(["run.py", *flags])
    with pytest.raises(UserError, match=message):
        cli._check_flags(values, Path("run"))
