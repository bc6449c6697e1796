"""The documentation is true: its code runs, its commands parse, and the fields that it names exist."""

import ast
import contextlib
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import site_tables
from absl import flags

from tests.folders import write_boxes, write_photos, write_texts
from tl_jax import cli, command_help
from tl_jax.config import schema, validate
from tl_jax.config.schema import check_known
from tl_jax.data import DATASETS
from tl_jax.models.registry import MODELS
from tl_jax.transfer import methods
from tl_jax.utils.errors import UserError

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "pages"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "experiments/results/README.md")]
PAGES += sorted(SITE.rglob("*.md"))
LANGUAGES = ("python", "bash", "diff", "math", "text")
# A block that is not run says so to the reader, with the reason, in the paragraph right above it.
BLOCK = re.compile(r"(?:^\*Not run: (?P<why>[^*]+)\*\n\n)?^```(?P<language>.*)\n(?P<text>(?:.*\n)*?)^```$", re.M)
GROUPS = sorted({path.partition(".")[0] for path in schema.all_fields() if "." in path})
# Programs that are not ours: only their files are looked for.
OTHERS = ("export", "kubectl", "pip", "sbatch", "source", "sphinx-build")
OTHER_MODULES = ("pyright", "pytest", "ruff", "venv")


class Block(NamedTuple):
    language: str
    text: str
    why: str | None


def blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [Block(m["language"], m["text"], m["why"]) for m in BLOCK.finditer(path.read_text())]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT)) if isinstance(path, Path) else ""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to run in, and registries that are afterwards as they were."""
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        for registry in (methods.METHODS, MODELS, *DATASETS.values()):
            stack.enter_context(registry.temporary())
        yield tmp_path


def has(path: Path, language: str) -> bool:
    return any(block.language == language and not block.why for block in blocks(path))


# Pages that say how to add something are followed in tests/test_howto.py.
RUN = [path for path in PAGES if has(path, "python") and path.parent.name != "howto"]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=name)
def test_python_blocks_run(path, elsewhere):
    """That nothing raises is the test: what a block computes is what the page says of it."""
    namespace = {"__name__": path.stem}
    for i, block in enumerate(blocks(path)):
        if block.language == "python" and not block.why:
            exec(compile(block.text, f"{name(path)}, block {i}", "exec"), namespace)


SAME_JOBS = [  # what writes the data of a job, and what is put to the call: smaller networks, which need no download
    (write_photos, "photos", "data", 'model="resnet8", image_size=32, epochs=1'),
    (write_texts, "texts.csv", "data/mail.csv", "epochs=1"),
    (write_boxes, "bccd", "data", 'model="resnet8", weights="random", image_size=64, epochs=1'),
]


@pytest.mark.slow
@pytest.mark.parametrize("job", range(len(SAME_JOBS)))
def test_our_lines_for_the_same_jobs_run(job, elsewhere, capsys):
    write, name, path, smaller = SAME_JOBS[job]
    ours = [block.text for block in blocks(SITE / "same_jobs.md") if "import tl_jax" in block.text]
    write(elsewhere)
    code = ours[job].replace(f'fine_tune("{name}")', f'fine_tune("{path}", {smaller})').replace("new_cells", "new")
    assert smaller in code and len(ours) == len(SAME_JOBS)
    if name == "photos":
        code = code.replace("new.jpg", "new.png")
    exec(compile(code, name, "exec"), {})
    answer = capsys.readouterr().out.splitlines()[-1]
    assert answer in ("dark", "light", "plus", "minus") or answer.startswith("[")


def commands(text: str) -> list[list[str]]:
    """Return the words of each command of a shell block."""
    lines = (shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines())
    found = []
    for words in filter(None, lines):
        while "&&" in words:
            found.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        found.append(words)
    return found


def check_run(arguments: list[str]) -> None:
    """Parse arguments of ``tl-jax`` as it does, and check the configuration that comes of them.

    A mode of a run that a page has trained takes that run's recipe.
    """
    folders = {argument for argument in arguments if argument.startswith("--workdir=")}
    trained = [words for (words,) in (shell.values for shell in SHELL) if folders and folders <= set(words)]
    recipes = [word for words in trained for word in words if word.startswith("--config=")]
    if recipes and not any(argument.startswith("--config=") for argument in arguments):
        arguments = [recipes[0], *arguments]
    values = flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tl-jax", *arguments])  # where ml_collections looks for fields that are set
        cli.define_flags(values)
        cli.parse_flags(sys.argv, values)
    if values.mode == "train" or any(argument.startswith("--config=") for argument in arguments):
        validate.validate(values.config)  # else that of the run itself, which is not there


def check_module(module: str, arguments: list[str]) -> None:
    """Look for the flags of ``python -m MODULE`` among those that its file defines."""
    path = ROOT / (module.replace(".", "/") + ".py")
    assert path.is_file(), f"no module {module}"
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and node.args]
    named = {n.args[0].value for n in calls if "DEFINE" in ast.unparse(n.func) and isinstance(n.args[0], ast.Constant)}
    named.add("import")  # of every command, see utils/plugins.py
    for argument in arguments:
        flag = argument.removeprefix("--").partition("=")[0]
        assert argument.startswith("--") and (flag in named or flag.startswith("config.")), f"{module}: {argument}"
    if configured := [argument for argument in arguments if re.match(r"--config[.=]", argument)]:
        check_run(configured)


def check_command(words: list[str]) -> None:
    """Refuse a command that names a flag, field, file or module which does not exist."""
    words = words[next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)) :]
    program, rest = Path(words[0]).name, words[1:]
    if words[0].startswith("experiments/"):
        assert (ROOT / words[0]).is_file(), f"no script {words[0]}"
        check_run([word for word in rest if word.startswith("--")])
    elif program == "tl-jax":
        if not any(word.startswith("--import=") for word in rest):  # else with a recipe that the page itself makes
            check_run(rest)
    elif program in ("python", "python3") and rest and rest[0] == "run.py":
        check_run(rest[1:])
    elif program in ("python", "python3") and rest[:1] == ["-m"]:
        if rest[1] not in OTHER_MODULES:
            check_module(rest[1], rest[2:])
        for word in rest[2:]:
            assert word.startswith("-") or not word.endswith(".py") or (ROOT / word).is_file(), (
                f"no file {word} of {' '.join(words)}"
            )
    else:
        assert program in OTHERS, f"unknown program in {' '.join(words)}"
        if program == "sbatch":
            check_run([word for word in rest if word.startswith("--")])
        for word in rest:
            is_output = word.startswith(("-", ".venv", "docs/_build", "runs"))
            if ("/" in word and not is_output) or word.endswith((".txt", ".yml", ".yaml")):
                assert (ROOT / word).exists(), f"no file {word} of {' '.join(words)}"


SHELL = [pytest.param(words, id=f"--help: {' '.join(words)}") for words in commands(command_help.examples())]
SHELL += [
    pytest.param(command, id=f"{name(path)}: {' '.join(command)}"[:150])
    for path in PAGES
    for block in blocks(path)
    if block.language == "bash" and not block.why
    for command in commands(block.text)
]


@pytest.mark.fast
@pytest.mark.parametrize("words", SHELL)
def test_commands_parse(words, elsewhere):
    """Each ends in an error if it is wrong; that such errors come is tested below."""
    check_command(words)


@pytest.mark.fast
@pytest.mark.parametrize(
    "line",
    [
        "tl-jax --config=no_such_recipe",
        "tl-jax --config.optim.lrr=1",
        "python run.py --config=configs/cifar_resnet.py:no_such_variant",
        "tl-jax --config=flowers_mobilenet:lora --config.adapt.kind=bottlenek",
        "tl-jax --workdirr=runs",
        "python -m experiments.linear_heads --no_such_flag=1",
        "python -m experiments.no_such_module",
        "python -m pytest tests/test_nothing.py",
        "pip install -r requirements-none.txt",
        "jupyter lab",
    ],
)
def test_a_wrong_command_is_seen(line, elsewhere):
    with pytest.raises((AssertionError, UserError)):
        check_command(shlex.split(line))


@pytest.mark.fast
@pytest.mark.parametrize("path", PAGES, ids=name)
def test_what_is_not_run_is_marked(path):
    text = path.read_text()
    found = blocks(path)
    assert {block.language for block in found if not block.language.startswith("{")} <= set(LANGUAGES)  # {directives}
    assert len(re.findall(r"^ *(```|~~~)", text, re.M)) == 2 * len(found), "a fence that is not at the margin"
    assert not indented(text), "a block by indentation, which no test reads; fence it"
    marked = [block for block in found if block.why]
    assert len(marked) == text.count("*Not run:"), "a mark without a block below it"
    assert all(len(block.why.split()) > 3 for block in marked), "a mark without a reason"


def indented(text: str) -> list[str]:
    """Return the lines with which blocks begin that are blocks by their indentation alone."""
    outside = re.sub(r"^(```|~~~)[^\n]*\n.*?^\1$", "", text, flags=re.M | re.S)
    return re.findall(r"(?:^[ \t]*\n|^#.*\n|\A)((?: {4}|\t)[^\n]*\S)", outside, flags=re.M)


@pytest.mark.fast
def test_a_block_by_indentation_is_seen():
    assert indented("# A\n    pip install x\n    y\n\nB\n\n\tz\n") == ["    pip install x", "\tz"]
    assert not indented("```python\nif x:\n\n    y\n```\n\n- a\n    b\n")


@pytest.mark.fast
@pytest.mark.parametrize("path", PAGES, ids=name)
def test_fields_that_are_named_exist(path):
    known = {"phases"} | {part for field in schema.all_fields() for part in (field, field.rpartition(".")[0])}
    known |= set(re.findall(r"^    (\w+): .* = option\(", path.read_text(), re.M))  # of the page's own
    text = BLOCK.sub("", path.read_text())
    for field in re.findall(rf"`((?:{'|'.join(GROUPS)})\.[a-z_0-9]+)[`=]", text):
        if not field.endswith((".py", ".json", ".jsonl", ".random", ".csv", ".md", ".safetensors", ".stablehlo")):
            check_known(field, schema.all_fields())
    for field in re.findall(r"--config\.([a-z_.0-9]+[a-z0-9])", text):
        assert field in known, f"{field} is no field"


@pytest.mark.fast
@pytest.mark.parametrize("path", [path for path in PAGES if path.parent == ROOT], ids=name)
def test_modules_that_are_named_exist(path):
    for module in re.findall(r"`((?:configs|experiments|tests|tl_jax)/[\w/]+\.py)`", path.read_text()):
        assert (ROOT / module).is_file(), f"no file {module}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_to_files_and_to_pages(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text):
        target = (path.parent / link).resolve()
        assert target.exists(), f"{link} leads nowhere in the repository"
        if SITE in path.parents and SITE not in target.parents:
            assert str(target.relative_to(ROOT)) in site_tables.COPIES, f"{link} leads nowhere on the site"
