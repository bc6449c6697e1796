"""A library that behaves: it prints nothing and leaves the process that it runs in as it is; commands may do more."""

import ast
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.fast
# What only commands call.
COMMANDS = {"cli.py", "utils/command.py", "utils/compile_cache.py", "utils/log.py", "pretrained/convert_cli.py"}
FORBIDDEN = {
    "print", "sys.stdout.write", "sys.stderr.write", "sys.stdout.flush", "tqdm.write", "jax.config.update",
    "jax.clear_caches", "os.execve", "os.environ.setdefault", "os.putenv",
    "logging.basicConfig", "logging.disable",
}  # fmt: skip
PACKAGE = ROOT / "tl_jax"
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if str(path.relative_to(PACKAGE)) not in COMMANDS]


def changes_of_the_process(code: str) -> list[str]:
    """Return what in a module prints, or changes the process: calls, and assignments to what belongs to all."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN:
            found.append(f"{node.lineno}: {ast.unparse(node.func)}")
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
        for target in targets:
            text = ast.unparse(target)
            if text.startswith(("sys.", "os.environ[", "jax.config.", "warnings.showwarning", "signal.")):
                found.append(f"{node.lineno}: {text}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_prints_nothing_and_leaves_the_process_alone(path):
    assert not changes_of_the_process(path.read_text())


@pytest.mark.parametrize(
    "code",
    ["print(1)", "sys.modules['torch'] = None", "jax.config.update('jax_enable_x64', True)", "del sys.modules[x]"],
)
def test_what_is_forbidden_is_found(code):
    assert changes_of_the_process(code)


def test_all_modules_can_be_imported_in_one_process():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "tl_jax").rglob("*.py"))
    ]
    code = (
        f"import importlib, warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n"
        f"for name in {names!r}:\n    importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stderr[-2000:]


def named_flags(code: str) -> list[str]:
    """Return the raised errors and warnings of a module that name flags, which a caller in Python does not have."""
    flags = re.compile(r"(?<![\w`-])--(config|workdir|mode|input|output|data)\b")
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    told = [node for node in calls if ast.unparse(node.func).rpartition(".")[2] in ("UserError", "say", "warn")]
    return [f"{node.lineno}: {ast.unparse(node)}" for node in told if flags.search(ast.unparse(node))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_module_tells_names_no_flag(path):
    # The recipe of stored runs is made for commands alone.
    assert path.name == "stored.py" or not named_flags(path.read_text())


def test_a_flag_that_is_named_is_found():
    assert named_flags("raise UserError(f'{a} is wrong; pass --config.seed=1')")
    assert not named_flags("raise UserError(f'{a}; gdcmconv --raw IN OUT')")
