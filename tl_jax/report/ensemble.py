"""What each step of an ensemble adds, as a table for the screen and for the page of the run."""

from collections.abc import Mapping
from typing import Any

from tl_jax.report import html
from tl_jax.report.results import Results

COLUMNS = ("test", "accuracy", "difference in points", "log loss", "difference", "calibration error")


def table(report: Mapping[str, Any]) -> html.Table:
    """Return a row for each way to predict: accuracy and its difference in percent, log loss in nats, and ECE."""
    rows = [
        [
            row["name"],
            f"{100 * row['accuracy']:.2f} %",
            _difference(row, "accuracy", 100, 2),
            f"{row['loss']:.4f}",
            _difference(row, "loss", 1, 4),
            f"{row['ece']:.4f}",
        ]
        for row in report["rows"]
    ]
    return html.Table(COLUMNS, rows)


def _difference(row: Mapping[str, Any], name: str, scale: float, digits: int) -> str:
    """Return "+0.50 (+0.10 to +0.90)", or nothing for what the others are compared with."""
    if "difference" not in row:
        return ""
    values = {end: f"{scale * value:+.{digits}f}" for end, value in row["difference"][name].items()}
    return f"{values['mean']} ({values['low']} to {values['high']})" if "low" in values else values["mean"]


def describe(report: Mapping[str, Any]) -> list[str]:
    """Return in sentences what the table shows."""
    return [
        "Differences are to the mean of the single networks, with 95 % intervals by a bootstrap over "
        f"{report['over']} of the test split, paired by example; other seeds would move them, too.",
        f"Two of the networks disagree about {100 * report['disagreement']:.1f} % of the test examples.",
        f"What predict, evaluate and the summary use: {report['final']}.",
        *(f"{note[0].upper()}{note[1:]}." for note in report["notes"]),
    ]


def format_text(report: Mapping[str, Any]) -> str:
    """Return table and sentences for the screen."""
    rows = [COLUMNS, *table(report).rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([*(line.rstrip() for line in lines), *describe(report)])


def section(results: Results) -> html.Section | None:
    """Return what each step adds, for the page of the run; None if it is no ensemble."""
    report = results.summary.get("ensemble")
    return html.Section("", describe(report), [table(report)]) if report else None
