"""TensorFlow's flower photos, from small archives of the published layout, served on 127.0.0.1."""

import functools
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.data.test_image_folder import draw
from tl_jax.data import tfds
from tl_jax.utils import download
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


@pytest.fixture
def served(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """Serve a folder; the flowers are looked for there, and the cache is empty."""
    top = tmp_path / "served"
    top.mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=top)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: (top / "asked").open("a").write("x"))
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tl_jax.utils.download.RETRY_WAIT", 0.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(tfds, "FLOWERS", f"http://127.0.0.1:{server.server_port}/flower_photos.tgz")
        yield top
        server.shutdown()


def pack(served: Path, monkeypatch, extra: Sequence[tarfile.TarInfo] = (), keep: float = 1.0) -> None:
    """Serve an archive of the published layout, with ``extra`` members of one byte."""
    drawn = draw(served.parent / "drawn", {"daisy": 5, "roses": 5})
    (drawn / "LICENSE.txt").write_text("CC-BY")
    path = served / "flower_photos.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(drawn, "flower_photos")
        for member in extra:
            member.size = 1 if member.isfile() else 0
            tar.addfile(member, io.BytesIO(b"x"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    monkeypatch.setattr(tfds, "FLOWERS_DIGEST", "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest())


def test_flowers_are_downloaded_once(served: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    pack(served, monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: tfds.download_flowers(), range(3)))
    assert found == [tmp_path / "cache" / "data" / "flowers" / "flower_photos"] * 3
    source = tfds.load("flowers", size=16)
    assert (source.name, source.classes) == ("flower_photos", ("daisy", "roses"))
    assert source.train.inputs.shape == (8, 8, 8, 3)
    assert "not read: 1 .txt (LICENSE.txt)" in capsys.readouterr().err
    assert (served / "asked").read_text() == "x"
    assert sorted(p.name for p in (tmp_path / "cache" / "data").iterdir()) == ["flower_photos.tgz", "flowers"]


def test_flowers_with_a_folder_are_read_from_there(served: Path, tmp_path: Path) -> None:
    source = tfds.load("flowers", str(draw(tmp_path / "mine", {"green": 5, "red": 5})))
    assert source.classes == ("green", "red") and not (served / "asked").exists()


def test_flowers_offline_say_what_to_do(served: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache" / "data" / "flower_photos.tgz"
    with pytest.raises(UserError, match=f"HTTP 404.*put the file at {place} or set config.data.dir"):
        tfds.load("flowers")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil"),
        member("flower_photos/../../evil"),
        member("flower_photos/evil", tarfile.SYMTYPE, "/etc/passwd"),
        member("flower_photos/evil", tarfile.SYMTYPE, "daisy"),
        member("flower_photos/evil", tarfile.LNKTYPE, "flower_photos/daisy/00.png"),
        member("flower_photos/evil", tarfile.CHRTYPE),
        member("flower_photos/evil", tarfile.FIFOTYPE),
    ],
    ids=["up", "up from within", "link out", "link within", "hard link", "device", "fifo"],
)
def test_a_malicious_archive_is_refused(served: Path, tmp_path: Path, monkeypatch, evil: tarfile.TarInfo) -> None:
    pack(served, monkeypatch, [evil])
    with pytest.raises(UserError, match="flower_photos.tgz: unsafe content") as caught:
        tfds.load("flowers")
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("evil"))
    assert [p.name for p in (tmp_path / "cache" / "data").iterdir()] == ["flower_photos.tgz"]


def test_an_absolute_path_stays_within(served: Path, tmp_path: Path, monkeypatch) -> None:
    pack(served, monkeypatch, [member(str(tmp_path / "evil"))])
    tfds.load("flowers")
    assert not (tmp_path / "evil").exists()


def test_a_truncated_archive(served: Path, tmp_path: Path, monkeypatch) -> None:
    pack(served, monkeypatch, keep=0.7)
    archive = tmp_path / "cache" / "data" / "flower_photos.tgz"
    with pytest.raises(UserError, match=f"{archive}: damaged archive .*delete it"):
        tfds.load("flowers")
    assert [p.name for p in archive.parent.iterdir()] == ["flower_photos.tgz"]


def test_what_a_killed_process_left_is_removed(served: Path, tmp_path: Path, monkeypatch) -> None:
    pack(served, monkeypatch)
    left = tmp_path / "cache" / "data" / "incomplete.flowers"
    draw(left / "flower_photos", {"half": 1})
    assert tfds.load("flowers").classes == ("daisy", "roses") and not left.exists()


def test_a_disk_that_is_full(served: Path, tmp_path: Path, monkeypatch) -> None:
    pack(served, monkeypatch)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "replace", lambda a, b: full() if "incomplete" in str(a) else Path(a).rename(b))
    with pytest.raises(UserError, match="cannot write .*flowers .No space left on device"):
        tfds.load("flowers")
    assert [p.name for p in (tmp_path / "cache" / "data").iterdir()] == ["flower_photos.tgz"]
