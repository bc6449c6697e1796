"""CIFAR-10 and CIFAR-100 made from small archives of the published layout, served on 127.0.0.1."""

import functools
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tl_jax.data import cifar
from tl_jax.data.cifar import ARCHIVES, prepare
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast

ROOT = Path(cifar.__file__).parents[2]
PER_FILE = {"cifar10": 20, "cifar100": 40}
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
NAMES = {
    "batches.meta.txt": CLASSES,
    "coarse_label_names.txt": [f"group{i}" for i in range(20)],
    "fine_label_names.txt": [f"kind{i}" for i in range(100)],
}


class Served(NamedTuple):
    url: str  # of the folder
    folder: Path
    requests: list[str]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            requests.append(self.path)

    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield Served(f"http://127.0.0.1:{server.server_port}", folder, requests)
        server.shutdown()


def make_records(name: str) -> dict[str, np.ndarray]:
    """Draw records (N, labels + 3072) uint8 for each file of an archive."""
    rng = np.random.default_rng(0)
    archive, n = ARCHIVES[name], PER_FILE[name]
    records = {}
    for file in [file for files in archive.splits.values() for file in files]:
        labels = [rng.integers(0, label.classes, (n, 1), dtype=np.uint8) for label in archive.labels]
        records[file] = np.concatenate([*labels, rng.integers(0, 256, (n, 3072), dtype=np.uint8)], axis=1)
    return records


def serve(served: Served, name: str, files: dict[str, bytes] | None = None, keep: float = 1.0) -> dict[str, str]:
    """Put an archive under the published name; return the arguments ``url`` and ``digest`` of prepare."""
    archive = ARCHIVES[name]
    if files is None:
        files = {f"{archive.folder}/{file}": data.tobytes() for file, data in make_records(name).items()}
        for labels in archive.labels:
            files[f"{archive.folder}/{labels.file}"] = "\n".join([*NAMES[labels.file], "\n"]).encode()
    path = served.folder / archive.file
    with tarfile.open(path, "w:gz") as tar:
        for file, data in files.items():
            info = tarfile.TarInfo(file)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    return {"url": f"{served.url}/{archive.file}", "digest": digest}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_prepared_set_reads_back_through_tfds(served: Served, tmp_path: Path, name: str) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = prepare(name, tmp_path / "sets", **serve(served, name))
    assert folder == tmp_path / "sets" / name / "3.0.2"
    builder = tfds.builder_from_directory(folder)
    archive, records = ARCHIVES[name], make_records(name)
    assert set(builder.info.features) == {"image", "id", *(labels.feature for labels in archive.labels)}
    for labels in archive.labels:
        assert builder.info.features[labels.feature].names == NAMES[labels.file]
    for split, files in archive.splits.items():
        expected = np.concatenate([records[file] for file in files])
        by_name = tfds.data_source(name, split=split, data_dir=tmp_path / "sets")
        by_folder = builder.as_data_source(split)
        assert len(by_name) == len(by_folder) == builder.info.splits[split].num_examples == len(expected)
        seen = set()
        for example, same in zip(by_name, by_folder, strict=True):
            prefix, _, index = example["id"].decode().partition("_")
            assert prefix == split and same["id"] == example["id"]
            seen.add(int(index))
            row = expected[int(index)]
            # Planes of red, green and blue, each row by row.
            pixels = row[len(archive.labels) :].reshape(3, 32, 32)
            np.testing.assert_array_equal(example["image"], np.stack(list(pixels), axis=-1))
            for i, labels in enumerate(archive.labels):
                assert example[labels.feature] == same[labels.feature] == row[i]
        assert seen == set(range(len(expected)))


def test_order_is_that_of_tfds(served: Served, tmp_path: Path) -> None:
    """TFDS orders by a hash of the split and the number of the image; prefixes of a split must not be one batch."""
    tfds = pytest.importorskip("tensorflow_datasets")
    source = tfds.builder_from_directory(prepare("cifar10", tmp_path, **serve(served, "cifar10"))).as_data_source(
        "test"
    )
    order = [int(example["id"].decode()[-5:]) for example in source]
    keys = [hashlib.md5(b"test" + str(i).encode()).hexdigest() for i in range(PER_FILE["cifar10"])]
    assert order == sorted(range(len(keys)), key=keys.__getitem__)


