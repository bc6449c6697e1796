"""Measure the size of the code, and the path from the command to a training step, at several commits.

    python -m experiments.structure --commits=d0c3ef7,HEAD
    python -m experiments.structure --commits=HEAD --install        also the installed size, which downloads packages

Each commit is unpacked into a temporary folder. Counted are product files (``run.py`` and the Python files in configs,
tl_jax and experiments), their statements (nodes of the syntax tree), functions over 50 lines, requirements of an
installation without extras, the wheel's size and what it installs. Also counted are the files of tl_jax and configs
with a function that is called from ``run.py`` to the first training step of ``cifar_small:smoke``. Prints a table.
"""

import ast
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from absl import flags

from tl_jax.utils import command, disk

ROOT = Path(__file__).parents[1]
FOLDERS = ("configs", "tl_jax", "experiments")
MAX_FUNCTION_LINES = 50  # lines of a function
# Run in the folder of a commit: runs the recipe, and prints the files that were entered before the first training row.
TRACE = """
import json, os, sys
sys.path.insert(0, os.getcwd())
entered = set()

def seen(frame, event, _):
    code = frame.f_code
    if event != "call" or code.co_name.startswith("<"):
        return
    path = os.path.relpath(code.co_filename, os.getcwd())
    if path.startswith(("run.py", "tl_jax", "configs")):
        entered.add(path)
        if code.co_name == "row" and frame.f_locals.get("split") == "train":
            print("ENTERED", json.dumps(sorted(entered)))
            sys.stdout.flush()
            os._exit(0)

os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=0"  # else the command starts itself again, without the trace
sys.argv = ["run.py", "--config=configs/cifar_small.py:smoke", "--workdir=" + sys.argv[1], "--config.log_every=1"]
code = compile(open("run.py").read(), os.path.abspath("run.py"), "exec")
sys.setprofile(seen)
exec(code, {"__name__": "__main__", "__file__": "run.py"})
"""

COMMITS = flags.DEFINE_list("commits", ["HEAD"], "Commits to measure.")
INSTALL = flags.DEFINE_bool("install", False, "Install each wheel into a new environment, for its size.")
RESULTS = flags.DEFINE_string("results", "", "Output file (JSON); none if empty.")


def main(_: list[str]) -> None:
    """Print a column for each commit."""
    columns = {}
    for name in COMMITS.value:
        commit = git("rev-parse", "--short", name).decode().strip()
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as archive:
                archive.extractall(folder, filter="data")
            columns[commit] = measure_commit(Path(folder))
    print(" " * 34 + "".join(f"{commit:>28s}" for commit in columns))
    for name in next(iter(columns.values())):
        print(f"{name:34s}" + "".join(f"{column[name]!s:>28s}" for column in columns.values()))
    if RESULTS.value:
        disk.write_text(Path(RESULTS.value), json.dumps(columns, indent=1) + "\n")


def git(*arguments: str) -> bytes:
    """Return what git writes."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


def measure_commit(folder: Path) -> dict[str, Any]:
    """Return the figures of an unpacked commit by name."""
    files = [folder / "run.py", *(path for name in FOLDERS for path in sorted((folder / name).rglob("*.py")))]
    trees = {path: ast.parse(path.read_text()) for path in files}
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    wheel = build_wheel(folder)
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist() if ".dist-info" not in name}
    figures = {
        "product files": len(files),
        "statements": sum(isinstance(node, ast.stmt) for tree in trees.values() for node in ast.walk(tree)),
        "lines": sum(len(path.read_text().splitlines()) for path in files),
        "functions over 50 lines": sum(map(long_functions, trees.values())),
        "requirements without extras": len(project.get("dependencies") or read_requirements(folder)),
        "wheel, kB": round(wheel.stat().st_size / 1e3),
        "installed packages": ", ".join(sorted(tops)),
        "files to a training step": len(entered_files(folder)),
    }
    return {**figures, "installation, MB": installed_size(wheel)} if INSTALL.value else figures


def long_functions(tree: ast.AST) -> int:
    """Return the number of functions with more than ``MAX_FUNCTION_LINES`` lines."""
    functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return sum((node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES for node in functions)


def read_requirements(folder: Path) -> list[str]:
    """Return the lines of requirements.txt, where the package takes its requirements from there."""
    return re.findall(r"^\w.*", (folder / "requirements.txt").read_text(), re.MULTILINE)


def build_wheel(folder: Path) -> Path:
    """Build the wheel of a commit and return it."""
    output = folder / "wheel"
    command_line = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(output), str(folder)]
    subprocess.run(command_line, check=True)
    return next(output.glob("*.whl"))


def entered_files(folder: Path) -> list[str]:
    """Return the files in which a function was called from the command to the first training step."""
    arguments = [sys.executable, "-W", "ignore", "-c", TRACE, str(folder / "run")]
    environment = {**os.environ, "TL_JAX_CACHE": str(folder / "cache")}
    process = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)
    match = re.search(r"^ENTERED (.*)$", process.stdout, re.MULTILINE)
    if not match:
        raise RuntimeError(f"no training step was reached:\n{process.stdout[-1000:]}\n{process.stderr[-2000:]}")
    return json.loads(match[1])


def installed_size(wheel: Path) -> int:
    """Return the size in MB of an environment that the wheel without extras is installed in."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([f"{folder}/bin/pip", "install", "-q", str(wheel)], check=True)
        files = (path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink())
        return round(sum(path.stat().st_size for path in files) / 1e6)


if __name__ == "__main__":
    command.run(main)
