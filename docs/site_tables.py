"""What the site takes from the repository when it is built, so that no page repeats what stands elsewhere.

A line ``<!-- NAME: WORDS -->`` of a page becomes what the function of that name in ``TABLES`` makes of the words; a
fenced block ``math`` becomes MathML, which browsers draw without a script. tests/test_site.py calls these functions
too, so Sphinx and docutils are imported only where Sphinx calls.
"""

import ast
import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGES = DOCS / "pages"
RESULTS = ROOT / "experiments" / "results"
# Files of the repository that a page includes; a link to one of them leads to its page.
COPIES = {
    "experiments/results/README.md": "results.md",
    "experiments/results/faults.md": "faults.md",
    "CHANGELOG.md": "changelog.md",
}
ROOMS = ("configs", "tl_jax", "experiments")


def setup(app: Any) -> dict[str, bool]:
    """Fill in every page that Sphinx reads, and write formulas as MathML."""
    app.connect("source-read", fill_in)
    app.connect("autodoc-skip-member", skip_field)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def fill_in(app: Any, page: str, source: list[str]) -> None:
    """Put into a page what it takes from the repository."""
    up = "../" * page.count("/")
    markdown = expand(source[0])
    for file, name in COPIES.items():
        markdown = re.sub(rf"\]\([./]*{re.escape(file)}", f"]({up}{name}", markdown)
    pieces = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)  # text and fenced blocks in turns
    pieces[::2] = map(linked, pieces[::2])
    source[0] = "".join(pieces)


def mathml(translator: Any, node: Any) -> None:
    """Write a formula as MathML, which browsers draw without a script."""
    from docutils import nodes
    from docutils.utils.math.latex2mathml import tex2mathml

    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def skip_field(app: Any, what: str, name: str, member: Any, *_: Any) -> bool | None:
    """Leave out a field of a named tuple, which the docstring of its class describes."""
    return True if type(member).__name__ == "_tuplegetter" else None


def expand(markdown: str) -> str:
    """Return a page with its tables put in; a KeyError names what is not known."""
    return re.sub(r"^<!-- (?!figure:)(\w+):(.*?)-->$", lambda m: TABLES[m[1]](*m[2].split()), markdown, flags=re.M)


def fields(*prefixes: str) -> str:
    """Return the fields that start with one of these words, all fields without any: default, meaning, choices."""
    from tl_jax.config.schema import PHASE_FIELDS, all_fields
    from tl_jax.train.task import TASKS

    known = {**all_fields(), **{f"phases[i].{name}": field for name, field in PHASE_FIELDS.items()}}
    found = {path: field for path, field in known.items() if not prefixes or path.startswith(prefixes)}
    if missing := [prefix for prefix in prefixes if not any(path.startswith(prefix) for path in found)]:
        raise KeyError(f"no field {missing}")
    fields_of_tasks = {kind: cls.fields() for kind, cls in TASKS.items()}
    rows = []
    for path, field in found.items():
        choices = field.choices() if callable(field.choices) else field.choices
        listed = f"; one of {', '.join(f'`{choice}`' for choice in choices if choice)}" if choices else ""
        kinds = [kind for kind, own in fields_of_tasks.items() if path in own]
        tasks = ", ".join(f"`{kind}`" for kind in kinds) if 0 < len(kinds) < len(TASKS) else "all"
        rows.append((f"`{path}`", f"`{field.default!r}`", field.doc + listed, tasks))
    return table(("field", "default", "meaning", "tasks"), rows)


def mechanisms(*names: str) -> str:
    """Return what each mechanism does and which fields it changes in a plain recipe of one phase."""
    from tl_jax.config import recipe
    from tl_jax.config.schema import all_fields, flatten_config
    from tl_jax.transfer.methods import METHODS

    rows = []
    for name in names or METHODS:
        config = recipe.get_config("text" if METHODS[name].inputs == "texts" else "image")
        if "augment" in config:
            config.augment.flip = True
        before = flatten_config(config, all_fields())
        METHODS[name](config)
        after = flatten_config(config, all_fields())
        changed = [f"`{path}={value!r}`" for path, value in after.items() if value != before[path]]
        doc = " ".join((METHODS[name].change.__doc__ or "").split())
        rows.append((f"`{name}`", doc, "<br>".join(changed)))
    return table(("name", "what it does", "what it sets"), rows)