def test_second_time_makes_no_request(served: Served, tmp_path: Path) -> None:
    where = serve(served, "cifar10")
    folder = prepare("cifar10", tmp_path / "sets", **where)
    assert len(served.requests) == 1
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare("cifar10", tmp_path / "sets") == folder  # needs neither url nor digest
    assert prepare("cifar10", tmp_path / "sets", **where) == folder
    assert len(served.requests) == 1 and times == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert [path.name for path in (tmp_path / "sets" / "cifar10").iterdir()] == ["3.0.2"]
    assert [path.name for path in (tmp_path / "sets" / "downloads").iterdir()] == ["cifar-10-binary.tar.gz"]


def test_processes_do_not_make_it_twice(served: Served, tmp_path: Path) -> None:
    where = serve(served, "cifar10")
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: prepare("cifar10", tmp_path / "sets", **where), range(3)))
    assert folders == [tmp_path / "sets" / "cifar10" / "3.0.2"] * 3 and len(served.requests) == 1


def test_archive_is_kept(served: Served, tmp_path: Path) -> None:
    where = serve(served, "cifar10")
    folder = prepare("cifar10", tmp_path / "sets", **where)
    folder.rename(tmp_path / "elsewhere")
    prepare("cifar10", tmp_path / "sets", **where)
    assert len(served.requests) == 1 and folder.is_dir()


@pytest.mark.parametrize("damage", ["shard", "missing shard", "info", "features"])
def test_incomplete_folder_is_not_taken_for_whole(served: Served, tmp_path: Path, damage: str) -> None:
    folder = prepare("cifar10", tmp_path / "sets", **serve(served, "cifar10"))
    shard = folder / "cifar10-train.array_record-00000-of-00001"
    if damage == "shard":
        shard.write_bytes(shard.read_bytes()[:100_000])
    else:
        {"missing shard": shard, "info": folder / "dataset_info.json", "features": folder / "features.json"}[
            damage
        ].unlink()
    with pytest.raises(UserError, match=f"{folder}: .*move it away"):
        prepare("cifar10", tmp_path / "sets")


def test_other_complete_versions_are_taken(served: Served, tmp_path: Path) -> None:
    folder = prepare("cifar10", tmp_path, **serve(served, "cifar10"))
    for version in ("2.9.0", "2.10.0", "4.0.0"):
        shutil.copytree(folder, folder.with_name(version))
    folder.with_name("11.0.0").mkdir()  # not complete
    assert prepare("cifar10", tmp_path) == folder  # the one that tfds.data_source reads
    shutil.rmtree(folder)
    assert prepare("cifar10", tmp_path) == folder.with_name("4.0.0")
    shutil.rmtree(folder.with_name("4.0.0"))
    assert prepare("cifar10", tmp_path) == folder.with_name("2.10.0")


def test_truncated_archive(served: Served, tmp_path: Path) -> None:
    where = serve(served, "cifar10", keep=0.7)
    archive = tmp_path / "sets" / "downloads" / "cifar-10-binary.tar.gz"
    with pytest.raises(UserError, match=f"{archive}: damaged archive"):
        prepare("cifar10", tmp_path / "sets", **where)
    assert archive.is_file() and list((tmp_path / "sets" / "cifar10").iterdir()) == []


def test_not_the_published_archive(served: Served, tmp_path: Path) -> None:
    url = serve(served, "cifar10")["url"]
    with pytest.raises(UserError, match=", not sha256:c4a38c50"):
        prepare("cifar10", tmp_path / "sets", url=url)


