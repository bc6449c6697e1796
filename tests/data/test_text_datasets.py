"""Text sets by name: TFDS files, and what is said where a name, a folder or a column is wrong."""

import pytest

from tl_jax.data import text_datasets
from tl_jax.data.text import Columns
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def tfds_folder(folder, parts):
    """Write a TFDS set of titles and texts with TFDS' own writer, without TensorFlow."""
    import tensorflow_datasets as tfds

    class Reviews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "reviews"

        def _info(self):
            label = tfds.features.ClassLabel(names=["bad", "good"])
            features = {"title": tfds.features.Text(), "body": tfds.features.Text(), "label": label}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {name: self._generate_examples(labels) for name, labels in parts.items()}

        def _generate_examples(self, labels):
            for i, label in enumerate(labels):
                yield i, {"title": f"Title {i} é", "body": "good" if label else "bad", "label": label}

    Reviews(data_dir=folder, file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )


def test_a_tfds_set_is_read_as_pairs(tmp_path):
    tfds_folder(tmp_path, {"train": [0, 1, 1], "test": [1], "validation": [-1]})
    source = text_datasets.load("reviews", str(tmp_path), Columns(text=("title", "body")))
    assert source.name == "reviews:1.0.0" and source.classes == ("bad", "good") and source.validation is None
    assert {(title.startswith("Title"), body) for title, body in source.train.inputs} == {(True, "bad"), (True, "good")}
    for (_, body), label in zip(source.train.inputs, source.train.labels, strict=True):
        assert source.classes[label] == body
    one = text_datasets.load("reviews", str(tmp_path), Columns(text=("title",)))
    assert sorted(one.train.inputs) == ["Title 0 é", "Title 1 é", "Title 2 é"]


def test_a_set_without_a_test_part_gives_a_fifth(tmp_path):
    tfds_folder(tmp_path, {"train": [0, 1] * 10})
    source = text_datasets.load("reviews", str(tmp_path), Columns(text=("body",)))
    assert len(source.train.labels) == 16 and source.test_origin == "a fifth held out"


def test_wrong_names_are_said(tmp_path):
    tfds_folder(tmp_path, {"train": [0, 1] * 10})
    with pytest.raises(UserError, match=r"has .*title.*; set config.data.text"):
        text_datasets.load("reviews", str(tmp_path))
    with pytest.raises(UserError, match="its class label"):
        text_datasets.load("reviews", str(tmp_path), Columns(text=("title",), label="body"))
    with pytest.raises(UserError, match="no data set 'review' under .*; did you mean 'reviews'"):
        text_datasets.load("review", str(tmp_path))
    with pytest.raises(UserError, match="data.name=tsv needs files"):
        text_datasets.load("tsv")


def test_a_set_of_which_some_examples_have_no_label_is_refused(tmp_path):
    tfds_folder(tmp_path, {"train": [0, 1, -1], "test": [1]})
    with pytest.raises(UserError, match="1 of 3 train examples have no label"):
        text_datasets.load("reviews", str(tmp_path), Columns(text=("body",)))
