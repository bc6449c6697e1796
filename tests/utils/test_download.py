"""Downloads against servers on 127.0.0.1: one that knows ranges, one that does not, one that breaks off."""

import hashlib
import os
import pwd
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import tl_jax.utils.download
from tl_jax.utils.download import CHUNK, cache_dir, fetch, locked
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast

DATA = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(200)) * 40  # 256,000 bytes
SHA256 = hashlib.sha256(DATA).hexdigest()
DIGEST = f"sha256:{SHA256}"


class Server(ThreadingHTTPServer):
    """Serves DATA under every address but /missing; remembers what was asked."""

    def __init__(self, ranges: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = ranges
        self.asked: list[str | None] = []  # the Range header of each request
        self.break_after: list[int] = []  # bytes until the connection drops, one entry per request
        self.url = f"http://127.0.0.1:{self.server_port}/data.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, asked = self.server, self.headers["Range"]
        assert isinstance(server, Server)
        server.asked.append(asked)
        if self.path == "/missing":
            return self.send_error(404)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if start and start >= len(DATA):
            return self.send_error(416)
        body = DATA[start:]
        self.send_response(206 if start else 200)
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.break_after.pop(0)] if server.break_after else body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""


@pytest.fixture(params=[True, False], ids=["ranges", "no_ranges"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(tl_jax.utils.download, "RETRY_WAIT", 0.0)
    with Server(ranges=request.param) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("digest", [DIGEST, f"sha256:{SHA256[:8]}", f"md5:{hashlib.md5(DATA).hexdigest()}"])
def test_download_and_hash(server: Server, tmp_path: Path, digest: str) -> None:
    path = tmp_path / "new" / "data.bin"
    assert fetch(server.url, path, digest, progress=False) == path
    assert path.read_bytes() == DATA
    assert names(path.parent) == ["data.bin"]  # neither part nor lock left
    assert server.asked == [None]


def test_right_file_makes_no_request(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(DATA)
    fetch(server.url, tmp_path / "data.bin", DIGEST)
    assert server.asked == []


def test_wrong_file_is_named_and_left_alone(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"mine")
    with pytest.raises(UserError) as caught:
        fetch(server.url, path, DIGEST)
    for part in (str(path), SHA256, hashlib.sha256(b"mine").hexdigest(), server.url):
        assert part in str(caught.value)
    assert path.read_bytes() == b"mine" and names(tmp_path) == ["data.bin"] and server.asked == []


def test_partial_file_is_resumed_or_restarted(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(DATA[:1000])
    fetch(server.url, tmp_path / "data.bin", DIGEST, progress=False)
    assert server.asked == ["bytes=1000-"]  # one answers the rest, the other everything
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert names(tmp_path) == ["data.bin"]


def test_only_the_rest_is_transferred(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(b"x" * 1000)  # a wrong beginning shows whether it was kept
    if server.ranges:
        with pytest.raises(UserError, match="kept at"):
            fetch(server.url, tmp_path / "data.bin", DIGEST, progress=False)
        assert (tmp_path / "data.bin.bad").read_bytes() == b"x" * 1000 + DATA[1000:]
    else:
        fetch(server.url, tmp_path / "data.bin", DIGEST, progress=False)


def test_complete_part_needs_no_request(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(DATA)
    fetch(server.url, tmp_path / "data.bin", DIGEST)
    assert server.asked == [] and names(tmp_path) == ["data.bin"]


def test_part_of_full_length_but_wrong(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(b"y" * len(DATA))
    if server.ranges:  # answers 416: nothing is left to ask for
        with pytest.raises(UserError, match="kept at"):
            fetch(server.url, tmp_path / "data.bin", DIGEST, progress=False)
    fetch(server.url, tmp_path / "data.bin", DIGEST, progress=False)
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_broken_connection_is_tried_again(server: Server, tmp_path: Path) -> None:
    # What is resumed may break often: each try brings something. What starts from zero each time may not.
    server.break_after = [3 * CHUNK, 2 * CHUNK + 9, 0, CHUNK, CHUNK] if server.ranges else [3 * CHUNK, 0]
    fetch(server.url, tmp_path / "data.bin", DIGEST, progress=False)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    if server.ranges:
        assert server.asked == [None] + [f"bytes={n * CHUNK}-" for n in (3, 5, 5, 6, 7)]
    else:
        assert len(server.asked) == 3


def test_connection_that_stays_broken(server: Server, tmp_path: Path) -> None:
    server.break_after = [3 * CHUNK] + [0] * 20
    with pytest.raises(UserError, match="the connection broke"):
        fetch(server.url, tmp_path / "data.bin", DIGEST, progress=False)
    assert len(server.asked) == 1 + tl_jax.utils.download.MAX_TRIES - 1
    if server.ranges:
        assert (tmp_path / "data.bin.part").read_bytes() == DATA[: 3 * CHUNK]  # what came is not lost


def test_mismatch_is_kept_aside(server: Server, tmp_path: Path) -> None:
    path, wrong = tmp_path / "data.bin", "md5:" + "0" * 32
    with pytest.raises(UserError) as caught:
        fetch(server.url, path, wrong, progress=False)
    for part in (server.url, wrong, hashlib.md5(DATA).hexdigest(), f"{path}.bad"):
        assert part in str(caught.value)
    assert names(tmp_path) == ["data.bin.bad"]
    assert (tmp_path / "data.bin.bad").read_bytes() == DATA


def test_http_error(server: Server, tmp_path: Path) -> None:
    url = server.url.replace("data.bin", "missing")
    with pytest.raises(UserError, match=f"{url}.*HTTP 404.*{tmp_path}/data.bin or pass --x=FILE$"):
        fetch(url, tmp_path / "data.bin", DIGEST, hint="or pass --x=FILE")
    assert names(tmp_path) == []


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tl_jax.utils.download, "RETRY_WAIT", 0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/data.bin"
    with pytest.raises(UserError) as caught:
        fetch(url, tmp_path / "data.bin", DIGEST, hint="or pass config.init.path=FILE")
    message = str(caught.value)
    assert url in message and "Connection refused" in message and f"{tmp_path}/data.bin" in message
    assert message.endswith("or pass config.init.path=FILE") and "\n" not in message
    assert names(tmp_path) == []


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot write in {tmp_path}/file/sub .*choose a folder"):
        fetch("http://127.0.0.1:1/x", tmp_path / "file" / "sub" / "data.bin", DIGEST)


@pytest.mark.parametrize("digest", ["md5:12", "sha256:1234567", "crc32:00000000", SHA256, "sha256:" + SHA256.upper()])
def test_malformed_digest(tmp_path: Path, digest: str) -> None:
    with pytest.raises(UserError, match="digest"):
        fetch("http://127.0.0.1:1/x", tmp_path / "data.bin", digest)


def test_processes_do_not_mix_their_bytes(server: Server, tmp_path: Path) -> None:
    fetches = [
        threading.Thread(target=fetch, args=(server.url, tmp_path / "data.bin", DIGEST), kwargs={"progress": False})
        for _ in range(8)
    ]
    for thread in fetches:
        thread.start()
    for thread in fetches:
        thread.join()
    assert server.asked == [None] and names(tmp_path) == ["data.bin"]


def test_one_at_a_time_holds_the_lock(tmp_path: Path) -> None:
    inside, most = [], []

    def work() -> None:
        for _ in range(30):
            with locked(tmp_path / "x"):
                inside.append(1)
                time.sleep(0.0005)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 180 and max(most) == 1 and names(tmp_path) == []


def test_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from tl_jax.utils.download import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(tl_jax.utils.download.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], cwd=root, check=False, timeout=60)
    assert names(tmp_path) == ["x.lock"]
    with locked(tmp_path / "x"):  # would wait for ever
        pass
    assert names(tmp_path) == []


def test_progress_on_stderr(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch(server.url, tmp_path / "data.bin", DIGEST)
    assert "data.bin" in capsys.readouterr().err
    fetch(server.url, tmp_path / "quiet.bin", DIGEST, progress=False)
    assert capsys.readouterr().err == ""


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_JAX_CACHE", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("TL_JAX_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "tl_jax"


@pytest.mark.parametrize("home", [None, "", "/"])
def test_without_a_home_what_is_kept_goes_to_a_folder_of_ones_own(tmp_path, monkeypatch, capsys, home):
    monkeypatch.delenv("TL_JAX_CACHE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])  # `docker run --user 12345`: no such user
    tl_jax.utils.download._fallback_cache_dir.cache_clear()
    folder = tmp_path / f"tl_jax-{os.getuid()}"
    assert cache_dir() == cache_dir() == folder and folder.stat().st_mode & 0o777 == 0o700
    assert capsys.readouterr().err.count("no home folder") == 1


def test_a_folder_of_somebody_else_does_not_stand_in_for_the_home(tmp_path, monkeypatch):
    monkeypatch.delenv("TL_JAX_CACHE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "")
    (tmp_path / f"tl_jax-{os.getuid()}").write_text("a file that somebody put there")
    tl_jax.utils.download._fallback_cache_dir.cache_clear()
    with pytest.raises(UserError, match="set .TL_JAX_CACHE"):
        cache_dir()
