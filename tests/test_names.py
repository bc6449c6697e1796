"""Names say what they hold: words that say too little, or read oddly, are no names."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_floors import ROOT, files

pytestmark = pytest.mark.fast

# word -> what to write instead; as a whole name, or as a part of one between underscores
AVOID = {
    "how": "what it describes: augment_config",
    "hows": "what they describe: augment_configs",
    "found": "what was found: matches",
    "seen": "what was seen: predictions",
    "asked": "what was asked for: options",
    "kept": "what is kept: saved_rows",
    "opened": "what was opened: network",
    "drawn": "what was drawn: sample, seed, random_init",
    "beside": "joint, next_to",
    "whole": "total, run",
    "rest": "min_interval, others",
    "judge": "evaluate",
    "verdict": "evaluation",
    "shelf": "disk_cache",
    "worlds": "environments, num_envs",
    "looks": "preview, explain",
    "shipping": "export",
    "seal": "checksum",
    "prove": "verify",
    "film": "render",
    "still": "frozen",
    "most": "max_items",
    "least": "min_items",
}
# Verbs that need an object, and words that are no verbs: read_hdf5, plot_roc, make_train_step, init_head, predict.
BARE_FUNCTIONS = {"read", "draw", "make", "start", "of", "answer"}


class Name(NamedTuple):
    """A name that readers of other files see, and what it is of."""

    kind: str
    name: str
    line: int


def public_names(tree: ast.AST, scope: str = "module") -> Iterator[Name]:
    """Yield functions and classes; arguments of those without an underscore; constants, attributes and flags.

    Variables and functions inside a function are its own.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if scope == "function":
                continue
            yield Name("function" if scope == "module" else "method", node.name, node.lineno)
            if not node.name.startswith("_") or node.name == "__init__":
                args = node.args
                every = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
                yield from (Name(f"argument of {node.name}", arg.arg, arg.lineno) for arg in every if arg)
            yield from public_names(node, "function")
        elif isinstance(node, ast.ClassDef):
            yield Name("class", node.name, node.lineno)
            yield from public_names(node, "class")
        else:
            yield from _assigned_names(node, scope)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                if node.func.attr.startswith("DEFINE_") and isinstance(node.args[0], ast.Constant):
                    yield Name("flag", node.args[0].value, node.lineno)
            yield from public_names(node, scope)


def _assigned_names(node: ast.AST, scope: str) -> Iterator[Name]:
    """Yield what a statement assigns to: attributes anywhere, variables if they are not a function's own."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    if isinstance(node, ast.comprehension):
        return
    for leaf in (leaf for target in targets if target for leaf in ast.walk(target)):
        if isinstance(leaf, ast.Name) and scope != "function":
            yield Name("constant" if scope == "module" else "attribute", leaf.id, leaf.lineno)
        if isinstance(leaf, ast.Attribute) and isinstance(leaf.ctx, ast.Store):
            yield Name("attribute", leaf.attr, leaf.lineno)


def objections(code: str, path: str = "") -> list[str]:
    """Return a message for each name of a module that is in ``AVOID`` or ``BARE_FUNCTIONS``."""
    names = [Name("module", Path(path).stem, 1), *public_names(ast.parse(code))]
    messages = []
    for kind, name, line in names:
        words = [word for word in name.lower().split("_") if word in AVOID]
        messages += [f"{path}:{line}: {kind} {name}: {word!r} says too little; use {AVOID[word]}" for word in words]
        if kind == "function" and name in BARE_FUNCTIONS:
            messages.append(f"{path}:{line}: function {name} does not say what; name its object")
    return messages


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_names_say_what_they_hold(path):
    assert not objections(path.read_text(), str(path.relative_to(ROOT)))


@pytest.mark.parametrize(
    "code",
    [
        "def read(): pass",
        "async def answer(): pass",
        "def still_norms(): pass",
        "def fit(x, *, most): pass",
        "def fit(*rest): pass",
        "class Verdict: pass",
        "class A:\n    def __init__(self, how): pass",
        "class A:\n    kept: int = 0",
        "class A:\n    def fit(self):\n        self.seen = 1",
        "LEAST_AREA, VIEWS = 1, 2",
        "if True:\n    whole = 1",
        "with open('a') as f:\n    asked: int = 1",
        "def f():\n    flags.DEFINE_float('least', 1.0, '')",
        "X = flags.DEFINE_integer('worlds', 1, '')",
    ],
)
def test_a_poor_name_is_found(code):
    assert len(objections(code)) == 1


def test_a_module_is_named_well_too():
    assert objections("", "tl_jax/report/looks.py") and not objections("", "tl_jax/report/images.py")


def test_what_is_a_functions_own_is_left_alone():
    code = "def fit(x):\n    found, rest = x\n    def draw(kept): return kept\n    return lambda seen: seen"
    assert not objections(code)
    assert not objections("TOTALS = [found for found in range(3)]")
    assert not objections("def _pick(found): pass\nclass A:\n    def read(self): pass\ndef read_hdf5(almost): pass")
