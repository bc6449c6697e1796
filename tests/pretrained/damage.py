"""Read files damaged at random, in a process of its own: ``python -m tests.pretrained.damage FORMAT FIRST COUNT``.

Each seed from FIRST on makes one file. Its number and kind of damage are printed before it is read, so that a process
that died, hung or allocated without measure has named the culprit. Whatever is not a ``UserError`` ends the run.
"""

import ctypes
import faulthandler
import io
import itertools
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.pretrained.files import WRITERS, sample
from tl_jax.pretrained import formats
from tl_jax.utils.errors import UserError

SECONDS = 10  # of CPU time that one file may take; ten times that on the clock
MEMORY = 1 << 30  # bytes beyond what the imports need: more cannot be had
TOUCHED = 1 << 27  # bytes beyond what the imports need: more must not be used, though libhdf5 may survive it
ANCHORS = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"\x89HDF", b"TREE", b"SNOD", b"HEAP", b"GCOL", b"NUMPY")
HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**48 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 0, 1)
WORDS = (b"conv", b"kernel", b"bias", b"gamma", b"moving_mean", b"weight_names", b"layers", b"vars", b"shape", b"dtype")
WORDS += (b"F32", b"descr", b"<f4", b"data", b"float", b"torch", b"_rebuild_tensor_v2", b"OrderedDict", b"storage")
NAMES = (b"../../../../../../../../etc/passwd", b"\xff\xfe\xfd" * 9, b"\0" * 9, b"9" * 40, b"/" * 40, b"os.system" * 4)
TYPES = [np.arange(3), np.array([True]), np.ones(2, complex), np.zeros((0, 3)), np.float64(1), np.ones(3, ">f4")]
TYPES += [np.array([b"x", b"yy"]), np.array([{}], object), np.zeros(2, "f4,i4"), np.zeros(2, "M8[s]")]
ARRAYS = {"values": [np.float32([np.nan, np.inf, -np.inf]), np.full((2, 2), np.nan, np.float16)], "types": TYPES}


def spot(content: bytes, rng: random.Random) -> int:
    """Return a place to damage: anywhere, or, as most of a file of HDF5 is empty, where there is something."""
    places = [rng.randrange(len(content)) for _ in range(20 if rng.random() < 0.7 else 1)]
    return next((place for place in places if content[place]), places[0])


def put(content: bytes, place: int, piece: bytes) -> bytes:
    """Return ``content`` with ``piece`` in place of what was there, no longer than before."""
    return (content[:place] + piece + content[place + len(piece) :])[: len(content)]


def flip(content: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 8))):
        content = put(content, spot(content, rng), bytes([rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))]))
    return content


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def lose(content: bytes, rng: random.Random) -> bytes:
    place = spot(content, rng)
    return content[:place] + content[place + rng.choice((1, 4, 8, 64, 512)) :]


def swap(content: bytes, rng: random.Random) -> bytes:
    one, other, size = spot(content, rng), spot(content, rng), rng.choice((4, 8, 16, 40, 64, 512))
    first, second = content[one : one + size], content[other : other + size]
    return put(put(content, one, second), other, first)


def claim(content: bytes, rng: random.Random) -> bytes:
    """Write a number that is far too large where numbers stand: at the start, behind a signature, or anywhere."""
    places = [0, spot(content, rng)]
    for anchor in ANCHORS:
        places += [match.start() for match in re.finditer(re.escape(anchor), content)]
    number = rng.choice(HUGE).to_bytes(8, "little")[: rng.choice((2, 4, 8))]
    return put(content, rng.choice(places) + rng.choice((0, 4, 8, 16, rng.randrange(64))), number)


def aim(content: bytes, rng: random.Random) -> bytes:
    """Let addresses lead elsewhere, often to where others do, and tree nodes stand higher than they do."""
    numbers = struct.unpack_from(f"<{len(content) // 8}Q", content)
    places = [8 * i for i, number in enumerate(numbers) if 0 < number < len(content)] or [0]
    for _ in range(rng.choice((1, 1, 2, 4))):
        source, target = rng.choice(places), rng.choice(places)
        content = put(content, target, rng.choice((content[source : source + 8], struct.pack("<Q", source))))
    trees = [match.start() for match in re.finditer(b"TREE", content)]
    if trees and rng.random() < 0.3:
        content = put(content, rng.choice(trees) + 5, bytes([rng.choice((0, 1, 2, 255))]))
    return content


def rename(content: bytes, rng: random.Random) -> bytes:
    """Overwrite a name, once or wherever it stands."""
    word = rng.choice([word for word in WORDS if word in content] or [content[:4]])
    other = rng.choice((*NAMES, *WORDS))[: len(word)].ljust(len(word), b"_")
    return content.replace(word, other, rng.choice((1, 2, -1)))


