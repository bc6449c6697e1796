"""Npz data sets from elsewhere: what they claim is checked before memory is taken for it, and so are their labels."""

import io
import resource
import zipfile

import numpy as np
import pytest

from tl_jax.data import medmnist
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
MEMORY = 1 << 28  # bytes beyond those in use that a test may take


def arrays(**changed):
    found = {}
    for name, count in (("train", 6), ("test", 4)):
        found[f"{name}_images"] = np.random.default_rng(count).integers(0, 255, (count, 8, 8)).astype(np.uint8)
        found[f"{name}_labels"] = (np.arange(count) % 2)[:, None]
    return found | changed


def header(shape):
    """Return the beginning of an npy file that claims a shape."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue()


@pytest.fixture
def little_memory():
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_claim_of_gigabytes_takes_none(tmp_path, little_memory):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", header((50 * 10**9 // 784, 28, 28)) + bytes(100))
    with pytest.raises(UserError, match="set.npz .*train_images does not have the length in its header"):
        medmnist.read_npz(path)


def test_a_bomb_is_not_unpacked(tmp_path, little_memory):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", header((1 << 17, 28, 28)) + bytes(28 * 28 << 17))
    with pytest.raises(UserError, match="set.npz .*far more than it has"):
        medmnist.read_npz(path)


def test_objects_run_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (tmp_path / "trace").write_text, ("run",)

    for changed in ({"train_labels": np.asarray([Hostile()] * 6, object)}, {"train_labels": np.asarray(["a"] * 6)}):
        np.savez(tmp_path / "set.npz", **arrays(**changed))
        (tmp_path / "trace").unlink(missing_ok=True)
        with pytest.raises(UserError, match="train_labels has type .*, not numbers"):
            medmnist.read_npz(tmp_path / "set.npz")
        assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.asarray([0, 1, 0, 1, 0, 10**6]), "train has the label 1,000,000, .* than its 6 examples"),
        (np.asarray([0, 1, 0, 1, 0, 2**63 + 1], np.uint64), "train has the label 9,223,372,036,854,775,809"),
        (np.asarray([0, 1, 0, 1, 0, 2**40 + 1]), "train has the label 1,099,511,627,777"),
        (np.asarray([0, 1, 0, 1, 0, -1]), "train: example 5 has the label -1, .* 2 classes are 0 to 1"),
        (np.asarray([0.0, 1, 0, 1, 0, np.nan]), "save one integer per image"),
        (np.zeros((6, 2), int), "save one integer per image"),
        (np.zeros(5, int), "save one integer per image"),
    ],
)
def test_labels_that_are_none_are_named(tmp_path, labels, said):
    np.savez(tmp_path / "set.npz", **arrays(train_labels=labels))
    with pytest.raises(UserError, match=f"set.npz.*{said}"):
        medmnist.read_npz(tmp_path / "set.npz")


def test_a_label_that_train_does_not_have_is_named(tmp_path):
    np.savez(tmp_path / "set.npz", **arrays(test_labels=np.asarray([0, 1, 2**32, 1])))
    with pytest.raises(UserError, match="set.npz, test: example 2 has the label 4294967296, .*2 classes are 0 to 1"):
        medmnist.read_npz(tmp_path / "set.npz")
