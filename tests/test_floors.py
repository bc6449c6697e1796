"""A file imports only from lower floors, and data and models never from each other."""

import ast
import re
from pathlib import Path

import pytest

from tl_jax import tasks  # noqa: F401  # which fills TASKS
from tl_jax.train.task import TASKS

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parents[1]

# The longest matching prefix decides. A package on one floor may import within itself.
FLOORS = {
    "tl_jax": 0,  # the version
    "tl_jax.utils": 0,
    "tl_jax.config": 1,  # what options are, and old names of fields
    "tl_jax.models": 2,
    "tl_jax.data": 2,
    "tl_jax.metrics": 2,
    "tl_jax.transferability": 3,
    "tl_jax.report": 3,
    "tl_jax.pretrained": 4,
    "tl_jax.transfer": 4,
    "tl_jax.train": 5,
    "tl_jax.rl": 6,
    "tl_jax.export": 7,  # of which tasks make their bundles
    "tl_jax.tasks": 8,
    "tl_jax.config.schema": 9,  # the options of every kind of task
    "tl_jax.config.recipe": 9,
    "tl_jax.config.stored": 9,
    "tl_jax.config.validate": 9,  # by what tasks allow
    "tl_jax.transfer.methods": 9,  # changes of recipes
    "tl_jax.restore": 10,
    "tl_jax.predictions": 10,
    "tl_jax.choose_method": 11,
    "tl_jax.method_trials": 11,
    "tl_jax.export.bundle": 11,
    "tl_jax.final_report": 12,
    "tl_jax.config_from_data": 12,
    "tl_jax.ensemble": 12,
    "tl_jax.training": 12,
    "tl_jax.learner": 13,
    "tl_jax.cli": 14,
    "tl_jax.command_help": 13,
    "tl_jax.api": 13,  # old names
    "tl_jax.distance": 13,
    "tl_jax.errors": 13,
    "tl_jax.weights": 13,
    "configs": 13,
    "experiments": 14,
    "run": 14,
}
APART = {"tl_jax.data", "tl_jax.models"}
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
    """Return the project's own modules, but for the front door, which imports what is asked for by then."""
    package = {*(ROOT / "tl_jax").rglob("*.py")} - {ROOT / "tl_jax" / "__init__.py"}
    others = [*(ROOT / "configs").glob("*.py"), *(ROOT / "experiments").rglob("*.py"), ROOT / "run.py"]
    return sorted([*package, *others])


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    mine = room(module)
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in FORBIDDEN or module.startswith("experiments.benchmarks"), f"{module} imports {name}"
        if top not in ("tl_jax", "configs", "experiments", "run"):
            continue
        assert not (module.startswith("configs") and top == "configs"), (
            f"{module} imports {name}: recipes import only tl_jax"
        )
        theirs = room(name)
        if theirs == mine:
            continue
        assert FLOORS[theirs] <= FLOORS[mine], f"{module} [{FLOORS[mine]}] imports {name} [{FLOORS[theirs]}]"
        assert not {mine, theirs} <= APART, f"{module} imports {name}: these rooms stay apart"


def test_the_check_sees_what_it_should():
    assert room("tl_jax.train.loop") == "tl_jax.train"
    assert room("tl_jax.utils.errors.UserError") == "tl_jax.utils"
    assert "tl_jax.data.dataset.Split" in imports(ROOT / "tl_jax" / "data" / "loader.py")
    assert (
        FLOORS[room("tl_jax.train.loop")]
        < FLOORS[room("tl_jax.tasks.image_classification")]
        < FLOORS[room("tl_jax.training")]
    )


def test_every_module_has_a_floor():
    for path in files():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        assert room(module) != "tl_jax" or module == "tl_jax", f"{module} is not in FLOORS"


def test_files_stay_short():
    long = {str(p.relative_to(ROOT)): n for p in files() if (n := len(p.read_text().splitlines())) > 500}
    assert not long


# ---- what differs between kinds of task stands in their classes

TASK_FILES = {path for path in (ROOT / "tl_jax" / "tasks").glob("*.py")}
RECIPES = {ROOT / "tl_jax" / "config" / name for name in ("recipe.py", "renames.py")}


def task_names_in(tree: ast.AST) -> list[str]:
    """Return what compares a task's name with a constant, or asks for the class of a task."""
    kinds = set(TASKS)
    classes = {base.__name__ for cls in TASKS.values() for base in cls.__mro__ if base is not object}
    found = []
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.Compare | ast.Call | ast.Subscript | ast.Match) else ""
        constants = {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)} if text else set()
        about_tasks = re.search(r"\.(task|kind)\b|\bTASKS\b", text)
        if isinstance(node, ast.Compare | ast.Subscript | ast.Match) and about_tasks and constants & kinds:
            found.append(text)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass", "type"):
            found += [text] if classes & set(re.findall(r"\w+", text)) else []
    return found


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_task_is_named_outside_its_file(path):
    if path not in TASK_FILES | RECIPES and path.parent != ROOT / "configs":
        assert task_names_in(ast.parse(path.read_text())) == []


def test_the_search_for_names_of_tasks_finds_them():
    for code in (
        "config.task == 'image'", "config.task in ('text', 'tokens')", "x = TASKS['policy']",
        "{1: 2}[config.task == 'faces']", "isinstance(task, ImageTask)", "issubclass(TASKS[config.task], Detection)",
    ):  # fmt: skip
        assert task_names_in(ast.parse(code)), code
    assert not task_names_in(ast.parse("batch['image'] if kind == 'conll' else config.data.text"))
