"""Folders of class folders: small pictures drawn here, and the real flowers."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_jax.data import dataset, image_folder, tfds
from tl_jax.data import decode as decode_module
from tl_jax.tasks import image_inputs
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def draw(top: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8), ending: str = ".png") -> Path:
    """Write plain pictures (width, height) into class folders named by their colour."""
    for name, count in counts.items():
        (top / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", size, COLOURS.get(name, "grey")).save(top / name / f"{i:02d}{ending}")
    return top


def test_classes_and_labels_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    draw(tmp_path / "set", {"red": 10, "green": 5, "blue": 5})
    source = tfds.load("folder", str(tmp_path / "set"))
    assert (source.name, source.classes, source.test_origin) == ("set", ("blue", "green", "red"), "a fifth held out")
    for part, counts in ((source.train, [4, 4, 8]), (source.test, [1, 1, 2])):
        assert part.labels.dtype == np.int32 and np.bincount(part.labels).tolist() == counts
        colours = np.array(list(COLOURS.values()))[part.labels]
        np.testing.assert_array_equal(part.inputs, np.broadcast_to(colours[:, None, None], part.inputs.shape))


def test_the_test_part_is_the_same_at_every_call_and_apart_from_train(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i % 2}" / f"{i}.png")
    a, b = image_folder.read_folder(tmp_path), image_folder.read_folder(tmp_path)
    np.testing.assert_array_equal(a.test.inputs, b.test.inputs)
    assert len(a.test.labels) == 8
    assert sorted([*a.train.inputs[:, 0, 0, 0], *a.test.inputs[:, 0, 0, 0]]) == list(range(40))


@pytest.mark.parametrize("part", ["test", "val", "validation", "Test"])
def test_folders_of_parts(tmp_path: Path, part: str) -> None:
    draw(tmp_path / "train", {"green": 2, "red": 3})
    draw(tmp_path / part, {"green": 1, "red": 1})
    source = image_folder.read_folder(tmp_path)
    assert (source.test_origin, source.classes) == (part, ("green", "red"))
    assert source.train.labels.tolist() == [0, 0, 1, 1, 1] and source.test.labels.tolist() == [0, 1]
    assert (source.test.inputs[1] == COLOURS["red"]).all()


def test_test_is_taken_before_validation_which_is_kept_as_it_is(tmp_path: Path, capsys) -> None:
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        draw(tmp_path / part, {"green": count, "red": count})
    (tmp_path / "extra").mkdir()
    source = image_folder.read_folder(tmp_path)
    assert [len(part.labels) for part in (source.train, source.test, source.validation)] == [6, 2, 4]
    assert source.test_origin == "test"
    said = capsys.readouterr().err.splitlines()
    assert (
        said[0].startswith(f"{tmp_path}: not read: 1 folder next to train, not named after a split")
        and "(extra)" in said[0]
    )


def test_a_test_part_may_lack_a_class_but_have_no_other(tmp_path: Path) -> None:
    draw(tmp_path / "train", {"blue": 1, "green": 1, "red": 1})
    draw(tmp_path / "test", {"blue": 1, "red": 1})
    assert image_folder.read_folder(tmp_path).test.labels.tolist() == [0, 2]
    (tmp_path / "test" / "red").rename(tmp_path / "test" / "reed")
    with pytest.raises(UserError, match=f"{tmp_path}/test/reed: no such class in {tmp_path}/train; .*mean 'red'"):
        image_folder.read_folder(tmp_path)


def test_a_test_part_without_classes_is_passed_over(tmp_path: Path) -> None:
    draw(tmp_path / "train", {"green": 5, "red": 5})
    draw(tmp_path, {"test": 3})  # pictures without labels
    assert image_folder.read_folder(tmp_path).test_origin == "a fifth held out"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert image_folder.read_folder(draw(tmp_path, {"train": 5, "bus": 5})).classes == ("bus", "train")


def test_hidden_and_other_files_are_skipped_and_counted_once(tmp_path: Path, capsys) -> None:
    draw(tmp_path, {"green": 5, "red": 5, ".cache": 1, "__MACOSX": 1})
    for name in ("red/.00.png", "green/Thumbs.db", "LICENSE.txt", "loose.png"):
        (tmp_path / name).write_bytes(b"x")
    for _ in range(2):
        source = image_folder.read_folder(tmp_path)
    assert len(source.train.labels) + len(source.test.labels) == 10 and source.classes == ("green", "red")
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "not read" in line]
    assert said.startswith(
        f"{tmp_path}: not read: 4 hidden or system (.cache, ...), 1 .txt (LICENSE.txt), "
        "1 image next to the class folders (loose.png); supported images are .jpg, "
    )


def test_nothing_is_said_of_a_plain_folder(tmp_path: Path, capsys) -> None:
    for i in range(10):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.new("L", (4, 4), i).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    image_folder.read_folder(tmp_path)
    assert capsys.readouterr() == ("", "")


def test_differing_sizes_are_fitted(tmp_path: Path) -> None:
    draw(tmp_path, {"green": 5, "red": 5})
    stripes = np.zeros((20, 40, 3), np.uint8)
    stripes[:, 8:32] = 255  # the centre square, which is all that is kept, and what its rim is mixed with
    Image.fromarray(stripes).save(tmp_path / "red" / "wide.png")
    source = image_folder.read_folder(tmp_path, 10)
    everything = np.concatenate([source.train.inputs, source.test.inputs])
    assert everything.shape == (11, 10, 10, 3)
    assert sum((image == 255).all() for image in everything) == 1


@pytest.mark.parametrize("how, white", [("crop", 100), ("pad", 50), ("stretch", 100)])
@pytest.mark.parametrize("others", [(10, 10), (20, 40)])  # sizes that differ, and one that is not square
def test_the_whole_of_a_picture_is_kept_where_it_is_wanted(tmp_path: Path, others, how: str, white: int) -> None:
    draw(tmp_path, {"green": 5, "red": 5}, others[::-1])
    edges = np.full((20, 40, 3), 255, np.uint8)
    edges[:, :2] = edges[:, -2:] = (0, 0, 255)
    Image.fromarray(edges).save(tmp_path / "red" / "wide.png")
    source = image_folder.read_folder(tmp_path, 10, fit=how)
    everything = np.concatenate([source.train.inputs, source.test.inputs])
    if how == "crop" and others == (20, 40):
        assert everything.shape == (11, 20, 40, 3)
        return
    assert everything.shape == (11, 10, 10, 3)
    (wide,) = [image for image in everything if (image[5, 5] == 255).all()]
    assert abs(int((wide[..., 2] > 127).sum()) - white) <= 4
    blue = (wide[5, [0, -1], 0] < 200).all()
    assert blue == (how != "crop")


def test_one_size_is_kept(tmp_path: Path) -> None:
    assert image_folder.read_folder(draw(tmp_path, {"green": 5, "red": 5}, (9, 7)), 32).train.inputs.shape == (
        8,
        7,
        9,
        3,
    )


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_corrupt_picture_is_named(tmp_path: Path, damage: str) -> None:
    draw(tmp_path, {"green": 5, "red": 5}, (64, 64), ".jpg")
    path = tmp_path / "red" / "03.jpg"
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) - 100], "text": b"hello" * 99, "empty": b""}[damage])
    with pytest.raises(UserError, match=f"cannot decode {path} .*replace or remove it") as caught:
        image_folder.read_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [60, 30])  # Pillow warns above it, and refuses above its double
def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch, limit: int) -> None:
    draw(tmp_path, {"green": 5, "red": 5})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=f"{tmp_path}/.*: more than {limit} pixels"):
            image_folder.read_folder(tmp_path)


def test_no_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no folder {tmp_path}/none; check config.data.dir"):
        tfds.load("folder", str(tmp_path / "none"))
    with pytest.raises(UserError, match="fewer than two class folders .0.; .*FOLDER/CLASS/IMAGE"):
        image_folder.read_folder(tmp_path)
    draw(tmp_path, {"red": 5})
    with pytest.raises(UserError, match="class folders .1: red.; "):
        image_folder.read_folder(tmp_path)
    (tmp_path / "green").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}/green has no images"):
        image_folder.read_folder(tmp_path)
    with pytest.raises(UserError, match="config.data.name=folder needs files; set config.data.dir"):
        tfds.load("folder")


def test_a_class_too_small_to_hold_out_a_part(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="class 'red' has 4 examples, fewer than the 5.*hold out a fifth"):
        image_folder.read_folder(draw(tmp_path, {"green": 50, "red": 4}))


def test_cut_test_takes_a_share() -> None:
    labels = np.repeat(np.arange(3, dtype=np.int32), 15)
    everything = dataset.Split(np.arange(45, dtype=np.uint8)[:, None, None, None], labels)
    for share, count in (("third", 5), ("fifth", 3)):
        source = tfds.split_test("x", everything, ("a", "b", "c"), share)
        assert np.bincount(source.test.labels).tolist() == [count] * 3 and source.test_origin == f"a {share} held out"


def test_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'flowers'"):
        tfds.load("flower")


@pytest.mark.data
def test_the_real_flowers(data_dir: Path) -> None:
    if not (data_dir / "flowers").is_dir():
        pytest.skip("no flowers in the test data")
    a, b = (tfds.load("flowers", str(data_dir / "flowers"), size=64) for _ in range(2))
    assert a.classes == ("daisy", "dandelion", "rose", "sunflower", "tulip") and a.name == "flowers"
    counts = np.array([764, 1052, 784, 731, 980])
    train, test = np.bincount(a.train.labels), np.bincount(a.test.labels)
    assert (train + test).tolist() == counts.tolist() and counts.sum() == 4311 and test.sum() == 863
    assert np.abs(test - counts / 5).max() < 1
    assert a.train.inputs.shape == (4311 - 863, 128, 128, 3) and a.train.inputs.dtype == np.uint8
    np.testing.assert_array_equal(a.test.inputs, b.test.inputs)
    np.testing.assert_array_equal(a.test.labels, b.test.labels)
    names = sorted((data_dir / "flowers" / "daisy").iterdir())
    with Image.open(names[0]) as first:  # the first daisy is the first picture of one of the parts
        pixels = np.asarray(first)
    assert any(np.array_equal(pixels, part.inputs[0]) for part in (a.train, a.test))


def test_pictures_are_decoded_once(tmp_path, monkeypatch):
    """A second start reads what the first has decoded; a picture that changes is decoded anew."""
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    for kind in ("a", "b"):
        for i in range(5):
            path = tmp_path / "set" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4, 3), 10 * i, np.uint8)).save(path)
    calls, decode = [], decode_module.decode_file
    monkeypatch.setattr(decode_module, "decode_file", lambda path, windows: calls.append(path) or decode(path, windows))
    first = image_folder.read_folder(tmp_path / "set", 4)
    assert len(calls) == 10
    again = image_folder.read_folder(tmp_path / "set", 4)
    assert len(calls) == 10
    np.testing.assert_array_equal(first.train.inputs, again.train.inputs)
    Image.fromarray(np.full((4, 4, 3), 255, np.uint8)).save(tmp_path / "set" / "a" / "0.png")
    changed = image_folder.read_folder(tmp_path / "set", 4)
    assert len(calls) == 20
    assert 255 in np.concatenate([changed.train.inputs, changed.test.inputs])


def test_a_single_path_is_one_input(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    for inputs in (tmp_path / "x.png", str(tmp_path / "x.png"), [tmp_path], (str(tmp_path),)):
        assert [image.source for image in image_inputs.list_inputs(inputs)] == [tmp_path / "x.png"]
    for inputs in ([None], [3], [b"x.png"]):
        with pytest.raises(UserError, match="not supported; pass files, folders or image arrays"):
            image_inputs.list_inputs(inputs)