def results(*_: str) -> str:
    """Return the page of results, with its links to records leading from the site's pages; tables are downloads."""
    folder = os.path.relpath(RESULTS, PAGES)

    def moved(match: re.Match) -> str:
        mark, words, target = match.groups()
        if target.startswith(("#", "https:")) or f"experiments/results/{target}" in COPIES:
            return match[0]
        path = f"{folder}/{target.removeprefix('./')}"
        return f"{{download}}`{words} <{path}>`" if target.endswith(".md") else f"{mark}[{words}]({path})"

    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)", moved, text)


def datasets() -> str:
    """Return the registered data sets: what each is, and which fields it reads beside those that all read."""
    from tl_jax.data import DATASETS

    rows = []
    for inputs, registry in DATASETS.items():
        names: dict[Any, list[str]] = {}
        for name, entry in registry.items():
            names.setdefault(entry, []).append(f"`{name}`")
        for entry, shared in sorted(names.items(), key=lambda item: item[1]):
            doc = " ".join((entry.read.__doc__ or "").split())
            rows.append((", ".join(shared), inputs, doc, ", ".join(f"`data.{field}`" for field in entry.fields)))
    return table(("name", "for", "what it is", "reads"), rows)


def measured(*names: str) -> str:
    """Return what the studies of mechanisms found for these names: test accuracy, and points over plain fine-tuning."""
    columns, rows = ["mechanism"], [[f"`{name}`"] for name in names]
    for study, title in (("flowers", "flowers"), ("ct", "CT slices"), ("sst2", "SST-2")):
        head, *body = [
            [cell.strip() for cell in line.strip("|\n").split("|")]
            for line in (RESULTS / f"mechanisms_{study}.md").read_text().split("\n\n## ")[0].splitlines()
            if line.startswith("|") and not line.startswith("|---")
        ]
        found = {row[0]: row for row in body}
        for name in names:
            if study == "flowers" and name not in found and not name.startswith("words"):
                raise KeyError(f"{name} was not measured")
        if not any(name in found for name in names):
            continue
        for at in (i for i, cell in enumerate(head) if cell.endswith(": test")):
            columns.append(f"{title}, {head[at].removesuffix(': test')}")
            for name, row in zip(names, rows, strict=True):
                there = found.get(name)
                over = there[at + 2] if there and at + 2 < len(there) else ""
                row.append(f"{there[at]}{f'<br>({over})' if over else ''}" if there else "")
    how = (
        "Test accuracy in percent, mean and 95 % interval over three seeds; in brackets the points over `fine_tune`, "
        "paired by seed, where an interval that holds 0 settles nothing. How and with what: [Results](../results.md)."
    )
    return table(columns, rows) + "\n\n" + how


def networks(*_: str) -> str:
    """Return the networks with published weights: input size and top-1 accuracy by source."""
    from tl_jax.pretrained.catalog import CATALOG

    published = {key: spec for key, spec in CATALOG.items() if spec.top1}
    sources = list(dict.fromkeys(source for _, source in published))

    def describe(spec: Any) -> str:
        if spec is None:
            return ""
        notes = [f"measured at {spec.measured}"] if spec.measured else []
        notes += [] if spec.url or spec.hub or spec.package else ["bring the file"]
        return f"{spec.image_size}, {spec.top1:g} %" + (f" ({'; '.join(notes)})" if notes else "")

    models = dict.fromkeys(model for model, _ in published)
    rows = [(f"`{model}`", *(describe(published.get((model, source))) for source in sources)) for model in models]
    return table(("network", *(f"`{source}`" for source in sources)), rows)


