"""Folders as people have them: names of splits, sub-folders, litter, links, Unicode, files that are not read."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_jax.data import dataset, faces, image_folder, medmnist, tfds, walker
from tl_jax.data.dataset import Dataset
from tl_jax.tasks import image_inputs
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
NAMES = [
    "test", "testing", "Testing", "tst", "holdout", "val", "valid", "validation", "validate", "dev", "devel", "eval",
    "evaluation",
]  # fmt: skip


def put(top: Path, names: str, first: int = 0) -> Path:
    """Write grey images, each of another value from ``first`` on, under the paths in ``names``."""
    for value, name in enumerate(names.split(), start=first):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), value).save(top / name, "PNG")
    return top


def values(source: Dataset) -> dict[str, list[list[int]]]:
    """Return the grey values of each split, by class."""
    return {
        name: [sorted(part.inputs[:][part.labels == k, 0, 0, 0].tolist()) for k in range(len(source.classes))]
        for name, part in (("train", source.train), ("test", source.test), ("validation", source.validation))
        if part is not None
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_beside_train_is_a_split_by_each_of_its_names(tmp_path: Path, name: str) -> None:
    """Of the two splits the one beside train is tested, whatever it is called."""
    put(tmp_path, f"train/a/0.png train/b/1.png {name}/a/2.png {name}/b/3.png")
    source = image_folder.read_folder(tmp_path)
    assert values(source) == {"train": [[0], [1]], "test": [[2], [3]]} and source.test_origin == name


def test_a_folder_called_valid_is_the_validation_split_beside_a_test_split(tmp_path: Path) -> None:
    put(tmp_path, "Training/a/0.png Training/b/1.png valid/a/2.png valid/b/3.png Testing/a/4.png Testing/b/5.png")
    assert values(image_folder.read_folder(tmp_path)) == {
        "train": [[0], [1]], "test": [[4], [5]], "validation": [[2], [3]],
    }  # fmt: skip


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/a/0.png train/b/1.png val/a/2.png val/b/3.png dev/a/4.png dev/b/5.png")
    with pytest.raises(
        UserError, match=f"{tmp_path}: 'dev' and 'val' both denote the validation split; rename or merge"
    ):
        image_folder.read_folder(tmp_path)


def test_splits_without_train_are_not_taken_for_classes(tmp_path: Path) -> None:
    put(tmp_path / "one", "test/a/0.png test/b/1.png val/a/2.png val/b/3.png")
    with pytest.raises(UserError, match="val and test have class folders, but there is no train folder"):
        image_folder.read_folder(tmp_path / "one")
    put(tmp_path / "two", "train/0.png train/1.png test/2.png test/3.png")
    with pytest.raises(UserError, match="no class folders in the splits test, train"):
        image_folder.read_folder(tmp_path / "two")
    put(tmp_path / "three", "train/Ann/0.png train/Bo/1.png test/Cy/2.png test/Di/3.png")
    with pytest.raises(
        UserError, match="test, train are names of splits, but the data are split here; pass one folder"
    ):
        faces.read_faces(tmp_path / "three", 4)


def test_a_folder_of_no_split_beside_train_is_named(tmp_path: Path, capsys) -> None:
    put(tmp_path, "train/a/0.png train/b/1.png test/a/2.png test/b/3.png more/a/4.png loose.png")
    assert values(image_folder.read_folder(tmp_path)) == {"train": [[0], [1]], "test": [[2], [3]]}
    (said,) = capsys.readouterr().err.splitlines()
    assert "1 folder with class folders next to train, not named after a split" in said and "(more)" in said
    assert "1 image next to train (loose.png)" in said


def test_images_in_folders_within_a_class_folder_belong_to_the_class(tmp_path: Path, capsys) -> None:
    names = [f"a/{i}.png a/day2/{i}.png b/deep/er/{2 * i}.png b/deep/er/{2 * i + 1}.jfif" for i in range(5)]
    found = values(image_folder.read_folder(put(tmp_path, " ".join(names))))
    train, test = found["train"], found["test"]
    assert [len(train[k]) + len(test[k]) for k in (0, 1)] == [10, 10] and [len(k) for k in test] == [2, 2]
    assert sorted(sum(train + test, [])) == list(range(20)) and capsys.readouterr().err == ""


def test_jfif_and_jpe_are_jpeg(tmp_path: Path) -> None:
    for i, ending in enumerate(("jfif", "jpe", "JFIF", "jpg", "jpeg") * 2):
        path = tmp_path / "ab"[i // 5] / f"{i}.{ending}"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), 20 * i).save(path, "JPEG")
    source = image_folder.read_folder(tmp_path)
    assert len(source.train.labels) + len(source.test.labels) == 10


LITTER = ("@eaDir", "System Volume Information", "$RECYCLE.BIN", "lost+found", "__MACOSX", ".trash")


@pytest.mark.parametrize("name", LITTER)
def test_what_a_system_leaves_is_no_class_and_no_image(tmp_path: Path, name: str) -> None:
    """Beside the classes, within one, in people's folders, and in what predictions are asked of."""
    put(tmp_path, " ".join(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    before = image_folder.read_folder(tmp_path)
    for where in (name, f"a/{name}", f"a/{name}/0.png", f"b/deeper/{name}"):
        (tmp_path / where).mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 99).save(tmp_path / where / "x.jpg", "PNG")
    (tmp_path / "a" / "._0.png").write_bytes(b"x")
    assert values(image_folder.read_folder(tmp_path)) == values(before)
    assert len(faces.read_faces(tmp_path, 4).files) == len(image_folder.list_images(tmp_path)) == 10


@pytest.mark.parametrize("first, second", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_class_is_one_in_both_unicode_forms(tmp_path: Path, first: str, second: str) -> None:
    for k, (split, form) in enumerate((("train", first), ("test", second))):
        name = unicodedata.normalize(form, "café")
        put(tmp_path, f"{split}/{name}/0.png {split}/{name}/1.png {split}/tea/2.png", 3 * k)
    source = image_folder.read_folder(tmp_path)
    assert source.classes == ("café", "tea") and values(source) == {"train": [[0, 1], [2]], "test": [[3, 4], [5]]}
    one = tmp_path / "one"
    for k, form in enumerate((first, second)):
        name = unicodedata.normalize(form, "café")
        put(one, f"{name}/{k}0.png {name}/{k}1.png {name}/{k}2.png tea/{k}3.png tea/{k}4.png tea/{k}5.png", 6 * k)
    source = image_folder.read_folder(one)
    assert source.classes == ("café", "tea") and len(source.train.labels) + len(source.test.labels) == 12


def test_an_index_finds_files_in_both_unicode_forms(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    put(tmp_path, " ".join(f"{nfd}/{nfc}{i}.png tea/{nfd}{i}.png" for i in range(5)))
    rows = [f"{nfc}/{nfc}{i}.png,{(nfc, nfd)[i % 2]}\n./tea/{nfc}{i}.png,tea" for i in range(5)]
    (tmp_path / "index.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-16")
    source = tfds.load("index", str(tmp_path))
    assert source.classes == (nfc, "tea") and len(source.train.labels) + len(source.test.labels) == 10
    assert walker.find_file(tmp_path, f"{nfc}/{nfd}0.png") == tmp_path / nfd / f"{nfc}0.png"
    assert walker.find_file(tmp_path, "tea/none.png") is None


def test_endings_that_are_not_read_are_counted(tmp_path: Path, capsys) -> None:
    put(tmp_path, " ".join(f"{c}/{i}.png {c}/{i}.tif" for c in "ab" for i in range(5)) + " a/x.gif a/noending")
    image_folder.read_folder(tmp_path)
    assert (
        f"{tmp_path}: not read: 10 .tif (a/0.tif, ...), 1 .gif (a/x.gif), 1 without suffix (a/noending); supported "
        in (capsys.readouterr().err)
    )
    put(tmp_path, "c/0.tif c/sub/1.tif c/2.gif")
    with pytest.raises(UserError, match="c has no images .*, only 2 .tif, 1 .gif; convert"):
        image_folder.read_folder(tmp_path)
    with pytest.raises(UserError, match="c has no images .*, but 2 .tif, 1 .gif; check the input"):
        image_folder.list_images(tmp_path / "c")
    with pytest.raises(UserError, match="0.tif: unknown suffix; convert it to one of .jpg"):
        image_inputs.list_inputs([str(tmp_path / "c" / "0.tif")])


def test_broken_links_are_damaged_images_and_all_named(tmp_path: Path) -> None:
    put(tmp_path, " ".join(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    for i in (7, 8):
        (tmp_path / "b" / f"{i}.png").symlink_to(tmp_path / "gone.png")
    said = r"2 of 12 images cannot be read: cannot decode .*b/7\.png \(.*No such file.*b/8\.png"
    for read in (lambda: image_folder.read_folder(tmp_path), lambda: faces.read_faces(tmp_path, 4)):
        with pytest.raises(UserError, match=said):
            read()
    (tmp_path / "index.csv").write_text("file,label\na/1.png,x\nb/7.png,y\nb/8.png,y\n")
    with pytest.raises(UserError, match="line 3: no file b/7.png in .* .2 of 3 files are missing"):
        tfds.load("index", str(tmp_path))


def test_linked_folders_are_read_and_never_without_end(tmp_path: Path, capsys) -> None:
    put(tmp_path, " ".join(f"set/a/{i}.png set/b/{i}.png else/{i}.png" for i in range(5)))
    (tmp_path / "set" / "c").symlink_to(tmp_path / "else")
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "b" / "self").symlink_to(tmp_path / "set" / "b")
    (tmp_path / "set" / "b" / "root").symlink_to("/")
    source = image_folder.read_folder(tmp_path / "set")
    assert (np.bincount(source.train.labels) + np.bincount(source.test.labels)).tolist() == [5, 5, 5]
    assert "3 linked to a folder above it" in capsys.readouterr().err
    assert len(image_folder.list_images(tmp_path / "set")) == 15


def test_a_path_that_is_not_there_is_refused_by_predictions(tmp_path: Path) -> None:
    for name in ("none.png", "none", "*.png"):
        with pytest.raises(UserError, match="no file or folder .*; check the input"):
            image_inputs.list_inputs([str(put(tmp_path, "a.png") / "a.png"), str(tmp_path / name)])


def test_an_npz_with_valid_images_has_a_validation_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("training", 6), ("valid", 3), ("testing", 4)):
        arrays |= {f"{split}_images": rng.integers(0, 255, (n, 4, 4), np.uint8), f"{split}_labels": np.arange(n) % 3}
    np.savez(tmp_path / "a.npz", **arrays)
    source = medmnist.read_npz(tmp_path / "a.npz")
    assert source.validation is not None and source.test_origin == "test"
    assert [len(part.labels) for part in (source.train, source.validation, source.test)] == [6, 3, 4]
    np.savez(tmp_path / "b.npz", **{name: each for name, each in arrays.items() if not name.startswith("testing")})
    source = medmnist.read_npz(tmp_path / "b.npz")
    assert source.test_origin == "valid" and source.validation is None and len(source.test.labels) == 3


def test_an_index_with_a_validation_split_alone_is_tested_on_it(tmp_path: Path) -> None:
    put(tmp_path, "0.png 1.png 2.png 3.png")
    (tmp_path / "index.csv").write_text(
        "file,label,split\n0.png,a,train\n1.png,b,Training\n2.png,a,eval\n3.png,b,dev\n"
    )
    source = tfds.load("index", str(tmp_path))
    assert values(source) == {"train": [[0], [1]], "test": [[2], [3]]} and source.test_origin == "validation"


def test_equal_numbers_are_one_class_in_an_index(tmp_path: Path) -> None:
    put(tmp_path, " ".join(f"{i}.png" for i in range(18)))

    def classes(*labels: str) -> tuple[str, ...]:
        rows = [f"{i}.png,{label}" for i, label in enumerate(labels * (18 // len(labels)))]
        (tmp_path / "index.csv").write_text("\n".join(["file,label", *rows]))
        return tfds.load("index", str(tmp_path)).classes

    assert classes("1", "1.0", "2") == ("1", "2")
    assert set(classes("0.5", "0.50", "2")) == {"0.5", "2"}
    assert classes("10.0", "2.0") == ("2.0", "10.0")  # a single spelling stays as it is written
    with pytest.raises(UserError, match="labels are 'nan', but the others are numbers"):
        classes("1", "nan", "2")
    assert classes("1", "x") == ("1", "x")


def test_a_file_listed_twice_is_refused_however_its_path_is_written(tmp_path: Path) -> None:
    put(tmp_path, "d/0.png d/1.png")
    for other in ("./d/0.png", "d//0.png", "d/../d/0.png", "d\\0.png"):
        (tmp_path / "index.csv").write_text(f"file,label\nd/0.png,a\n{other},a\nd/1.png,b\n")
        with pytest.raises(UserError, match="line 3: d/0.png is listed twice"):
            tfds.load("index", str(tmp_path))


def test_the_names_of_splits_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "pages" / "howto" / "data.md").read_text()
    for split, names in dataset.SPLIT_NAMES.items():
        assert f"| {split} | {', '.join(names)} |" in page
