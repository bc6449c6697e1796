"""Patients: groups of DICOM files stay together, whatever lies among them, and copies across splits are said."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_dicom import write
from tests.data.test_layouts import put
from tl_jax.data import faces, image_folder, medmnist, tfds
from tl_jax.data.dataset import Dataset
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
PLAIN = np.full((4, 4), 1024, np.uint16)


def slices(top: Path, patients: int = 5, each: int = 3, **changes) -> Path:
    """Write CT slices of some patients of each of two classes, no two alike."""
    for name in ("ill", "well"):
        for k in range(patients):
            for i in range(each):
                about = {"PatientID": f"{name}{k}", "StudyInstanceUID": f"1.2.{len(name)}.{k}"} | changes
                write(top / name / f"{k}_{i}.dcm", PLAIN + k + 40 * i + 200 * len(name), **about)
    return top


def shared(source: Dataset) -> set[str]:
    """Return the groups that are in train and in test."""
    assert source.train.groups is not None and source.test.groups is not None
    return set(source.train.groups) & set(source.test.groups)


@pytest.mark.parametrize(("one", "two"), [("{}.", "{}.0"), ("{}\u00e9", "{}e\u0301"), ("p{}", "p{} ")])
@pytest.mark.parametrize("reader", ["index", "folder"])
def test_a_patient_spelled_in_two_ways_is_one_group(tmp_path: Path, reader: str, one: str, two: str) -> None:
    lines = ["file,label,patient"]
    for name in ("ill", "well"):
        for i in range(20):
            put(tmp_path, f"{name}/{i}.png")
            number = i // 4 + (10 if name == "ill" else 20)
            lines.append(f"{name}/{i}.png,{name},{(one, two)[i % 2].format(number)}")
    (tmp_path / "index.csv").write_text("\n".join(lines))
    source = tfds.load(reader, str(tmp_path), group="patient")
    groups = np.concatenate([source.train.groups, source.test.groups])
    assert not shared(source) and len(set(groups)) == 10 and len(source.test.labels) == 8


def test_blanks_around_a_patient_mean_nothing(tmp_path: Path) -> None:
    slices(tmp_path, 5)
    for k in range(5):
        write(tmp_path / "ill" / f"{k}_x.dcm", PLAIN + 7 * k, PatientID=f" ill{k} ", StudyInstanceUID="1.2.3.9")
    source = tfds.load("folder", str(tmp_path), windows=("lung",))
    assert not shared(source)
    assert len({*source.train.groups, *source.test.groups}) == 10


@pytest.mark.parametrize("other", ["a file without a patient", "a PNG"])
def test_one_image_without_a_patient_leaves_the_other_patients_together(tmp_path: Path, capsys, other: str) -> None:
    slices(tmp_path)
    if other == "a PNG":
        put(tmp_path, "ill/x.png")
    else:
        write(tmp_path / "ill" / "x.dcm", PLAIN, PatientID="", StudyInstanceUID="")
    source = tfds.load("folder", str(tmp_path), windows=("lung",))
    groups = np.concatenate([source.train.groups, source.test.groups])
    assert not shared(source) and len(groups) == 31 and len(set(groups)) == 11
    assert len(source.test.labels) in range(6, 8)
    assert "1 of 31 images have no patient and are groups of their own; name a column of index.csv" in (
        capsys.readouterr().err
    )


def test_files_that_all_name_one_patient_are_refused_with_a_way_on(tmp_path: Path) -> None:
    slices(tmp_path, PatientID="ANON")
    said = (
        r"30 of 30 DICOM files have one patient \(PatientID 'ANON'\), as de-identified files do; "
        "set config.data.group='study' to group by study, config.data.group='none' for no groups"
    )
    with pytest.raises(UserError, match=said):
        tfds.load("folder", str(tmp_path), windows=("lung",))
    by_study = tfds.load("folder", str(tmp_path), windows=("lung",), group="study")
    assert not shared(by_study) and len(set(by_study.train.groups) | set(by_study.test.groups)) == 10
    alone = tfds.load("folder", str(tmp_path), windows=("lung",), group="none")
    assert alone.train.groups is None and len(alone.test.labels) == 6
    rows = [f"{file.relative_to(tmp_path)},{file.parent.name}" for file in sorted(tmp_path.glob("*/*.dcm"))]
    (tmp_path / "index.csv").write_text("\n".join(["file,label", *rows]))
    with pytest.raises(UserError, match=said):
        tfds.load("index", str(tmp_path), windows=("lung",))
    listed = tfds.load("index", str(tmp_path), windows=("lung",), group="study")
    np.testing.assert_array_equal(listed.test.groups, by_study.test.groups)
    assert tfds.load("index", str(tmp_path), windows=("lung",), group="none").test.groups is None


def test_a_column_called_study_comes_before_the_word(tmp_path: Path) -> None:
    put(tmp_path, " ".join(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    with pytest.raises(UserError, match="config.data.group='study' needs DICOM files, and there are none; name a col"):
        image_folder.read_folder(tmp_path, group="study")
    rows = [f"{c}/{i}.png,{c}{i}" for c in "ab" for i in range(5)]
    (tmp_path / "index.csv").write_text("\n".join(["file,study", *rows]))
    assert set(image_folder.read_folder(tmp_path, group="study").test.groups) < {row.split(",")[1] for row in rows}


def test_too_few_patients_to_hold_out_and_patients_in_two_splits_name_the_ways_on(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="class 'ill' has 3 groups, fewer than the 5 .*config.data.group \('none' for no groups\)"
    ):
        image_folder.read_folder(slices(tmp_path / "few", patients=3), windows=("lung",))
    slices(tmp_path / "two" / "train"), slices(tmp_path / "two" / "test")
    with pytest.raises(
        UserError, match="group 'ill0' is in two splits: .*config.data.group .a column .*'study' or 'non"
    ):
        image_folder.read_folder(tmp_path / "two", windows=("lung",))


def test_the_same_image_in_train_and_test_is_said(tmp_path: Path, capsys) -> None:
    put(tmp_path, " ".join(f"train/{c}/{i}.png test/{c}/x{i}.png" for c in "ab" for i in range(4)))
    for i in range(3):
        shutil.copy(tmp_path / "train" / "a" / f"{i}.png", tmp_path / "test" / "a" / f"copy{i}.png")
    said = (
        f"{tmp_path.name}: 3 of 11 test images are also in train, byte for byte, such as test/a/copy0.png and "
        "train/a/0.png; remove them from one of the two splits\n"
    )
    image_folder.read_folder(tmp_path)
    assert capsys.readouterr().err == said
    rows = [f"{f.relative_to(tmp_path)},{f.parent.name},{f.parts[-3]}" for f in sorted(tmp_path.glob("*/*/*.png"))]
    (tmp_path / "index.csv").write_text("\n".join(["file,label,split", *rows]))
    tfds.load("index", str(tmp_path))
    assert capsys.readouterr().err in (said, "")  # once a process


def test_copies_that_the_held_out_fifth_takes_from_train_are_said(tmp_path: Path, capsys) -> None:
    for i in range(20):
        put(tmp_path, f"{'ab'[i % 2]}/{i}.png", 10 * (i % 2))
    image_folder.read_folder(tmp_path)
    assert "4 of 4 test images are also in train, byte for byte" in capsys.readouterr().err


def test_one_image_in_two_classes_is_said(tmp_path: Path, capsys) -> None:
    put(tmp_path, " ".join(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    shutil.copy(tmp_path / "a" / "0.png", tmp_path / "b" / "same.png")
    faces.read_faces(tmp_path, 4)
    assert capsys.readouterr().err == (
        f"{tmp_path.name}: 2 identical images have different classes, such as a/0.png and b/same.png; "
        "keep each in one class\n"
    )


def test_files_of_one_size_are_no_copies(tmp_path: Path, capsys) -> None:
    """Pixels in the middle of a large file differ, its ends are equal: bitmaps all have the same size."""
    for k, split in enumerate(("train", "test")):
        for c in "ab":
            pixels = np.zeros((90, 90), np.uint8)
            pixels[45, 45] = 1 + k + 2 * (c == "b")
            (tmp_path / split / c).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / split / c / "0.bmp")
    image_folder.read_folder(tmp_path)
    assert capsys.readouterr().err == ""


def test_equal_rows_of_an_npz_are_said(tmp_path: Path, capsys) -> None:
    images = np.random.default_rng(0).integers(0, 255, (12, 30, 30), np.uint8)
    images[5], images[7] = images[0], images[1]
    images[11] = images[2]
    images[11, 3, 3] ^= 1  # nearly equal
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])
    arrays = {"train_images": images[:6], "test_images": images[6:], "train_labels": labels[:6]}
    np.savez(tmp_path / "set.npz", test_labels=labels[6:], **arrays)
    medmnist.read_npz(tmp_path / "set.npz")
    assert capsys.readouterr().err == (
        "set: 1 of 6 test images are also in train, byte for byte, such as test image 1 and train image 1; remove "
        "them from one of the two splits\n"
        "set: 2 identical images have different classes, such as train image 0 and train image 5; "
        "keep each in one class\n"
    )
