"""What is written of single test examples: counts by hand, mistakes in their order, texts and pictures as they are."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from tl_jax.data.dataset import Split
from tl_jax.metrics.classification import Predictions
from tl_jax.tasks import detection, error_analysis

pytestmark = pytest.mark.fast
CLASSES = ("a", "b")
TESTED = Predictions(
    np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.05, 0.95], [0.6, 0.4]]), np.array([0, 1, 0, 0, 1])
)


def opened(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_pictures_are_counted_and_the_surest_mistakes_come_first():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((1, 4, 6, 3), 40, np.uint8)
    found = error_analysis.image_details(CLASSES, images, TESTED)
    assert json.loads(json.dumps(found)) == found
    assert found["confusion"] == [[0, 0, 1], [0, 1, 2], [1, 0, 1], [1, 1, 1]] and found["examples"] == 5
    assert [row["probability"] for row in found["mistakes"]] == [0.95, 0.7, 0.6]
    assert [(row["label"], row["prediction"]) for row in found["mistakes"]] == [("a", "b"), ("a", "b"), ("b", "a")]
    assert [opened(row["picture"])[0, 0, 0] for row in found["mistakes"]] == [120, 80, 160]
    assert found["right"] == "11000"
    assert found["roc"]["auc"] == pytest.approx(3 / 6) and found["roc"]["positive"] == "b"  # pairs by hand


def test_grey_and_large_pictures_are_made_small():
    assert opened(error_analysis.thumbnail(np.full((8, 9, 1), 7, np.uint8))).tolist() == [[7] * 9] * 8
    large = error_analysis.thumbnail(np.full((400, 200, 3), 7, np.uint8), side=320)
    assert large.startswith("data:image/jpeg") and opened(large).shape == (320, 160, 3)


def test_texts_are_found_again_in_the_order_they_were_tested_in():
    texts = ["zero", ("one", "two"), "x" * 1000, "three", "four"]
    found = error_analysis.text_details(CLASSES, texts, np.array([4, 3, 1, 2, 0]), TESTED)
    assert [row["text"] for row in found["mistakes"]] == ["x" * 399 + "…", "one ||| two", "zero"]
    assert found["right"] == "00011"  # of the examples in the order of the test part: 3 and 4 were tested first
    assert [row["text"] for row in error_analysis.text_details(CLASSES, texts, None, TESTED)["mistakes"]][0] == "three"


def test_tags_are_counted_and_the_worst_sentence_comes_first():
    labels, tagged = [["a", "a"], ["b", "b", "a"]], [["a", "b"], ["a", "a", "a"]]
    found = error_analysis.tag_details(CLASSES, [["u", "v", "w", "cut"], ["s", "t"]], np.array([1, 0]), labels, tagged)
    assert found["confusion"] == [[0, 0, 2], [0, 1, 1], [1, 0, 2]]
    assert found["sentences"][0] == {"words": [("u", "b", "a"), ("v", "b", "a"), ("w", "a", "a")], "wrong": 2}
    assert [row["wrong"] for row in found["sentences"]] == [2, 1]


def test_nothing_is_said_where_there_are_no_numbers():
    nothing = Predictions(np.full((1, 2), np.nan), np.array([0]))
    assert error_analysis.image_details(CLASSES, np.zeros((1, 2, 2, 3), np.uint8), nothing) == {}


def test_boxes_are_shares_of_the_picture_and_unsure_ones_are_left_out():
    part = Split(
        np.zeros((1, 20, 40, 3), np.uint8), np.array([[[0, 0, 10, 10, 1, 0], [0, 0, 0, 0, -1, 0]]], np.float32)
    )
    rows = np.array([[10, 5, 30, 15, 0, 0.9], [0, 0, 40, 20, 1, 0.2]], np.float32)
    (found,) = detection.example_boxes(CLASSES, part, 0.3, [rows])["detections"]
    assert [row["box"] for row in found["boxes"]] == [[0.25, 0.25, 0.75, 0.75]] and found["aspect"] == 2
    assert found["labels"] == [{"class": "b", "box": [0.0, 0.0, 0.25, 0.5]}]
