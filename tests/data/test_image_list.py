"""Pictures that an index lists, groups that stay together, and npz files as MedMNIST has them."""

import functools
import hashlib
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_jax.data import dataset, image_folder, medmnist, tfds
from tl_jax.data.dataset import Split
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def lay(top: Path, rows: str, count: int = 8) -> Path:
    """Write pictures p0.png, ... in two folders, whose grey value is their number, and an index."""
    for i in range(count):
        (top / f"{'ab'[i % 2]}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), i).save(top / f"{'ab'[i % 2]}" / f"p{i}.png")
    (top / "index.csv").write_text(rows)
    return top


WHOLE = """file,label,split,patient
b/p1.png,ill,train,x
a/p0.png,well,train,y
a/p2.png,ill,val,z
b/p3.png,well,valid,z
b/p5.png,ill,test,v
a/p4.png,well,test,w
"""


def test_an_index_says_class_part_and_group(tmp_path: Path) -> None:
    source = tfds.load("index", str(lay(tmp_path, WHOLE)), group="patient")
    assert source.classes == ("ill", "well") and source.test_origin == "test" and source.validation is not None
    for part, numbers, labels, groups in (
        (source.train, [1, 0], [0, 1], ["x", "y"]),
        (source.validation, [2, 3], [0, 1], ["z", "z"]),
        (source.test, [5, 4], [0, 1], ["v", "w"]),
    ):
        assert part.inputs[:][:, 0, 0, 0].tolist() == numbers and part.labels.tolist() == labels
        assert part.groups is not None and part.groups.tolist() == groups
    folders = tfds.load("index", str(tmp_path / "index.csv"), label="")  # the file itself, classes by folder
    assert folders.classes == ("a", "b") and folders.train.labels.tolist() == [1, 0] and folders.train.groups is None


@pytest.mark.parametrize(
    "rows,message",
    [
        (WHOLE.replace("file,", "name,"), "no column 'file' in the first line .columns: name, label"),
        (WHOLE.replace("patient", "patients"), "no column 'patient' .config.data.group.; did you mean 'patients'"),
        (WHOLE.replace("label,", "class,"), "no column 'label' .config.data.label"),
        (WHOLE.replace("a/p0.png,well", "a/p0.png,"), "line 3: no label for a/p0.png"),
        (WHOLE.replace("a/p0.png", "a/p9.png"), "line 3: no file a/p9.png"),
        (WHOLE.replace("a/p0.png", "\n\na/p9.png"), "line 5: no file a/p9.png"),
        (WHOLE.replace("a/p0.png", "b/p1.png"), "line 3: b/p1.png is listed twice"),
        (WHOLE.replace("well,train,y", "well,train"), "line 3: 3 values for 4 columns"),
        (WHOLE.replace("valid", "later"), "line 5: split 'later'; write train, validation or test"),
        (WHOLE.replace("train,", "test,"), "no row has the split train"),
        (
            WHOLE.replace("well,test,w", "well,test,x"),
            "group 'x' is in two splits: .*p1.png in train, .*p4.png in test",
        ),
        (WHOLE.replace("ill,test", "odd,test"), "no training row has the class 'odd'"),
        ("file,label\n", "lists no files"),
        ("", "no column 'file'"),
        (WHOLE.replace("well", "ill"), "fewer than two classes .ill."),
    ],
)
def test_what_is_wrong_with_an_index_is_said(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tfds.load("index", str(lay(tmp_path, rows)), group="patient")
    assert "\n" not in str(caught.value)


def test_a_file_listed_again_by_its_whole_path_is_refused(tmp_path: Path) -> None:
    again = tmp_path / "a" / "p0.png"
    lay(tmp_path, f"file,label,split\na/p0.png,a,train\nb/p1.png,b,train\n{again},a,test\n")
    with pytest.raises(UserError, match="line 4: .*a/p0.png is listed twice, also as a/p0.png; remove one"):
        tfds.load("index", str(tmp_path))


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no index .*index.csv; write one"):
        tfds.load("index", str(tmp_path))
    with pytest.raises(UserError, match="config.data.name=index needs files; set config.data.dir to a path"):
        tfds.load("index")
    lay(tmp_path, "file,patient\na/p0.png,x\n")
    with pytest.raises(UserError, match=r"a/p2.png is missing \(7 of 8 images\)"):
        image_folder.read_folder(tmp_path, group="patient")


def test_class_folders_take_groups_from_the_index(tmp_path: Path, capsys) -> None:
    rows = [f"{'ab'[i % 2]}/p{i}.png,{i // 4}" for i in range(40)]
    source = image_folder.read_folder(lay(tmp_path, "\n".join(["file,patient", *rows]), 40), group="patient")
    train, test = source.train, source.test
    assert train.groups is not None and test.groups is not None and capsys.readouterr().err == ""
    assert not set(train.groups) & set(test.groups) and np.bincount(test.labels).tolist() == [4, 4]
    np.testing.assert_array_equal(test.inputs[:][:, 0, 0, 0] // 4, test.groups.astype(int))
    less, validation = dataset.split_validation(train, 0.25, seed=0)
    assert validation.groups is not None and less.groups is not None
    assert not set(less.groups) & set(validation.groups) and len(validation.labels) == 8
    assert set(validation.groups) != set(dataset.split_validation(train, 0.25, seed=3)[1].groups)
    thin = dataset.subsample_train(less, 0, 2, 2, 0)
    assert thin.groups is not None
    np.testing.assert_array_equal(thin.inputs[:][:, 0, 0, 0] // 4, thin.groups.astype(int))


def test_one_group_cannot_be_cut() -> None:
    split = Split(np.zeros((4, 2, 2, 3), np.uint8), np.arange(4, dtype=np.int32), np.array(["x"] * 4))
    with pytest.raises(UserError, match="all 4 training examples are of one group .x."):
        dataset.split_validation(split, 0.5, 0)


def arrays(**changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for part, n in (("train", 6), ("val", 3), ("test", 4)):
        found[f"{part}_images"] = rng.integers(0, 255, (n, 5, 5), np.uint8)
        found[f"{part}_labels"] = (np.arange(n) % 3).astype(np.uint8)[:, None]
    return {name: values for name, values in (found | changes).items() if values is not None}


def test_an_npz_is_read(tmp_path: Path) -> None:
    given = arrays()
    np.savez_compressed(tmp_path / "mine.npz", **given)
    source = tfds.load("npz", str(tmp_path / "mine.npz"))
    assert (source.name, source.classes, source.test_origin) == ("mine", ("0", "1", "2"), "test")
    assert source.train.inputs.shape == (6, 5, 5, 3) and source.validation is not None
    np.testing.assert_array_equal(source.test.inputs[:][..., 2], given["test_images"])
    assert source.validation.labels.tolist() == [0, 1, 2] and source.validation.labels.dtype == np.int32
    colour = np.stack([given["train_images"]] * 3, -1)
    np.savez(tmp_path / "colour.npz", **arrays(train_images=colour, val_images=None, val_labels=None))
    source = medmnist.read_npz(tmp_path / "colour.npz")
    assert source.validation is None and (source.train.inputs == colour).all()


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"test_images": None, "val_images": None}, "has no test_images"),
        ({"valid_images": np.zeros((3, 5, 5), np.uint8)}, "'val' and 'valid' both denote the validation split"),
        ({"test_labels": np.zeros((3, 1), np.uint8)}, r"test_labels is uint8 \(3, 1\), for 4 images"),
        ({"test_labels": None}, "test_labels is absent, for 4 images"),
        ({"train_labels": np.zeros((6, 1))}, r"train_labels is float64 \(6, 1\)"),
        ({"test_labels": np.array([0, 1, 2, 7])}, "test: example 3 has the label 7, but the 3 classes are 0 to 2"),
        ({"train_images": np.zeros((6, 5, 5))}, "has images of uint8 and of other types"),
        ({"train_images": np.zeros((6, 5, 5, 5), np.uint8)}, r"train_images has type uint8 \(6, 5, 5, 5\)"),
        ({"train_images": np.array([None] * 6, object)}, "cannot read .*train_images has type object, not numbers"),
    ],
)
def test_what_is_wrong_with_an_npz_is_said(tmp_path: Path, changes, message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays(**changes))
    with pytest.raises(UserError, match=message) as caught:
        medmnist.read_npz(tmp_path / "x.npz")
    assert "\n" not in str(caught.value)


def test_a_damaged_npz(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    np.savez_compressed(tmp_path / "whole.npz", **arrays())
    (tmp_path / "short.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-200])
    for name in ("text", "short"):
        with pytest.raises(UserError, match=f"cannot read .*{name}.npz"):
            medmnist.read_npz(tmp_path / f"{name}.npz")
    with pytest.raises(UserError, match="no file .*absent.npz"):
        medmnist.read_npz(tmp_path / "absent.npz")


def test_the_published_set_is_fetched_and_its_hash_checked(tmp_path: Path, monkeypatch) -> None:
    served = tmp_path / "served"
    served.mkdir()
    labels = np.arange(11, dtype=np.uint8)[:, None]
    images = np.zeros((11, 28, 28), np.uint8)
    np.savez(served / "organamnist.npz", **{f"{p}_{k}": v for p in ("train", "val", "test")
                                            for k, v in (("images", images), ("labels", labels))})  # fmt: skip
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(medmnist, "URL", f"http://127.0.0.1:{server.server_port}/{{name}}.npz?download=1")
        with pytest.raises(UserError, match=": hash md5:.*, not md5:68e3f8846a6bd62f"):
            tfds.load("organamnist")
        digest = hashlib.md5((served / "organamnist.npz").read_bytes()).hexdigest()
        monkeypatch.setitem(medmnist.SETS, "organamnist", digest)
        source = tfds.load("organamnist")
        server.shutdown()
    assert source.classes[6] == "liver" and len(source.classes) == 11 and len(source.test.labels) == 11
    assert (tmp_path / "cache" / "data" / "organamnist.npz").is_file()


@pytest.mark.data
def test_the_real_slices(data_dir: Path) -> None:
    """Groups of the real index; grey PNG and the npz of the same slices have the same labels."""
    top = data_dir / "ct_covid"
    if not top.is_dir():
        pytest.skip("no CT slices in the test data")
    by_folder = tfds.load("folder", str(top), size=32, group="split_group")
    by_index = tfds.load("index", str(top), size=32, group="split_group", label="")
    by_file = tfds.load("npz", str(top / "ct_covid_64.npz"))
    for source in (by_folder, by_index, by_file):
        assert source.validation is not None
        counts = [np.bincount(part.labels).tolist() for part in (source.train, source.validation, source.test)]
        assert counts == [[209, 238], [52, 60], [88, 99]]
    assert by_folder.classes == by_index.classes == ("covid", "noncovid")
    assert by_folder.test.groups is not None and len(np.unique(by_folder.test.groups)) == 14 + 62
    images = by_folder.test.inputs[:]
    assert (images[..., 0] == images[..., 2]).all()