def takers(*_: str) -> str:
    """Return the recipes that have mechanisms as variants, and which of these their task can have."""
    from tl_jax.config import validate
    from tl_jax.transfer import methods
    from tl_jax.utils.errors import UserError

    rows = []
    for path in sorted((ROOT / "configs").glob("[a-z]*.py")):
        if "def get_config(variant" not in path.read_text():
            continue
        recipe, names = importlib.import_module(f"configs.{path.stem}"), []
        for name in methods.METHODS:
            try:
                validate.validate(recipe.get_config(name))
            except UserError:
                continue  # no variant, or not for this kind of task
            names.append(f"`{name}`")
        if "`fine_tune`" in names:
            rows.append((f"`{path.stem}`", ", ".join(names)))
    return table(("recipe", "mechanisms"), rows)


def expected(*_: str) -> str:
    """Return what recipes are expected to give, and on what that was measured."""
    rows = []
    for name, entry in _entries()["recipes"].items():
        data = f", with `{'`, `'.join(entry['needs'].values())}`" if entry.get("needs") else ""
        figures = [f"{figure} {row['mean']:.4g} ± {row['within']:.2g}" for figure, row in entry["figures"].items()]
        where = f"{len(entry['seeds'])} seeds, {entry['seconds']:.0f} s of processor time on {entry['hardware']}{data}"
        rows.append((f"`{name}`", "<br>".join(figures), where))
    return table(("recipe", "expected", "measured"), rows)


def unverified(*_: str) -> str:
    """Return the recipes of which nothing is expected, and why."""
    return table(("recipe", "why"), [(f"`{name}`", why) for name, why in _entries()["without"].items()])


def _entries() -> dict[str, Any]:
    return json.loads((ROOT / "experiments" / "expected.json").read_text())


def errors(*_: str) -> str:
    """Return every message that a UserError of the source may have, by file; what a run puts in is in braces."""
    sections = []
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        if "benchmarks" in path.parts:
            continue
        if found := list(dict.fromkeys(messages(path.read_text()))):
            lines = "\n".join(f"- {code(message)}" for message in found)
            sections.append(f"### `{path.relative_to(ROOT)}`\n\n{lines}")
    return "\n\n".join(sections)


def messages(source: str) -> Iterator[str]:
    """Yield the templates of ``UserError(...)`` and of the tables of refusals in configs/."""
    for node in sorted(ast.walk(ast.parse(source)), key=lambda node: getattr(node, "lineno", 0)):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") in ("Diverged", "MergeError", "UserError")
            and node.args
        ):
            yield from (text for text in template(node.args[0]) if " " in text)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "combine_errors":  # several errors in one
            yield from (f"{{{ast.unparse(node.args[0])}}}: {text}: ..." for text in template(node.args[2]) if text)
        elif isinstance(node, ast.FunctionDef) and ast.unparse(node.returns or ast.Constant(0)) == "Conflicts":
            for value in (n for n in ast.walk(node) if isinstance(n, ast.Dict)):
                yield from (f"config.{text}" for key in value.keys if key for text in template(key))


def template(node: ast.expr) -> list[str]:
    """Return the text of a string or f-string, expressions in braces; nothing of what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        parts = [p.value if isinstance(p, ast.Constant) else f"{{{ast.unparse(p.value)}}}" for p in node.values]
        return ["".join(map(str, parts))]
    return []


def linked(text: str) -> str:
    """Return a text whose arXiv numbers are links, those that are links already left as they are."""
    return re.sub(r"(?<![\[`])arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def code(text: str) -> str:
    """Return a text as code, whatever quotes are in it."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def table(head: Any, rows: Any) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def statements() -> str:
    """Return how many statements each library needs for each job of the page of jobs, by its own code."""
    page = (PAGES / "same_jobs.md").read_text()
    counts: dict[str, dict[str, str]] = {}
    for job in re.split(r"^## ", page, flags=re.M)[1:]:
        for library, code in re.findall(r"^### (.*?)\n.*?^```python\n(.*?)^```$", job, flags=re.M | re.S):
            number = sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(code)))
            counts.setdefault(library, {})[job.partition("\n")[0]] = str(number)
    jobs = list(counts["tl_jax"])
    return table(
        ("library", *jobs), [(library, *(row.get(job, "-") for job in jobs)) for library, row in counts.items()]
    )


TABLES = {
    f.__name__: f
    for f in (
        fields,
        mechanisms,
        measured,
        networks,
        datasets,
        takers,
        expected,
        unverified,
        errors,
        statements,
        results,
    )
}
