"""A disk that fails is one line, whoever writes; what was there is as it was, and nothing half written is left."""

import ast
import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy
from matplotlib.figure import Figure
from PIL import Image

from tl_jax.utils import disk
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parents[1]
NOISE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)


@contextlib.contextmanager
def limited(size=20_000):
    """Let no file grow beyond ``size`` bytes: the system's answer is EFBIG, as that of a quota."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder with room for 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting needs rights: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def hdf5(path):
    with h5py.File(path, "w") as file:
        file["x"] = NOISE


def figure(path):
    drawn = Figure(dpi=150)
    drawn.figimage(NOISE)
    disk.save_figure(drawn, path)


def within(write):
    def call(path):
        with disk.atomic_write(path) as temporary:
            write(temporary)

    return call


WRITERS = {
    "text": lambda path: disk.write_text(path, "x" * 100_000),
    "bytes": lambda path: disk.write_bytes(path, NOISE.tobytes()),
    "matplotlib": figure,
    "PIL": within(lambda path: Image.fromarray(NOISE).save(path, "PNG")),
    "GIF": within(lambda path: Image.fromarray(NOISE).save(path, "GIF")),
    "h5py": within(hdf5),
    "safetensors": within(lambda path: safetensors.numpy.save_file({"x": NOISE}, path)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_whoever_writes(small_disk, name):
    file = small_disk / "a.png"
    file.write_text("as it was")
    with pytest.raises(UserError, match=r"cannot write .*a\.png: No space left on device; free disk space there"):
        WRITERS[name](file)
    assert file.read_text() == "as it was" and os.listdir(small_disk) == ["a.png"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_may_not_grow_is_one_line_whoever_writes(tmp_path, name):
    file = tmp_path / "a.png"
    file.write_text("as it was")
    with limited(), pytest.raises(UserError, match=r"cannot write .*a\.png: File too large; free disk space there"):
        WRITERS[name](file)
    assert file.read_text() == "as it was" and os.listdir(tmp_path) == ["a.png"]


def test_what_else_the_system_says_comes_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, said in {
        tmp_path / ("x" * 300): "File name too long; choose a shorter name",
        tmp_path / "file" / "x": "(Not a directory|File exists); choose another path",
        tmp_path / "folder": "Is a directory; choose another path",
    }.items():
        with pytest.raises(UserError, match=f"cannot write .*: {said}"):
            disk.write_text(path, "x")
    for number, said in {
        errno.EROFS: "Read-only file system; choose a folder that you can write",
        errno.EACCES: "Permission denied; choose a folder that you can write",
        errno.EDQUOT: "Disk quota exceeded; free disk space",
        errno.EIO: "Input/output error; repair that disk",
    }.items():
        with pytest.raises(UserError, match=said), disk.atomic_write(tmp_path / "y"):
            raise OSError(number, os.strerror(number))


def test_a_palette_makes_a_picture_smaller(tmp_path):
    drawn = Figure(dpi=100)
    drawn.subplots().plot(NOISE.ravel()[:300])
    whole, small = disk.save_figure(drawn, tmp_path / "a.png"), disk.save_figure(drawn, tmp_path / "b.png", colors=64)
    assert small.stat().st_size < 0.6 * whole.stat().st_size
    with Image.open(whole) as before, Image.open(small) as after:
        assert after.mode == "P" and after.size == before.size
        assert np.abs(np.asarray(after.convert("RGB"), int) - np.asarray(before.convert("RGB"), int)).mean() < 2


def test_an_error_without_a_number_is_told_as_it_is(tmp_path):
    with limited(), pytest.raises(UserError, match=r"cannot write .*a \(270000 requested and 20000 written\)"):
        with disk.atomic_write(tmp_path / "a") as temporary:
            NOISE.tofile(temporary)
    assert not os.listdir(tmp_path)


def test_a_mistake_of_the_program_stays_what_it_is(tmp_path):
    for error in (KeyError("lr"), ValueError("no such dtype")):
        with pytest.raises(type(error)), disk.atomic_write(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise error
    assert not os.listdir(tmp_path)


COMMAND = """
import os, sys
from tl_jax.utils import command
from tl_jax.train.logging import say
def main(_):
    {body}
command.run(main)
"""


def run(body, tmp_path, **how):
    file = tmp_path / "command.py"
    file.write_text(COMMAND.format(body=body))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": ""}
    return subprocess.run(
        [sys.executable, str(file)], stderr=subprocess.PIPE, text=True, env=environment, check=False, **how
    )


@pytest.mark.parametrize("body", ["print('x')", "say('x')", "print('x' * 10**6)"])
def test_an_output_that_cannot_be_written_is_one_line(tmp_path, body):
    with open("/dev/full", "w") as full:
        done = run(body, tmp_path, stdout=full)
    assert done.returncode == 2 and done.stderr.startswith("error: cannot write the output: No space left on device; ")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = run("print('x' * 10**6)", tmp_path, stdout=write)
    os.close(write)
    assert done.returncode == 141 and not done.stderr


def test_whatever_the_system_refuses_in_a_command_is_one_line(tmp_path):
    done = run(f"open({str(tmp_path / ('x' * 300))!r})", tmp_path, stdout=subprocess.PIPE)
    assert done.returncode == 2 and "File name too long; choose a shorter name" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# Caches that do without when they cannot be written, downloads that go on later, and output of another process.
OWN_WAYS = {
    "tl_jax/utils/disk.py", "tl_jax/utils/disk_cache.py", "tl_jax/data/text_datasets.py",
    "tl_jax/utils/compile_cache.py", "tl_jax/utils/download.py", "experiments/verify.py",
}  # fmt: skip
BARE = {"write_text", "write_bytes", "savefig", "copyfile", "save_file"}


def test_every_file_is_written_by_what_tells_of_the_disk():
    found = []
    for path in [*(ROOT / "tl_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        name = str(path.relative_to(ROOT))
        if name in OWN_WAYS or path.name.startswith("faults"):
            continue
        tree = ast.parse(path.read_text())
        wrapped = {id(call) for block in ast.walk(tree) if isinstance(block, ast.With)
                   and "disk.atomic_write" in ast.unparse(block.items[0]) for call in ast.walk(block)}  # fmt: skip
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and writes(call) and id(call) not in wrapped:
                found.append(f"{name}:{call.lineno} {ast.unparse(call.func)}")
    assert not found


def writes(call):
    """Whether a call writes a file past ``disk``."""
    name = ast.unparse(call.func)
    modes = [a.value for a in call.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    opens = name.rpartition(".")[2] == "open" and any(mode[:1] in ("w", "x") and len(mode) < 3 for mode in modes)
    return opens or (name.rpartition(".")[2] in BARE and not name.startswith("disk."))


def test_the_search_for_writing_sees_what_it_should():
    for line, expected in {
        'path.write_text("x")': True, 'open(path, "wb")': True, 'path.open("w", newline="")': True,
        "figure.savefig(path)": True, 'disk.write_text(path, "x")': False, 'path.open("rb")': False, "open(w)": False,
    }.items():  # fmt: skip
        assert writes(ast.parse(line).body[0].value) == expected