def edit(content: bytes, rng: random.Random) -> bytes:
    """Move, delete, link or retype something within a valid HDF5 file; flip bytes of anything else."""
    if not content.startswith(b"\x89HDF"):
        return flip(content, rng)
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        one, other = rng.choice(names), rng.choice(["/", *names])
        name = rng.choice((one, f"{one}/x", "layers/x", "x", "model_weights", "layer_names", "vars", other + "/vars"))
        link = rng.choice((h5py.SoftLink(other), h5py.ExternalLink("/dev/zero", other), file[other], np.float32(1)))
        attribute = rng.choice(("layer_names", "weight_names", "weight_names0", "name"))
        value = rng.choice((1.5, "x", [b"x", b"/"], h5py.Empty("f"), np.zeros((2, 2)), [one]))
        try:
            if rng.random() < 0.5:
                del file[one]
            if rng.random() < 0.5:
                file[name] = link
            file[other].attrs[attribute] = value
        except (ValueError, KeyError, RuntimeError, OSError):
            pass  # HDF5 declines some
    return buffer.getvalue()


RAW = (flip, cut, lose, swap, claim, aim, rename)


def inside(content: bytes, rng: random.Random, kind: Callable[[bytes, random.Random], bytes]) -> bytes:
    """Damage one member of a zip, the checksums being right again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as damaged:
        members = archive.infolist()
        weights = [member.filename.endswith((".h5", ".pkl", ".npy")) * 9 + 1 for member in members]
        (victim,) = rng.choices(members, weights)
        for member in members:
            data = archive.read(member)
            damaged.writestr(member, kind(data, rng) if member is victim and data else data)
    return out.getvalue()


def damage(name: str, content: bytes, path: Path, rng: random.Random) -> str:
    """Write a damaged file and return the kind of its damage."""
    kind: Any = rng.choice([*RAW, *RAW, *ARRAYS, *([edit, edit] if name.endswith(".h5") else [])])
    if isinstance(kind, str):
        arrays = {**sample(), f"b_conv/{kind}": rng.choice(ARRAYS[kind])}
        try:
            WRITERS[name](path, arrays)
        except Exception:  # the format has no such type
            path.write_bytes(content)
        return kind
    if content.startswith(b"PK\3\4") and rng.random() < 0.7:
        kind = edit if name.endswith(".keras") and rng.random() < 0.2 else kind
        path.write_bytes(inside(content, rng, kind))
        return f"{kind.__name__} inside"
    path.write_bytes(kind(content, rng))
    return kind.__name__


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """End the process when anything is run but the modules of Python's own files."""
    ran = event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")
    if event == "exec":
        ran = not Path(arguments[0].co_filename).is_file() and not arguments[0].co_filename.startswith(
            ("<frozen", "<template")
        )
    if ran:
        print(f"executed: {event} {arguments!r}", file=sys.stderr, flush=True)
        sys.exit(3)


def read(path: Path) -> bool:
    """Return whether the file was read, and raise whatever a reader must not."""
    try:
        arrays = formats.read_arrays(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error).encode()) < 999, str(error)
        return False
    for key, array in arrays.items():
        assert key.encode() is not None and isinstance(array, np.ndarray), key
        array.tobytes()  # to touch all memory that it claims
    return True


def peak() -> int:
    """Return the most bytes of memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def guard() -> None:
    """Bound the memory of this process from now on, and watch what it does."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(watch)


def limit(seconds: int) -> None:
    """End the process with a trace if it is not told otherwise before that much CPU time; a machine may stand still."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    faulthandler.dump_traceback_later(10 * seconds, exit=True)


def main(name: str, first: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        WRITERS[name](path, sample())
        content = path.read_bytes()
        assert read(path)  # and everything is imported
        path.write_bytes(content[:99])
        assert not read(path)
        guard()
        done, used = 0, peak()
        for seed in range(first, first + count):
            path.unlink()
            limit(SECONDS)
            kind = damage(name, content, path, random.Random(f"{name} {seed}"))
            print(f"{name}: seed {seed}, {kind}", flush=True)
            done += read(path)
            assert peak() - used < TOUCHED, f"{peak() - used} bytes"
        print(f"{name}: {count} files, {done} read, {count - done} refused", flush=True)


HARMS: dict[str, Callable[[], object]] = {
    "crash": lambda: ctypes.string_at(0),
    "hang": lambda: sum(itertools.count()),
    "allocation": lambda: bytearray(2 * MEMORY),
    "execution": lambda: os.system("true"),
    "error": lambda: 1 // 0,
}


def harm(kind: str) -> None:
    """Do what no file may make a reader do, so that a test can see that it shows."""
    guard()
    limit(1)
    print(f"{kind}: seed 0", flush=True)
    HARMS[kind]()


if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)
    if sys.argv[1] == "--harm":
        harm(sys.argv[2])
    else:
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
