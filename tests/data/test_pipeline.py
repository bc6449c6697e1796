"""Batches, splits, sources, augmentation and scaling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tl_jax.data import dataset, loader, preprocess, synthetic
from tl_jax.data import tfds as tfds_module
from tl_jax.data.augment import AugmentConfig, augment
from tl_jax.data.dataset import hold_out
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def test_every_example_once_before_any_twice():
    n, size = 10, 4
    stream = np.concatenate([loader.train_indices(3, n, size, step) for step in range(10)])
    for epoch in range(4):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert list(stream[:n]) != list(stream[n : 2 * n])


def test_a_set_smaller_than_a_batch():
    assert np.bincount(loader.train_indices(0, 3, 8, 0), minlength=3).min() >= 2


def test_order_depends_on_seed_and_step_only():
    a = loader.train_indices(0, 100, 16, 7)
    assert list(a) == list(loader.train_indices(0, 100, 16, 7))
    assert list(a) != list(loader.train_indices(1, 100, 16, 7))


def test_eval_batches_hold_every_example_once():
    split = tfds_module.Split(np.arange(10, dtype=np.uint8)[:, None, None, None], np.arange(10, dtype=np.int32))
    seen = list(loader.eval_batches(split, 4))
    assert {len(b["label"]) for b in seen} == {4}
    labels = np.concatenate([b["label"][b["mask"] == 1] for b in seen])
    assert list(labels) == list(range(10))


def test_validation_part_is_drawn_by_seed_and_disjoint():
    split = tfds_module.Split(np.arange(100, dtype=np.uint8)[:, None, None, None], np.arange(100, dtype=np.int32) % 3)
    train, validation = dataset.split_validation(split, 0.2, seed=1)
    held, other = validation.inputs[:].ravel(), dataset.split_validation(split, 0.2, seed=2)[1].inputs[:].ravel()
    assert len(held) == 20 and list(held) != list(other)
    assert sorted([*train.inputs[:].ravel(), *held]) == list(range(100))


def test_thinning_by_class():
    split = tfds_module.digits().train
    few = dataset.subsample_train(split, 0, 5, 10, seed=0)
    assert list(np.bincount(few.labels)) == [5] * 10
    with pytest.raises(UserError, match="per_class=500, but class"):
        dataset.subsample_train(split, 0, 500, 10, seed=0)
    with pytest.raises(UserError, match="train_examples=5000"):
        dataset.subsample_train(split, 5000, 0, 10, seed=0)


def test_digits_test_part_is_a_fixed_third():
    a, b = tfds_module.digits(), tfds_module.digits()
    assert len(a.train.labels) + len(a.test.labels) == 1797 and len(a.test.labels) == 599
    np.testing.assert_array_equal(a.test.inputs, b.test.inputs)
    assert a.train.inputs.shape[1:] == (8, 8, 3) and a.train.inputs.max() == 255


def test_gratings_are_learnable_by_a_linear_model_on_their_spectrum():
    source = synthetic.draw_gratings()

    def spectrum(images):
        return np.abs(np.fft.fft2(images.mean(-1)))[:, :8, :].reshape(len(images), -1)

    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=200).fit(spectrum(source.train.inputs), source.train.labels)
    assert model.score(spectrum(source.test.inputs), source.test.labels) > 0.9


def test_an_unknown_set_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match="no data set 'no_such_set'.*download_and_prepare"):
        tfds_module.load("no_such_set", str(tmp_path))
    with pytest.raises(UserError, match="no folder"):
        tfds_module.load("cifar10", str(tmp_path / "absent"))


@pytest.mark.data
def test_mnist_is_read_as_three_channels(data_dir):
    source = tfds_module.load("mnist", str(data_dir / "tfds"))
    assert source.train.inputs.shape == (20000, 28, 28, 3)
    assert source.test.inputs.shape == (10000, 28, 28, 3)
    np.testing.assert_array_equal(source.train.inputs[..., 0], source.train.inputs[..., 2])


@pytest.mark.data
def test_cifar10_equals_what_tfds_itself_reads(data_dir):
    import tensorflow_datasets as tfds

    source = tfds_module.load("cifar10", str(data_dir / "tfds"))
    assert source.classes[0] == "airplane" and len(source.classes) == 10
    assert np.bincount(source.train.labels).tolist() == [5000] * 10
    peer = tfds.data_source("cifar10", split="test", data_dir=str(data_dir / "tfds"))
    for i in (0, 17, 9999):
        example = peer[i]
        assert example["label"] == source.test.labels[i]
        # JPEG decoders may differ by rounding.
        assert np.abs(example["image"].astype(int) - source.test.inputs[i]).max() <= 2


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 9, 3)).astype(np.uint8)


def test_no_augmentation_is_the_identity(pictures):
    assert augment(pictures, jax.random.key(0), AugmentConfig()) is pictures


def test_flip_mirrors_some_and_leaves_some(pictures):
    out = np.asarray(augment(jnp.asarray(pictures), jax.random.key(0), AugmentConfig(flip=True)))
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(out, pictures, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(out, pictures, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True)) and any(mirrored) and any(kept)


def test_crop_shifts_by_at_most_the_border(pictures):
    out = np.asarray(augment(jnp.asarray(pictures), jax.random.key(0), AugmentConfig(crop_pad=2)))
    padded = np.pad(pictures, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    shifts = set()
    for a, b in zip(out, padded, strict=True):
        found = [(i, j) for i in range(5) for j in range(5) if np.array_equal(a, b[i : i + 9, j : j + 9])]
        assert found
        shifts.add(found[0])
    assert len(shifts) > 1


def test_rotation_turns_about_the_centre_and_stays_in_range(pictures):
    turned = np.asarray(augment(jnp.asarray(pictures), jax.random.key(3), AugmentConfig(rotate=40.0)))
    assert turned.shape == pictures.shape and turned.min() >= 0 and turned.max() <= 255
    np.testing.assert_allclose(turned[:, 4, 4], pictures[:, 4, 4], atol=1e-2)
    assert np.abs(turned - pictures).max() > 20


def test_augmentation_is_a_function_of_the_key(pictures):
    how = AugmentConfig(flip=True, crop_pad=2, rotate=10.0)
    a, b = (np.asarray(augment(jnp.asarray(pictures), jax.random.key(k), how)) for k in (1, 1))
    np.testing.assert_array_equal(a, b)
    assert np.any(a != np.asarray(augment(jnp.asarray(pictures), jax.random.key(2), how)))


def test_scalings_by_hand():
    pixel = np.array([[[[255, 0, 51]]]], np.uint8)
    expected = {
        "unit": [1.0, 0.0, 0.2],
        "tf": [1.0, -1.0, -0.6],
        "caffe": [51 - 103.939, -116.779, 255 - 123.68],
        "torch": [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(np.asarray(preprocess.scale(pixel, name))[0, 0, 0], value, rtol=1e-6)


def test_fit_keeps_the_aspect_ratio_and_leaves_the_right_size_alone(pictures):
    wide = np.random.default_rng(0).integers(0, 256, (1, 20, 40, 3)).astype(np.uint8)
    assert preprocess.resize_and_crop(wide, 8, 0.875, "bilinear").shape == (1, 8, 8, 3)
    assert preprocess.resize_and_crop(pictures, 9, 0.875, "bilinear") is pictures


def test_fit_agrees_with_pillow():
    from PIL import Image

    image = np.asarray(Image.fromarray(synthetic.draw_gratings().train.inputs[0]).resize((64, 64)))
    for size in (24, 128):
        ours = np.asarray(preprocess.resize_and_crop(image[None], size, 1.0, "bilinear"))[0]
        pillow = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(ours - pillow).max() <= 1.0  # Pillow rounds to integers


def test_a_validation_share_too_small_for_one_example_is_refused():
    with pytest.raises(UserError, match="validation=0.0001: no example of 1198"):
        dataset.split_validation(tfds_module.digits().train, 0.0001, seed=0)


def tfds_folder(folder, parts):
    """Write a TFDS set of pictures of differing sizes with TFDS' own writer, without TensorFlow."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class Odd(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("10.0.0")
        name = "odd"

        def _info(self):
            label = tfds.features.ClassLabel(names=["dark", "light"])
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label})
            )

        def _split_generators(self, manager):
            return {name: self._generate_examples(labels) for name, labels in parts.items()}

        def _generate_examples(self, labels):
            for i, label in enumerate(labels):
                grey = 200 if label else 50
                yield i, {"image": Image.new("RGB", (20 + i, 30), (grey, grey, grey)), "label": label}

    Odd(data_dir=folder, file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )


