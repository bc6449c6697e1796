"""Sets too large to be kept decoded: the same pictures, batches and results, decoded when they are read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_pipeline import tfds_folder
from tl_jax import training
from tl_jax.config import recipe
from tl_jax.data import image_folder, loader, tfds
from tl_jax.data.dataset import EncodedImages, Subset, is_encoded
from tl_jax.tasks.feature_cache import content_hash
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Return class folders with pictures of noise, of differing sizes."""
    top, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("one", "two"):
        (top / name).mkdir()
        for i in range(10):
            side = 20 + i
            Image.fromarray(rng.integers(0, 256, (side, 24, 3), np.uint8)).save(top / name / f"{i}.png")
    return top


@pytest.fixture
def both(photos):
    """Return the set kept decoded, and the same one decoded at each reading."""
    return image_folder.read_folder(photos, 16), image_folder.read_folder(photos, 16, max_bytes=100)


def test_pictures_are_the_same(both):
    kept, streamed = both
    assert not is_encoded(kept.train.inputs) and is_encoded(streamed.train.inputs)
    assert isinstance(streamed.train.inputs, Subset) and isinstance(streamed.train.inputs.array, EncodedImages)
    for part in ("train", "test"):
        a, b = getattr(kept, part), getattr(streamed, part)
        assert b.inputs.shape == a.inputs.shape and b.inputs.dtype == a.inputs.dtype
        np.testing.assert_array_equal(b.inputs[:], a.inputs[:])
        np.testing.assert_array_equal(b.inputs[np.array([3, 0])], a.inputs[np.array([3, 0])])
        np.testing.assert_array_equal(b.inputs[1], a.inputs[1])
        assert b.inputs[np.array([], int)].shape == (0, 16, 16, 3)


def test_batches_are_the_same_from_any_step_on(both):
    streams = [loader.Stream(part.inputs, part.labels, 7, 6) for part in (source.train for source in both)]
    for first, stop in ((0, 5), (3, 11)):
        each = [list(stream.batches(first, stop)) for stream in streams]
        assert len(each[0]) == len(each[1]) == stop - first
        for step, (a, b) in enumerate(zip(*each, strict=True), start=first):
            for name, values in streams[0](step).items():
                np.testing.assert_array_equal(a[name], values)
                np.testing.assert_array_equal(b[name], values)


def test_evaluation_sees_the_same(both):
    for a, b in zip(*(loader.eval_batches(source.train, 6) for source in both), strict=True):
        for name in ("inputs", "label", "mask"):
            np.testing.assert_array_equal(a[name], b[name])


def test_what_is_computed_of_them_is_kept_by_files_and_rows(both, photos):
    images = both[1].train.inputs
    again = image_folder.read_folder(photos, 16, max_bytes=100).train.inputs
    assert content_hash(images) == content_hash(again)
    assert content_hash(images) != content_hash(Subset(images, np.arange(3)))
    assert content_hash(images) != content_hash(image_folder.read_folder(photos, 12, max_bytes=100).train.inputs)


def test_a_picture_that_cannot_be_decoded_is_named(both, photos, tmp_path):
    for path in photos.glob("*/*.png"):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / path.parent.name / path.name).write_bytes(path.read_bytes())
    source = image_folder.read_folder(tmp_path, 16, max_bytes=100)
    for path in tmp_path.glob("two/*.png"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot decode .*two"):
        list(loader.Stream(source.train.inputs, source.train.labels, 0, 8).batches(0, 4))


def test_sets_of_tfds(tmp_path):
    tfds_folder(tmp_path, {"train": [0, 1, 1, 0, 1], "test": [1, 0]})
    kept, streamed = (tfds.load("odd", str(tmp_path), 16, most) for most in (1e9, 1e2))
    assert is_encoded(streamed.train.inputs) and not is_encoded(kept.train.inputs)
    np.testing.assert_array_equal(streamed.train.inputs[:], kept.train.inputs[:])
    np.testing.assert_array_equal(streamed.test.labels, kept.test.labels)
    np.testing.assert_array_equal(streamed.train.inputs[np.array([4, 1])], kept.train.inputs[np.array([4, 1])])


@pytest.mark.slow
def test_runs_end_with_the_same_weights(photos, tmp_path):
    config = recipe.get_config()
    config.model.name, config.init.source, config.input.size = "resnet8", "tl_jax", 16
    config.data.name, config.data.dir, config.data.validation = "folder", str(photos), 0.2
    config.augment.flip, config.batch_size, config.eval_batch_size, config.epochs = True, 4, 8, 3.0
    summaries = []
    for gigabytes in (1.0, 0.0):
        config.data.gigabytes = gigabytes
        summaries.append(training.train(config, tmp_path / str(gigabytes)))
    for name in ("metrics", "examples_evaluated", "steps"):
        assert summaries[0][name] == pytest.approx(summaries[1][name], rel=1e-4)
