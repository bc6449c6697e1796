"""Cards that tell what weights are: facts in tables of Markdown."""

from collections.abc import Mapping, Sequence


def facts(rows: Mapping[str, str]) -> str:
    """Return a table of two columns without a head, name and value."""
    return table(("", ""), list(rows.items()))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; what would end a cell or a line is kept from doing so."""
    head = "| " + " | ".join(columns) + " |" if any(columns) else "|" + " |" * len(columns)
    lines = [head, "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows])


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", r"\|")
