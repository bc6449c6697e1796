"""Reports as self-contained HTML files that follow the system's dark mode, and tables in Markdown and text."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from tl_jax.utils import disk


class Table(NamedTuple):
    """A table of text; ``is_text`` aligns its columns left, else right, for numbers.

    A table with a ``title`` is collapsed.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_text: bool = False
    title: str = ""


class Image(NamedTuple):
    """An image file, PNG or GIF, and its caption."""

    path: Path
    caption: str


class Raw(NamedTuple):
    """Markup that is not escaped, such as a chart, and its caption."""

    html: Markup
    caption: str = ""


class Section(NamedTuple):
    """A heading, paragraphs, and the blocks below them."""

    title: str
    text: Sequence[str] = ()
    blocks: Sequence[Table | Image | Raw] = ()


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --page: light-dark(#fff, #15181d); --text: light-dark(#1c2128, #e4e7eb);
  --soft: light-dark(#59636e, #9ba5b0); --line: light-dark(#d9dee3, #343b44); --card: light-dark(#f5f7f9, #1d2229);
  --c0: light-dark(#0b62a8, #64b1f2); --c1: light-dark(#c2540a, #f2994a); --c2: light-dark(#22783c, #5fc47e);
  --c3: light-dark(#8a3fa0, #cf8fe2); --c4: light-dark(#a8324a, #f08a9b); --c5: light-dark(#6b5c1e, #cdbb6c); }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto 4rem; padding: 0 1rem;
  background: var(--page); color: var(--text); overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; } h1 { font-size: 1.75rem; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; } p { max-width: 46rem; margin: .5rem 0; }
nav { font-size: 14px; display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: .75rem 0; }
a { color: var(--c0); text-underline-offset: .2em; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; margin: .75rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; } thead th { color: var(--soft); white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.wide { overflow-x: auto; } .words th, .words td { text-align: left; vertical-align: top; white-space: normal; }
.words td:not(:first-child) { min-width: 8rem; overflow-wrap: anywhere; }
.words td:first-child { white-space: nowrap; }
summary { cursor: pointer; font-weight: 600; }
figure { margin: 1rem 0; } img, svg { max-width: 100%; } img { background: white; border-radius: 4px; }
figcaption { font-size: 14px; color: var(--soft); max-width: 46rem; }
{{ style }}</style></head><body>
<h1>{{ title }}</h1>
{% if sections | length > 3 %}<nav aria-label="sections">{% for section in sections %}
<a href="#{{ section.title | slug }}">{{ section.title }}</a>{% endfor %}</nav>
{% endif %}"""
_BODY = """{% for section in sections %}<section id="{{ section.title | slug }}"><h2>{{ section.title }}</h2>
{% for paragraph in section.text %}<p>{{ paragraph }}</p>
{% endfor %}{% for block in section.blocks %}{% if block.columns is defined %}
{% if block.title %}<details><summary>{{ block.title }}</summary>{% endif %}
<div class="wide" tabindex="0"><table{% if block.is_text %} class="words"{% endif %}>
<thead><tr>{% for name in block.columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in block.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% if block.title %}</details>{% endif %}

{% elif block.html is defined %}{% if block.caption %}<figure>{{ block.html }}
<figcaption>{{ block.caption }}</figcaption></figure>{% else %}{{ block.html }}{% endif %}

{% else %}<figure><img alt="{{ block.caption }}" src="data:{{ block.path | kind }};base64,{{ block.path | base64 }}">
<figcaption>{{ block.caption }}</figcaption></figure>
{% endif %}{% endfor %}</section>
{% endfor %}</body></html>
"""


def write_page(path: Path, title: str, sections: Sequence[Section], style: str = "") -> Path:
    """Write a report; all text is escaped.

    Args:
        path: path of the file.
        title: title of the report.
        sections: sections from top to bottom.
        style: additional CSS for markup in the sections.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "base64": lambda file: base64.b64encode(Path(file).read_bytes()).decode(),
        "kind": lambda file: "image/gif" if Path(file).suffix == ".gif" else "image/png",
        "slug": lambda name: re.sub(r"\W+", "-", name.lower()),
    }
    text = environment.from_string(_HEAD + _BODY).render(title=title, sections=sections, style=Markup(style))
    disk.write_text(path, text)
    return path


def to_markdown(table: Table) -> str:
    """Return a table in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


BAR_LENGTH = 30  # characters of a bar of probability 1
MAX_CLASSES = 5  # classes shown, the most likely ones


def probability_bars(title: str, classes: Sequence[str], probabilities: np.ndarray) -> list[str]:
    """Return ``title`` and bars of the most likely of K classes with their probabilities (K,)."""
    width = max(map(len, classes))
    bars = [
        f"  {classes[i]:{width}}  {probabilities[i]:.3f}  {'█' * round(BAR_LENGTH * float(probabilities[i]))}"
        for i in np.argsort(-probabilities)[:MAX_CLASSES]
    ]
    return [title, *bars]


def facts_table(rows: Mapping[str, str]) -> str:
    """Return a table of names and values, without a header."""
    return markdown_table(("", ""), list(rows.items()))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, with special characters escaped."""
    header = "| " + " | ".join(columns) + " |" if any(columns) else "|" + " |" * len(columns)
    lines = [header, "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows])


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", r"\|")