def test_pictures_of_differing_sizes_are_fitted(tmp_path):
    tfds_folder(tmp_path, {"train": [0, 1, 1], "test": [1, 0]})
    source = tfds_module.load("odd", str(tmp_path), size=16)
    assert source.name == "odd:10.0.0" and source.classes == ("dark", "light") and source.test_origin == "test"
    assert source.train.inputs.shape == (3, 16, 16, 3)
    means = source.train.inputs.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, np.where(source.train.labels, 200, 50))


def test_a_test_part_without_labels_is_passed_over(tmp_path):
    tfds_folder(tmp_path, {"train": [0, 1], "test": [-1, -1], "validation": [1]})
    source = tfds_module.load("odd", str(tmp_path), size=8)
    assert source.test_origin == "validation" and list(source.test.labels) == [1]


def test_splits_of_tfds_are_known_by_all_their_names(tmp_path):
    tfds_folder(tmp_path, {"training": [0, 1], "dev": [1], "holdout": [1, 0]})
    source = tfds_module.load("odd", str(tmp_path), size=8)
    assert source.test_origin == "holdout" and source.validation is not None
    assert [len(part.labels) for part in (source.train, source.test, source.validation)] == [2, 2, 1]


def test_the_newest_version_is_read_by_number(tmp_path):
    assert tfds_module._parse_version("10.0.0") > tfds_module._parse_version("9.1.0")


def test_what_is_held_out_is_cut_once_by_scikit_learn(monkeypatch, tmp_path):
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path))
    labels = np.arange(60) % 3
    train, test = hold_out("toy", labels, ("a", "b", "c"), "third")
    expected = train_test_split(np.arange(60), test_size=1 / 3, random_state=0, stratify=labels)
    np.testing.assert_array_equal(train, np.sort(expected[0]))
    np.testing.assert_array_equal(test, np.sort(expected[1]))
    monkeypatch.setattr("tl_jax.data.dataset._test_mask", lambda *_: pytest.fail("cut again"))
    np.testing.assert_array_equal(hold_out("toy", labels, ("a", "b", "c"), "third")[1], test)
    with pytest.raises(pytest.fail.Exception, match="cut again"):
        hold_out("toy", labels[::-1], ("a", "b", "c"), "third")


def test_digits_are_scikit_learns():
    digits, source = load_digits(), tfds_module.digits()
    seen = np.concatenate([source.train.inputs, source.test.inputs])[..., 0].reshape(-1, 64)
    order, expected = np.lexsort(seen.T), np.round(digits.data * (255 / 16))
    np.testing.assert_array_equal(seen[order], expected[np.lexsort(expected.T)])
    assert len(source.test.labels) == 599 and np.bincount(source.train.labels).min() > 100
