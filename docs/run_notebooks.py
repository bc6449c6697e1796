"""Run the notebooks of the site again, and keep what they print and draw: ``python docs/run_notebooks.py NOTEBOOK...``

Without names it runs all of them. Each runs in an empty folder. What a cell writes to stderr is left out of the
notebook: progress bars, and warnings, which are printed here.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def run(path: Path) -> float:
    """Execute a notebook and store its outputs; return the seconds of its cells."""
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}})
        started = time.monotonic()
        client.execute()
    seconds = time.monotonic() - started
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the time of day
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_stderr(output)]
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)
    return seconds


def is_stderr(output: nbformat.NotebookNode) -> bool:
    """Return whether an output is of stderr; print its lines that are no progress bar."""
    if output.output_type != "stream" or output.name != "stderr":
        return False
    for line in output.text.replace("\r", "\n").splitlines():
        if line.strip() and "%|" not in line:
            print(f"left out: {line}")
    return True


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    names = [Path(name).resolve() for name in sys.argv[1:]] or sorted((ROOT / "docs" / "pages").rglob("*.ipynb"))
    for name in names:
        print(f"{name.relative_to(ROOT)}: {run(name):.0f} s", flush=True)
