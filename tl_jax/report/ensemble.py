"""Comparison of an ensemble with its networks, as a table for the terminal and the report."""

from collections.abc import Mapping
from typing import Any

from tl_jax.report import html
from tl_jax.report.results import Results

COLUMNS = ("test", "accuracy", "difference in points", "log loss", "difference", "calibration error")


def table(report: Mapping[str, Any]) -> html.Table:
    """Return a row per way to predict: accuracy and its difference in percent, log loss in nats, and ECE."""
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
    """Return a difference such as "+0.50 (+0.10 to +0.90)"; "" for the reference row."""
    if "difference" not in row:
        return ""
    values = {end: f"{scale * value:+.{digits}f}" for end, value in row["difference"][name].items()}
    return f"{values['mean']} ({values['low']} to {values['high']})" if "low" in values else values["mean"]


def describe(report: Mapping[str, Any]) -> list[str]:
    """Return the notes on the table as sentences."""
    return [
        "Differences are to the mean of the single networks, with 95 % intervals by a bootstrap over "
        f"{report['over']} of the test split, paired by example. They do not cover other seeds.",
        f"Two networks disagree on {100 * report['disagreement']:.1f} % of the test examples on average.",
        f"Used for predictions and the summary: {report['final']}.",
        *(f"{note[0].upper()}{note[1:]}." for note in report["notes"]),
    ]


def format_text(report: Mapping[str, Any]) -> str:
    """Return the table and its notes as text."""
    rows = [COLUMNS, *table(report).rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([*(line.rstrip() for line in lines), *describe(report)])


def section(results: Results) -> html.Section | None:
    """Return the section on the ensemble; None without one."""
    report = results.summary.get("ensemble")
    return html.Section("", describe(report), [table(report)]) if report else None
