"""A run keeps its classes and a fingerprint of its data: later changes of the data alter no result in silence."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import digits_resnet
from tl_jax import __version__, training
from tl_jax.config import recipe
from tl_jax.data.dataset import Dataset, Split
from tl_jax.data.fingerprint import fingerprint
from tl_jax.export.bundle import export
from tl_jax.learner import Learner
from tl_jax.tasks import run_record
from tl_jax.train.workdir import read_json
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
CLASSES = ("1", "10", "2", "bee")  # as a folder sorts them; index.csv has 1, 2, 10, bee
SHADES = {"1": 20, "10": 90, "2": 165, "bee": 240}


def configure(data, *changes):
    common = (
        ("arms", ()), ("seeds", ()), ("data.name", "folder"), ("data.dir", str(data)), ("data.per_class", 0),
        ("data.validation", 0.25), ("epochs", 10.0), ("save_every", 10.0), ("batch_size", 8), ("eval_batch_size", 8),
        ("augment.crop_pad", 0), ("calibrate", True), ("input.size", 16),
    )  # fmt: skip
    return recipe.override(digits_resnet.get_config(), (*common, *changes))


def write(folder, seed, count=8, test=4):
    """Write class folders of plain images, each class of its own shade."""
    rng = np.random.default_rng(seed)
    for name, shade in SHADES.items():
        for split, images in (("train", count), ("test", test)):
            (folder / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = np.clip(rng.normal(shade, 6, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; one test image is filed under a wrong class."""
    top = tmp_path_factory.mktemp("top")
    data = write(top / "photos", 0)
    shutil.copy(data / "train" / "bee" / "0.png", data / "test" / "1" / "odd.png")
    shutil.copy(data / "test" / "2" / "0.png", top / "two.png")
    return top, training.train(configure(data), top / "run")


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run and of its data, to be changed."""
    top, summary = finished
    for name in ("run", "photos"):
        shutil.copytree(top / name, tmp_path / name)
    return tmp_path / "run", tmp_path / "photos", str(top / "two.png"), summary


def hashes(folder):
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def likeliest(found):
    return max(found[0]["probabilities"], key=found[0]["probabilities"].get)


def refused(config, folder, message, call=training.test):
    """Check that a call is refused in one line, and that it leaves the folder of the run as it is."""
    before = hashes(folder)
    with pytest.raises(UserError, match=message) as error:
        call(config, folder)
    assert "\n" not in str(error.value)
    assert hashes(folder) == before


def test_the_run_says_its_classes_and_splits(run):
    folder, _, _, summary = run
    facts = read_json(folder / "facts.json")
    assert facts.pop("tl_jax") == __version__
    assert facts["classes"] == list(CLASSES) and facts["examples"] == {"train": 24, "validation": 8, "test": 17}
    assert {len(value) for value in facts["data_sha256"].values()} == {64} and len(facts["data_sha256"]) == 3
    assert summary["facts"] == facts


def test_a_class_folder_renamed_afterwards_changes_no_prediction_and_is_refused_by_eval(run):
    folder, data, picture, _ = run
    before = Learner(configure(data), folder).show_predictions([picture])
    assert likeliest(before) == "2"
    for split in ("train", "test"):
        (data / split / "1").rename(data / split / "zebra")
    assert Learner(configure(data), folder).show_predictions([picture]) == before
    refused(configure(data), folder, "'1' missing, 'zebra' new; restore the classes")
    for split in ("train", "test"):
        shutil.rmtree(data / split / "zebra")
    refused(configure(data), folder, "'1' missing; restore the classes")


def test_predict_explain_and_export_need_no_data(run):
    folder, data, picture, _ = run
    before = Learner(configure(data), folder).show_predictions([picture])
    shutil.rmtree(data)
    assert Learner(configure(data), folder).show_predictions([picture]) == before
    assert Learner(configure(data), folder).explain([picture]).is_file()
    bundle = export(configure(data), folder).parent
    assert json.loads((bundle / "bundle.json").read_text())["classes"] == list(CLASSES)
    assert f"4: {', '.join(CLASSES)}" in (bundle / "README.md").read_text()
    with pytest.raises(UserError, match="no folder .*photos; check"):
        training.test(configure(data), folder)


def test_eval_on_other_data_is_refused_and_overwrites_nothing(run, tmp_path):
    folder, data, picture, _ = run
    before = Learner(configure(data), folder).show_predictions([picture])
    other = configure(write(tmp_path / "other", 1, test=3))
    assert Learner(other, folder).show_predictions([picture]) == before
    message = (
        r"the validation split differs .* \(8 examples then, 8 now, with other labels or contents\); restore the data"
    )
    refused(other, folder, message)
    (data / "test" / "1" / "odd.png").unlink()
    refused(
        configure(data), folder, r"the test split differs .* \(17 examples then, 16 now\); restore the data, or use"
    )


def test_a_moved_folder_is_the_same_data(run, tmp_path):
    folder, data, _, summary = run
    data.rename(tmp_path / "moved and renamed")
    moved = configure(tmp_path / "moved and renamed")
    assert summary["metrics"]["accuracy"] == pytest.approx(16 / 17)
    assert training.test(moved, folder)["metrics"] == pytest.approx(summary["metrics"])
    (folder / "summary.json").unlink()  # as if it had been stopped before the test
    assert training.train(moved, folder)["metrics"] == pytest.approx(summary["metrics"])


def test_a_run_does_not_go_on_with_other_training_examples(run):
    folder, data, _, summary = run
    for i in range(4):
        shutil.copy(data / "train" / "2" / "0.png", data / "train" / "2" / f"more{i}.png")
    assert training.train(configure(data), folder)["steps"] == summary["steps"]  # it is finished, and says so
    (folder / "summary.json").unlink()
    with pytest.raises(UserError, match=r"the train split differs .* \(24 examples then, 27 now\).* another workdir"):
        training.train(configure(data), folder)
    assert not (folder / "summary.json").exists()


def test_predictions_use_the_temperature_of_the_run(run):
    folder, data, picture, summary = run
    kept = read_json(folder / "summary.json")
    assert kept["calibration"]["temperature"] == summary["calibration"]["temperature"] != 1.0
    (row,) = Learner(configure(data), folder).show_predictions([picture])
    kept["calibration"]["temperature"] *= 2
    (folder / "summary.json").write_text(json.dumps(kept))
    (softer,) = Learner(configure(data), folder).show_predictions([picture])
    roots = {name: p**0.5 for name, p in row["probabilities"].items()}
    expected = {name: root / sum(roots.values()) for name, root in roots.items()}
    assert softer["probabilities"] == pytest.approx(expected, rel=1e-4)


def test_a_run_that_is_not_finished_needs_its_validation_split_to_be_calibrated(run):
    folder, data, picture, _ = run
    before = Learner(configure(data), folder).show_predictions([picture])
    (folder / "summary.json").unlink()
    found = Learner(configure(data), folder).show_predictions([picture])
    assert found[0]["probabilities"] == pytest.approx(before[0]["probabilities"], rel=1e-3)
    shutil.copy(data / "train" / "2" / "0.png", data / "train" / "1" / "9.png")
    refused(configure(data), folder, "the validation split", lambda *run: Learner(*run).show_predictions([picture]))


def test_a_run_from_before_classes_were_kept_takes_them_from_the_data_and_says_so(run, capfd):
    folder, data, picture, _ = run
    facts = read_json(folder / "facts.json")
    for name in ("classes", "examples", "data_sha256", "input_shape"):
        del facts[name]
    (folder / "facts.json").write_text(json.dumps(facts))
    found = Learner(configure(data), folder).show_predictions([picture])
    assert likeliest(found) == "2"
    warning = [line for line in capfd.readouterr().err.splitlines() if "older than the record" in line]
    assert len(warning) == 1 and str(folder) in warning[0]
    for split in ("train", "test"):
        shutil.rmtree(data / split / "1")
    refused(configure(data), folder, r"does not fit .* params/head/bias is \(4,\) in the checkpoint and \(3,\) here")


def test_the_surest_mistakes_name_their_files(run):
    folder, data, _, _ = run
    found = json.loads((folder / "test_details.json").read_text())["mistakes"]
    assert {"file": "test/1/odd.png", "label": "1", "prediction": "bee"}.items() <= found[0].items()
    shutil.rmtree(data)  # a report is made of the files of the run alone
    (folder / "report.html").unlink()
    assert "test/1/odd.png" in Learner(configure(data), folder).report().read_text()


def index(data, path, names=lambda name: name):
    """Write the images of class folders as ``index.csv``."""
    rows = [("file", "label", "split")]
    rows += [(str(p.relative_to(data)), names(p.parent.name), p.parent.parent.name) for p in data.rglob("*.png")]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_a_kept_head_is_matched_by_the_names_of_classes(run, tmp_path):
    folder, data, _, summary = run
    bundle = export(configure(data), folder).parent
    kept = (
        ("init.source", "tl_jax"), ("init.path", str(bundle)), ("init.head", "keep"), ("epochs", 0.0),
        ("data.name", "index"), ("calibrate", False),
    )  # fmt: skip
    index(data, data / "index.csv")
    again = training.train(configure(data, *kept), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "facts.json").read_text())["classes"] == ["1", "2", "10", "bee"]
    assert again["metrics"]["accuracy"] == summary["metrics"]["accuracy"] == pytest.approx(16 / 17)
    index(data, data / "index.csv", lambda name: {"bee": "wasp"}.get(name, name))
    with pytest.raises(UserError, match="other classes than the data: 'bee' missing, 'wasp' new; pass config.init"):
        training.train(configure(data, *kept), tmp_path / "other")


def test_a_kept_head_without_names_is_taken_in_the_order_of_the_data_and_says_so(run, tmp_path, capsys):
    folder, data, _, summary = run
    bundle = export(configure(data), folder).parent
    numbers = {name: str(k) for k, name in enumerate(CLASSES)}
    for split in ("train", "test"):
        for name in CLASSES:
            (data / split / name).rename(data / split / f"to {numbers[name]}")
    for split in ("train", "test"):
        for number in numbers.values():
            (data / split / f"to {number}").rename(data / split / number)
    kept = (("init.source", "tl_jax"), ("init.path", str(bundle)), ("init.head", "keep"), ("epochs", 0.0))
    again = training.train(configure(data, *kept, ("calibrate", False)), tmp_path / "again")
    assert again["metrics"]["accuracy"] == summary["metrics"]["accuracy"]
    assert "the data have no class names, so output k of the head is used for class k" in capsys.readouterr().out


def labels_of(kind):
    if kind == "boxes":
        rows = np.array(
            [[[0, 0, 4, 4, 2, 0], [1, 1, 3, 3, 0, 1]], [[0, 0, 2, 2, 1, 0], [0, 0, 0, 0, -1, 0]]], np.float32
        )
        return rows, lambda labels: labels[..., 4].ravel().tolist(), [0, 2, 1, -1]
    if kind == "tags":
        tags = np.empty(2, object)
        tags[:] = [np.array([0, 2], np.int32), np.array([1], np.int32)]
        return tags, lambda labels: [each.tolist() for each in labels], [[2, 0], [1]]
    return np.array([0, 2, 1, 0], np.int32), lambda labels: labels.tolist(), [2, 0, 1, 2]


@pytest.mark.parametrize("kind", ["boxes", "tags", "labels"])
def test_the_same_classes_in_another_order_are_put_into_the_order_of_the_run(kind):
    labels, plain, expected = labels_of(kind)
    images = np.arange(len(labels) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3)
    source = Dataset("set", Split(images, labels), Split(images, labels), ("a", "b", "c"))
    turned = run_record.with_class_order(source, ("c", "b", "a"), "run")
    assert turned.classes == ("c", "b", "a")
    assert plain(turned.train.labels) == expected and plain(turned.test.labels) == expected
    assert fingerprint(turned.test, turned.classes) == fingerprint(source.test, source.classes)
    assert fingerprint(source.test, ("a", "b", "x")) != fingerprint(source.test, source.classes)
    with pytest.raises(UserError, match="'d' missing, 'c' new"):
        run_record.with_class_order(source, ("a", "b", "d"), "run")


def test_a_fingerprint_tells_what_changed(tmp_path):
    labels = np.array([0, 1, 1], np.int32)
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    texts = np.empty(3, object)
    texts[:] = ["one", ("two", "sides"), ["three", "words"]]
    (tmp_path / "a").mkdir()
    for i in range(3):
        (tmp_path / "a" / f"{i}.png").write_bytes(b"x" * (i + 1))
    files = np.array([str(tmp_path / "a" / f"{i}.png") for i in range(3)], object)

    def of(images=images, labels=labels, **more):
        return fingerprint(Split(images, labels, **more), ("no", "yes"), str(tmp_path), "set")

    brighter, other = images.copy(), texts.copy()
    brighter[2, 0, 0, 0] ^= 1
    other[2] = ["three", "word"]
    plain = [of(), of(brighter), of(labels=labels[::-1]), of(groups=np.array(["p", "q", "q"])), of(texts), of(other)]
    plain += [of(files=files)]
    (tmp_path / "a" / "1.png").write_bytes(b"xxxx")
    plain += [of(files=files), of(files=files[::-1])]
    assert len(set(plain)) == len(plain) and of() == plain[0]
