"""A page that holds all it shows, text, tables and pictures, in one HTML file; light or dark as the reader is."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2


class Table(NamedTuple):
    """Column names and rows of text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG file and what it shows."""

    path: Path
    caption: str


class Section(NamedTuple):
    """A heading, paragraphs, and what stands below them."""

    title: str
    text: Sequence[str] = ()
    parts: Sequence[Table | Picture] = ()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
figure { margin: 1.5rem 0; } img { max-width: 100%; background: white; border-radius: 4px; }
figcaption { font-size: 14px; opacity: .8; }
</style></head><body>
<h1>{{ title }}</h1>
{% for section in sections %}<section><h2>{{ section.title }}</h2>
{% for paragraph in section.text %}<p>{{ paragraph }}</p>
{% endfor %}{% for part in section.parts %}{% if part.columns is defined %}<div class="wide"><table>
<thead><tr>{% for name in part.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in part.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% else %}<figure><img alt="{{ part.caption }}" src="data:image/png;base64,{{ part.path | png }}">
<figcaption>{{ part.caption }}</figcaption></figure>
{% endif %}{% endfor %}</section>
{% endfor %}</body></html>
"""


def write(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page; text is taken as text, whatever stands in it."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["png"] = lambda file: base64.b64encode(Path(file).read_bytes()).decode()
    path.write_text(environment.from_string(_PAGE).render(title=title, sections=sections))
    return path


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)
