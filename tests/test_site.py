"""The site: its tables find what they name, its build fails on a warning, and its notebooks run."""

import functools
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import site_tables

from tl_jax.utils.errors import UserError

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "pages"
NOTEBOOKS = sorted(SITE.rglob("*.ipynb"))


@pytest.mark.fast
def test_tables_of_pages_find_what_they_name():
    for path in SITE.rglob("*.md"):
        made = site_tables.expand(path.read_text())
        assert not re.search(r"^<!-- \w+:", made, re.M), path
    for wrong in (
        "<!-- fields: optim.lrr -->",
        "<!-- mechanisms: lorra -->",
        "<!-- measured: lorra -->",
        "<!-- no: -->",
    ):
        with pytest.raises((KeyError, UserError)):
            site_tables.expand(wrong)
    assert "| `optim.lr` | `0.001` | peak learning rate |" in site_tables.expand("<!-- fields: optim.lr -->")
    assert "`adapt.kind='lora'`<br>`freeze.recipe='adapters'`" in site_tables.expand("<!-- mechanisms: lora -->")
    assert "| `index` | images | Images that an index.csv lists" in site_tables.expand("<!-- datasets: -->")
    assert "| `lora` | 39.7 ± 10.5<br>(+4.0 ± 5.6) |" in site_tables.expand("<!-- measured: lora -->")
    results, folder = site_tables.expand("<!-- results: -->"), "../../experiments/results"
    assert f"[article.json]({folder}/benchmarks/article.json)" in results
    assert (
        "![Seconds for a new head on a frozen ResNet50" in results and f"]({folder}/benchmarks/article.png)" in results
    )
    assert f"{{download}}`table <{folder}/rl_cartpole.md>`" in results and "](faults.md)" in results


@pytest.mark.fast
def test_messages_are_read_from_the_source():
    source = "def f(x):\n    raise UserError(f'no {x.name}; ' f'take {x!r}')\n"
    source += "def g() -> Conflicts:\n    return {'a has no effect': x, f'b={x}': y}\n"
    assert list(site_tables.messages(source)) == ["no {x.name}; take {x}", "config.a has no effect", "config.b={x}"]


@pytest.mark.fast
def test_explained_messages_are_those_of_the_source():
    every = site_tables.errors()
    explained = re.findall(r"\*\*`(.+?)`\*\*", (SITE / "errors.md").read_text())
    assert len(explained) > 10
    for message in explained:
        parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
        assert re.search(".*".join(parts), every), f"no message {message}"


def build_commands() -> list[list[str]]:
    """Return the options of every build of the site that CI runs or a page gives."""
    files = (ROOT / ".ci" / "run", ROOT / "README.md", ROOT / "docs" / "conf.py", ROOT / "requirements-docs.txt")
    lines = re.compile(r"(?:-m sphinx|sphinx-build) (.*) -c docs docs/pages ")
    return [shlex.split(line) for file in files for line in lines.findall(file.read_text())]


@pytest.mark.fast
def test_the_build_fails_on_a_warning_and_pages_load_nothing_from_elsewhere(tmp_path):
    commands = build_commands()
    assert len(commands) > 2 and all(options == ["-W"] for options in commands)
    pytest.importorskip("furo")
    pages, site = tmp_path / "pages", tmp_path / "site"
    pages.mkdir()
    command = [sys.executable, "-m", "sphinx", *commands[0], "-c", ROOT / "docs", pages, site]
    for text, warning in (
        ("[this page](index.md)\n\n```math\nx\n```", ""),
        ("[no page](absent.md)", "target not found: 'absent"),
        ("```{toctree}\nabsent\n```", "nonexisting document 'absent'"),
    ):
        (pages / "index.md").write_text(f"# Page\n\n{text}\n")
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == bool(warning) and warning in done.stderr, done.stderr
        if not warning:
            page = (site / "index.html").read_text()
            assert "<math" in page and "<script" in page
            assert not re.search(r"<(script|link|img|iframe)[^>]*(https?:)?//", page)


def located(name: str) -> Any:
    """Return an object by its dotted name; a module comes before a function of its package that has its name."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[count:], found)
    raise AssertionError(f"there is no {name}")


def documented() -> list[str]:
    """Return the objects of the reference pages, members that a page selects by name."""
    names = []
    for path in sorted((SITE / "api").glob("*.md")):
        for owner, options in re.findall(r"^\.\. auto\w+:: (\S+)\n((?:   .*\n)*)", path.read_text(), re.M):
            chosen = re.search(r":members: (.+)", options)
            found = located(owner)
            members = chosen[1].split(", ") if chosen else [m for m in vars(found) if not m.startswith("_")]
            names += [owner, *(f"{owner}.{member}" for member in members)]
    return names


@pytest.mark.fast
def test_reference_pages_describe_arguments_that_exist():
    looked = 0
    for name in documented():
        found = located(name)
        section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", inspect.getdoc(found) or "", re.M)
        if section and callable(found):
            named = {word.lstrip("*") for word in re.findall(r"^    (\S[^:\n]*):", section[1], re.M)}
            assert named <= set(inspect.signature(found).parameters), name
            looked += 1
    assert looked > 20


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.fast
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_keep_clean_outputs_of_one_run(path):
    text, cells = path.read_text(), code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run it again, in order"
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work)/", text), "a path of somebody's machine"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert all(output.get("name") != "stderr" for output in outputs), "a warning, or a progress bar"


@pytest.mark.fast
def test_notebooks_install_the_package_from_one_address_and_stay_small():
    cells = {path: "".join(code_cells(path)[0]["source"]) for path in NOTEBOOKS}
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    extras = {path: re.search(r"tl-jax\[(.*)\] @", cell) for path, cell in cells.items()}
    assert all(found and set(found[1].split(",")) <= known for found in extras.values())
    assert len({re.sub(r"\[.*\] @", "@", cell) for cell in cells.values()}) == 1
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    program = "\n".join("".join(cell["source"]) for cell in code_cells(path))
    # On one device, as a reader would: two do not share the batches of the recipe.
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert path.name != "tour.ipynb" or "nearest by LogME: mnist" in done.stdout
