"""The house: a file imports only from lower floors, and data, models, weights and distance never from each other."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parent.parent

# The longest matching prefix decides. A package on one floor may import within itself.
FLOORS = {
    "tl_jax": 0,
    "tl_jax.claims": 0,
    "tl_jax.config": 0,
    "tl_jax.disk": 0,
    "tl_jax.errors": 0,
    "tl_jax.fetch": 0,
    "tl_jax.json_files": 0,
    "tl_jax.tree": 0,
    "tl_jax.command": 0,
    "tl_jax.machine": 0,
    "tl_jax.shelf": 0,
    "tl_jax.specs": 0,
    "tl_jax.task": 0,
    "tl_jax.verification": 0,
    "tl_jax.waiting": 0,
    "tl_jax.models": 1,
    "tl_jax.weights": 1,
    "tl_jax.weights.convert": 3,  # a command, which needs models and weights
    "tl_jax.data": 1,
    "tl_jax.distance": 1,
    "tl_jax.report": 1,
    "tl_jax.huggingface": 2,
    "tl_jax.network": 2,
    "tl_jax.pretrained": 2,
    "tl_jax.text_network": 2,
    "tl_jax.transfer": 2,
    "configs.base": 3,
    "configs.check": 3,
    "configs.check_effects": 3,
    "configs.check_measures": 3,
    "configs.fields": 3,
    "configs.kinds": 3,
    "configs.mechanisms": 4,
    "tl_jax.train": 3,
    "tl_jax.rl": 4,
    "configs": 4,
    "tl_jax.tasks": 5,
    "tl_jax.api": 6,
    "tl_jax.exporting": 6,
    "tl_jax.looks": 6,
    "tl_jax.reporting": 6,
    "tl_jax.runs": 6,
    "tl_jax.shipping": 6,
    "experiments": 7,
    "tl_jax.main": 8,
    "run": 8,
}
APART = {"tl_jax.data", "tl_jax.models", "tl_jax.weights", "tl_jax.distance"}
FORBIDDEN = {"tensorflow", "torch", "keras", "torchvision"}  # never at run time; benchmarks run the peers


def room(module: str) -> str:
    """Return the entry of FLOORS that ``module`` belongs to."""
    parts = module.split(".")
    return next(name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in FLOORS)


def imports(path: Path) -> set[str]:
    """Return the dotted names a file imports, wherever in the file; ``from a import b`` counts as ``a.b``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files() -> list[Path]:
    """Return the project's own modules."""
    return [*sorted((ROOT / "tl_jax").rglob("*.py")), *sorted((ROOT / "configs").glob("*.py")),
            *sorted((ROOT / "experiments").rglob("*.py")), ROOT / "run.py"]  # fmt: skip


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    mine = room(module)
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in FORBIDDEN or module.startswith("experiments.benchmarks"), f"{module} imports {name}"
        if top not in ("tl_jax", "configs", "experiments", "run"):
            continue
        theirs = room(name)
        if theirs == mine:
            continue
        assert FLOORS[theirs] <= FLOORS[mine], f"{module} [{FLOORS[mine]}] imports {name} [{FLOORS[theirs]}]"
        assert not {mine, theirs} <= APART, f"{module} imports {name}: these rooms stay apart"


def test_the_check_sees_what_it_should():
    assert room("tl_jax.train.loop") == "tl_jax.train"
    assert room("tl_jax.errors.UserError") == "tl_jax.errors"
    assert "tl_jax.data.pictures.Split" in imports(ROOT / "tl_jax" / "data" / "batches.py")
    assert FLOORS[room("tl_jax.train.loop")] < FLOORS[room("tl_jax.tasks.image")] < FLOORS[room("tl_jax.api")]


def test_every_module_has_a_floor():
    for path in files():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        assert room(module) != "tl_jax" or module == "tl_jax", f"{module} is not in FLOORS"


def test_files_stay_short():
    long = {str(p.relative_to(ROOT)): n for p in files() if (n := len(p.read_text().splitlines())) > 500}
    assert not long
