"""Images of more than 8 bits: one range for a data set, the same in every reader, against NumPy."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.boxed import CAT, write_voc
from tests.data.sixteen import png16
from tl_jax.config import recipe, validate
from tl_jax.data import decode, faces, image_folder, tfds, voc
from tl_jax.data.decode import Decoding
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
LOW, HIGH = 1000, 5000  # of the images below


def images(count: int, size: tuple[int, int] = (6, 6)) -> np.ndarray:
    """Return images uint16 (count, H, W) whose values reach from LOW to HIGH."""
    values = np.random.default_rng(0).integers(LOW, HIGH + 1, (count, *size)).astype(np.uint16)
    values[0, 0, 0], values[1, 0, 0] = LOW, HIGH
    return values


def expected(values: np.ndarray, low: float = LOW, high: float = HIGH) -> np.ndarray:
    """Return values as RGB of 8 bits."""
    share = np.clip((values.astype(float) - low) / (high - low), 0, 1)
    return np.repeat(np.rint(255 * share).astype(np.uint8)[..., None], 3, -1)


def write(top: Path, values: np.ndarray) -> Path:
    """Write images to two class folders in turn."""
    for i, each in enumerate(values):
        path = top / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(path)
    return top


def everything(source) -> list[bytes]:
    """Return all images of a data set in an order of their own."""
    return sorted(each.tobytes() for part in (source.train, source.test) for each in np.asarray(part.inputs[:]))


def test_sixteen_bit_images_of_a_folder_are_scaled_by_the_ends_of_the_whole_set(tmp_path: Path, capsys) -> None:
    values = images(10)
    source = image_folder.read_folder(write(tmp_path / "set", values), 6)
    assert everything(source) == sorted(each.tobytes() for each in expected(values))
    assert source.value_range == (LOW, HIGH)
    line = "set: 10 images have more than 8 bits; values 1000 to 5000 become 0 to 255"
    assert capsys.readouterr().err.count(line) == 1
    again = image_folder.read_folder(tmp_path / "set", 6, max_bytes=10)  # decoded when they are read
    assert everything(again) == everything(source) and again.value_range == (LOW, HIGH)


def test_hounsfield_units_above_32768_stay_apart(tmp_path: Path) -> None:
    slices = np.full((10, 6, 6), 32768 - 1000, np.uint16)
    slices[::2, 2:4, 2:4], slices[1::2, 2:4, 2:4] = 32768 + 40, 32768 + 200
    source = image_folder.read_folder(write(tmp_path, slices), 6)
    found = {int(each[2, 2, 0]) for each in source.train.inputs}
    assert found == {round(255 * 1040 / 1200), 255}


def test_white_of_a_12_bit_camera_is_white(tmp_path: Path) -> None:
    values = np.full((10, 6, 6), 2000, np.uint16)
    values[3, 0, 0], values[4, 0, 0] = 0, 4095
    assert image_folder.read_folder(write(tmp_path, values), 6).train.inputs.max() == 255
    stated = image_folder.read_folder(tmp_path, 6, value_range=(0.0, 8190.0))
    assert stated.train.inputs.max() == 128 and stated.value_range == (0.0, 8190.0)


@pytest.mark.parametrize("channels", [3, 4, 2])
def test_sixteen_bit_colours_keep_both_bytes(tmp_path: Path, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    opaque = np.ones((5, 7), bool)
    if channels in (2, 4):
        opaque = np.arange(7)[None] % 2 == np.zeros((5, 1))
        values[..., -1] = np.where(opaque, 65535, 0)
    (tmp_path / "x.png").write_bytes(png16(values))
    read = decode.decode_file(tmp_path / "x.png", Decoding(value_range=(100.0, 50100.0)))
    colours = values[..., :3] if channels > 2 else np.repeat(values[..., :1], 3, -1)
    want = np.where(opaque[..., None], np.rint(255 * np.clip((colours - 100.0) / 50000, 0, 1)), 255)
    np.testing.assert_array_equal(read, want)


def test_images_of_8_bits_are_as_they_were_beside_others(tmp_path: Path, capsys) -> None:
    write(tmp_path / "mixed", images(10))
    grey = np.arange(36, dtype=np.uint8).reshape(6, 6)
    Image.fromarray(grey).save(tmp_path / "mixed" / "a" / "grey.png")
    source = image_folder.read_folder(tmp_path / "mixed", 6)
    assert np.repeat(grey[..., None], 3, -1).tobytes() in everything(source)
    said = capsys.readouterr().err
    assert "mixed: 10 images have more than 8 bits" in said and "); 1 with 8 bits are not scaled" in said


def test_every_reader_scales_alike(tmp_path: Path) -> None:
    values = images(10)
    want = sorted(each.tobytes() for each in expected(values))
    top = write(tmp_path / "set", values)
    names = sorted(path.relative_to(top) for path in top.glob("*/*.png"))
    splits = ["test" if i in (0, 9) else "train" for i in range(10)]
    rows = [f"{name},{name.parts[0]},{split}" for name, split in zip(names, splits, strict=True)]
    (top / "index.csv").write_text("file,label,split\n" + "\n".join(rows) + "\n")
    assert everything(tfds.load("index", str(top), 6)) == want
    labels = np.arange(10)[:, None] % 2
    parts = {
        "train_images": values[:8],
        "train_labels": labels[:8],
        "test_images": values[8:],
        "test_labels": labels[8:],
    }
    np.savez(tmp_path / "set.npz", **parts)
    assert everything(tfds.load("npz", str(tmp_path / "set.npz"))) == want
    prepare_tfds(tmp_path, np.uint16, values[..., None])
    assert everything(tfds.load("deep", str(tmp_path), 6)) == want


def test_fractions_of_an_npz_are_scaled_from_end_to_end(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0.2, 0.7, (10, 6, 6))
    labels = np.arange(10) % 2
    arrays = {
        "train_images": values[:8],
        "test_images": values[8:],
        "train_labels": labels[:8],
        "test_labels": labels[8:],
    }
    np.savez(tmp_path / "x.npz", **arrays)
    source = tfds.load("npz", str(tmp_path / "x.npz"))
    assert everything(source) == sorted(each.tobytes() for each in expected(values, values.min(), values.max()))


def prepare_tfds(top: Path, dtype, values: np.ndarray) -> None:
    """Write a TFDS set of images (N, H, W, 1), the last two of them for testing."""
    import tensorflow_datasets as tfds

    class Deep(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "deep"

        def _info(self):
            image = tfds.features.Image(shape=values.shape[1:], dtype=dtype, encoding_format="png")
            label = tfds.features.ClassLabel(names=["a", "b"])
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"image": image, "label": label}))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(0, 8), "test": self._generate_examples(8, 10)}

        def _generate_examples(self, first, stop):
            for i in range(first, stop):
                yield i, {"image": encode(values[i], dtype), "label": i % 2}

    Deep(data_dir=top, file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )


def encode(values: np.ndarray, dtype):
    """Return what TFDS takes: a float image as it is, or a file with 16 bits."""
    return values if dtype == np.float32 else io.BytesIO(png16(values))


@pytest.mark.peers
def test_floats_of_a_tfds_set_are_read_as_floats(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="TFDS encodes such images with TensorFlow; requirements-bench.txt")
    values = np.random.default_rng(0).normal(0, 3, (10, 6, 6, 1)).astype(np.float32)
    prepare_tfds(tmp_path, np.float32, values)
    low, high = float(values.min()), float(values.max())
    source = tfds.load("deep", str(tmp_path), 6)
    assert everything(source) == sorted(each.tobytes() for each in expected(values[..., 0], low, high))
    assert source.value_range == pytest.approx((low, high))


def test_sixteen_bit_images_with_boxes_are_scaled_too(tmp_path: Path) -> None:
    top = write_voc(tmp_path / "set", {"a": [CAT], "b": [CAT]}, {"train": "a", "test": "b"}, (32, 32))
    for name, value in (("a", 3000), ("b", 5000)):
        deep = np.full((32, 32), 1000, np.uint16)
        deep[:, 16:] = value
        Image.fromarray(deep).save(top / "JPEGImages" / f"{name}.png")
    source = voc.read_voc(top, 32)
    assert source.value_range == (1000, 5000)
    assert source.train.inputs[0, 0, -1, 0] == 128 and source.test.inputs[0, 0, -1, 0] == 255


def test_a_range_that_no_image_needs_is_refused(tmp_path: Path) -> None:
    top = write(tmp_path / "set", np.zeros((10, 6, 6), np.uint8))
    with pytest.raises(UserError, match="set: config.data.range has no effect, as all images have 8 bits"):
        image_folder.read_folder(top, 6, value_range=(0.0, 4095.0))
    arrays = {f"{s}_images": np.zeros((4, 6, 6), np.uint8) for s in ("train", "test")}
    np.savez(tmp_path / "x.npz", **arrays, train_labels=np.arange(4) % 2, test_labels=np.arange(4) % 2)
    with pytest.raises(UserError, match="x.npz: config.data.range has no effect"):
        tfds.load("npz", str(tmp_path / "x.npz"), value_range=(0.0, 4095.0))


def test_other_people_are_scaled_as_those_of_the_run(tmp_path: Path) -> None:
    values = images(10)
    top = write(tmp_path / "set", values)
    of_run = Decoding(value_range=(0.0, 10000.0), from_run=True)
    found = [each.tobytes() for each in faces.read_faces(top, 6, decoding=of_run).examples.inputs[:]]
    assert sorted(found) == sorted(each.tobytes() for each in expected(values, 0, 10000))
    with pytest.raises(UserError, match="more than 8 bits"):
        faces.read_faces(top, 6, decoding=Decoding(from_run=True))  # a run on 8 bits
    plain = write(tmp_path / "plain", np.full((10, 6, 6), 9, np.uint8))
    assert (faces.read_faces(plain, 6, decoding=of_run).examples.inputs[:] == 9).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.range": (5,)}, r"config.data.range=\(5,\) is no pair \(low, high\)"),
        ({"data.range": (5, 5)}, "with low below high"),
        ({"data.range": ("a", "b")}, "is no pair"),
        ({"data.range": (0, 9), "data.name": "digits"}, "config.data.range has no effect with config.data.name=digits"),
        ({"data.max_pixels": 9, "data.name": "npz"}, "config.data.max_pixels has no effect with config.data.name=npz"),
    ],
)
def test_ranges_that_cannot_be_meant_are_refused(fields, message: str) -> None:
    config = recipe.override(recipe.get_config(), tuple(fields.items()))
    with pytest.raises(UserError, match=message):
        validate.validate(config)


def test_an_image_without_a_known_range_is_refused_with_its_values(tmp_path: Path) -> None:
    Image.fromarray(np.arange(36, dtype=np.uint16).reshape(6, 6) + 70).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x.png has more than 8 bits \(values 70 to 105\).*config.data.range"):
        decode.decode_file(tmp_path / "x.png")
