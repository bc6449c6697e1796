"""Compiled programs on disk: what a second process finds, and where nothing is kept."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest

from tl_jax.utils import compile_cache

ROOT = Path(__file__).parents[2]
# Compiles one program and says whether JAX found it on disk.
CHILD = """
import jax
from tl_jax.utils import compile_cache
events = []
jax.monitoring.register_event_listener(lambda name, **kwargs: events.append(name))
print(compile_cache.enable())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8)))
print("hits", events.count("/jax/compilation_cache/cache_hits"))
"""


@pytest.fixture(autouse=True)
def untouched():
    names = (
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    shown = warnings.showwarning
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    warnings.showwarning = shown
    for name, value in before.items():
        jax.config.update(name, value)


def child(cache: Path, **more: str) -> list[str]:
    environment = {**os.environ, "TL_JAX_CACHE": str(cache), **more}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def test_second_process_finds_what_the_first_compiled(tmp_path):
    folder, hits = child(tmp_path)[:2]
    assert Path(folder).parent == tmp_path / "programs" and hits == "hits 0"
    assert int(child(tmp_path)[1].split()[1]) > 0


def test_users_own_choices_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert compile_cache.enable() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert child(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")[0] == "None"
    assert not (tmp_path / "programs").exists()


def test_a_folder_that_others_write_to_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path))
    folder = tmp_path / "programs" / compile_cache.cpu_id()
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert compile_cache.enable() is None and jax.config.jax_compilation_cache_dir is None
    folder.chmod(0o700)
    assert compile_cache.enable() == folder


def programs(cache: Path) -> list[Path]:
    return sorted(cache.glob("programs/*/*-cache"))


@pytest.mark.parametrize("harm", ["killed between the two files", "killed in the program", "killed before it"])
def test_a_kill_while_a_program_is_written_costs_that_program_alone(tmp_path, harm):
    child(tmp_path)
    before = programs(tmp_path)
    first = before[0]
    used = first.with_name(first.name.removesuffix("-cache") + "-atime")
    if harm == "killed between the two files":
        used.unlink()
    elif harm == "killed in the program":
        first.write_bytes(b"")
    else:
        first.unlink()
    child(tmp_path)
    assert programs(tmp_path) == before and used.stat().st_size and first.stat().st_size
    assert int(child(tmp_path)[1].split()[1]) == len(before)  # every program is found


@pytest.mark.parametrize("harm", ["cut", "flipped", "other"])
def test_a_damaged_program_is_compiled_once_more_and_then_kept(tmp_path, harm):
    child(tmp_path)
    before = programs(tmp_path)
    for path in before:
        data = bytearray(path.read_bytes())
        at = len(data) // 2
        data[at] ^= 0x10
        path.write_bytes({"cut": bytes(data[:at]), "flipped": bytes(data), "other": b"no program"}[harm])
    again = child(tmp_path)
    assert again[1] == "hits 0"
    assert int(child(tmp_path)[1].split()[1]) == len(before)


def test_a_damaged_program_is_not_shown_as_a_warning(tmp_path):
    child(tmp_path)
    for path in programs(tmp_path):
        path.write_bytes(b"no program")
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=ROOT, env={**os.environ, "TL_JAX_CACHE": str(tmp_path)}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and "persistent compilation cache" not in done.stderr


def test_no_place_to_write_is_no_reason_to_stop(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "file" / "cache"))
    assert compile_cache.enable() is None


def test_another_processor_gets_another_folder(monkeypatch):
    def info(flags: str) -> str:
        monkeypatch.setattr(Path, "read_text", lambda path: f"model name\t: One\nflags\t\t: {flags}\ncpu MHz\t: 1\n")
        return compile_cache.cpu_id()

    assert info("sse avx2") == info("sse avx2") != info("sse avx2 avx512f")