def small(name: str, **changed: bytes | None) -> dict[str, bytes]:
    """Return an archive's files with one record each, some replaced or (None) left out."""
    archive, records = ARCHIVES[name], make_records(name)
    files = {f"{archive.folder}/{file}": data[:1].tobytes() for file, data in records.items()}
    files |= {f"{archive.folder}/{label.file}": "\n".join(NAMES[label.file]).encode() for label in archive.labels}
    files |= {f"{archive.folder}/{file.replace('__', '.')}": data for file, data in changed.items()}
    return {file: data for file, data in files.items() if data is not None}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cifar-10-batches-py/data_batch_1": b"pickle"}, "has no cifar-10-batches-bin/data_batch_1.bin"),
        (small("cifar10", test_batch__bin=None), "has no cifar-10-batches-bin/test_batch.bin"),
        (small("cifar10", data_batch_3__bin=bytes(3072)), "no multiple of 3073"),
        (small("cifar10", data_batch_3__bin=bytes([10] * 3073)), "labels up to 10"),
        (small("cifar10", batches__meta__txt=b"cat\ndog"), "has 2 names"),
        (small("cifar10", batches__meta__txt=b"\xff\xfe"), "has 1 names"),
    ],
)
def test_wrong_layout(served: Served, tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    archive = tmp_path / "sets" / "downloads" / "cifar-10-binary.tar.gz"
    with pytest.raises(UserError, match=message) as caught:
        prepare("cifar10", tmp_path / "sets", **serve(served, "cifar10", files))
    assert str(archive) in str(caught.value) and "binary" in str(caught.value)
    assert list((tmp_path / "sets" / "cifar10").iterdir()) == []


def test_nothing_is_written_outside(served: Served, tmp_path: Path) -> None:
    files = small("cifar10") | {"../evil": b"x", str(tmp_path / "evil"): b"x", "cifar-10-batches-bin/../../evil": b"x"}
    prepare("cifar10", tmp_path / "a" / "sets", **serve(served, "cifar10", files))
    assert not list(tmp_path.rglob("evil"))


KILL = """
import os, signal, sys
from pathlib import Path
from PIL import Image
from tl_jax.data import cifar
images, original = [], Image.fromarray
def fromarray(*args, **kwargs):
    images.append(1)
    if len(images) == 110:  # in the test split: the train shard is on disk
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
Image.fromarray = fromarray
cifar.prepare("cifar10", Path(sys.argv[1]), url=sys.argv[2], digest=sys.argv[3])
"""


def test_killed_half_way(served: Served, tmp_path: Path) -> None:
    where = serve(served, "cifar10")
    sets = tmp_path / "sets"
    command = [sys.executable, "-c", KILL, str(sets), where["url"], where["digest"]]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    assert list(sets.glob("cifar10/incomplete.*/*train.array_record*"))  # it was under way
    assert not (sets / "cifar10" / "3.0.2").exists() and cifar.find_prepared("cifar10", sets) is None
    folder = prepare("cifar10", sets, **where)
    assert [path.name for path in (sets / "cifar10").iterdir()] == ["3.0.2"]  # what the killed one left is gone
    assert cifar.find_prepared("cifar10", sets) == folder and len(served.requests) == 1


WITHOUT_TENSORFLOW = """
import sys
from pathlib import Path
import tl_jax.data.cifar as cifar
assert "tensorflow_datasets" not in sys.modules  # half a second, for those who need it
folder = cifar.prepare("cifar10", Path(sys.argv[1]), url=sys.argv[2], digest=sys.argv[3])
import tensorflow_datasets as tfds
print(tfds.data_source("cifar10", split="test", data_dir=sys.argv[1])[0]["image"].shape)
print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "keras", "torch")])
"""


def test_tensorflow_is_never_imported(served: Served, tmp_path: Path) -> None:
    where = serve(served, "cifar10")
    # A tensorflow that tells of its import, so that the test also means something where it is not installed.
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path / "sets"), where["url"], where["digest"]]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["(32, 32, 3)", "[]"]  # and nothing of TFDS' own talk
    assert "preparing cifar10" in result.stderr


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'cifar1'.*cifar10"):
        prepare("cifar1", tmp_path)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot write in {tmp_path}/file/cifar10"):
        prepare("cifar10", tmp_path / "file")


def test_offline_says_where_to_put_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_jax.utils.download.RETRY_WAIT", 0.0)
    place = tmp_path / "downloads" / "cifar-100-binary.tar.gz"
    with pytest.raises(UserError, match=f"http://127.0.0.1:9/cifar-100-binary.tar.gz .*put the file at {place}"):
        prepare("cifar100", tmp_path, url="http://127.0.0.1:9/cifar-100-binary.tar.gz")
