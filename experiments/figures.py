"""Keep the measured figures in the README and the pages equal to those in the results files.

    python -m experiments.figures              lists every figure that differs from its results file
    python -m experiments.figures --write      corrects them

In a page a figure is between two invisible comments, ``<!-- figure: NAME -->71<!-- end -->``; ``FIGURES`` defines the
names. After a new measurement, ``--write`` updates every page.
"""

import csv
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from tl_jax.report.plots import t_interval
from tl_jax.utils import command, disk
from tl_jax.utils.errors import UserError, nearest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
MARK = re.compile(r"<!-- figure: (\S+) -->(.*?)<!-- end -->")

WRITE = flags.DEFINE_bool("write", False, "Correct the figures.")


def find_pages() -> list[Path]:
    """Return the files that may hold figures."""
    known = [ROOT / "README.md", RESULTS / "README.md"]
    return known + sorted((ROOT / "docs" / "pages").rglob("*.md"))


def fill_figures(text: str) -> str:
    """Return a page with every figure as its results file has it.

    Raises:
        UserError: names a figure that ``FIGURES`` does not have.
    """

    def figure(match: re.Match) -> str:
        if match[1] not in FIGURES:
            raise UserError(f"no figure {match[1]!r}; {nearest(match[1], FIGURES)}")
        return f"<!-- figure: {match[1]} -->{FIGURES[match[1]]()}<!-- end -->"

    return MARK.sub(figure, text)


def differences(text: str) -> list[str]:
    """Return what is wrong in a page: the name of each figure, what stands there, and what its results file says."""
    pairs = zip(MARK.findall(text), MARK.findall(fill_figures(text)), strict=True)
    return [f"{name} is {current}, not {expected}" for (name, current), (_, expected) in pairs if current != expected]


def main(_: list[str]) -> None:
    """Check or write all pages."""
    wrong = []
    for path in find_pages():
        old = path.read_text(encoding="utf-8")
        new = fill_figures(old)
        if new != old and WRITE.value:
            disk.write_text(path, new)
        else:
            wrong += [f"{path.relative_to(ROOT)}: {difference}" for difference in differences(old)]
    if wrong:
        raise UserError(f"{'; '.join(wrong)}; run python -m experiments.figures --write")


def _json_value(*path: str | int) -> Callable[[], Any]:
    """Return what reads a value of ``experiments/``: the file, then its keys."""

    def read() -> Any:
        value = json.loads((ROOT / "experiments" / str(path[0])).read_text(encoding="utf-8"))
        for key in path[1:]:
            value = value[key]
        return value

    return read


def _column_values(name: str, column: str, **filters: str) -> Callable[[], list[float]]:
    """Return what reads a column of a record, of the rows that have these values."""

    def read() -> list[float]:
        with (RESULTS / name).open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if all(row[key] == value for key, value in filters.items())]
        return [float(row[column]) for row in rows]

    return read


def _format_number(read: Callable[[], float], form: str = ".0f", scale: float = 1.0) -> Callable[[], str]:
    return lambda: format(scale * read(), form)


def _format_interval(read: Callable[[], list[float]], unit: str = "%") -> Callable[[], str]:
    """Return what writes the mean of shares and its 95 % interval in percent or points."""

    def write() -> str:
        mean, half = t_interval(read())
        return f"{100 * mean:.1f} ± {100 * (half or 0.0):.1f} {unit}"

    return write


def _expected_figure(recipe: str, figure: str, unit: str = "%") -> Callable[[], str]:
    return _format_interval(_json_value("expected.json", "recipes", recipe, "figures", figure, "values"), unit)


def _article_figures(which: str) -> Mapping[str, Callable[[], str]]:
    name = which.replace(" ", "_")
    median = _json_value("results/benchmarks/article.json", "median", which)
    turn = ("results/benchmarks/article.json", "turns", which, 0)
    base = _json_value("results/benchmarks/article.json", "median", "tl_jax")
    return {
        f"article.{name}": _format_number(median),
        f"article.{name}.exact": _format_number(median, ".1f"),
        f"article.{name}.ratio": lambda: format(median() / base(), ".3g"),
        f"article.{name}.accuracy": _format_number(_json_value(*turn, "accuracy"), ".1f", 100),
        f"article.{name}.memory": _format_number(_json_value(*turn, "peak_memory_bytes"), ".2f", 2.0**-30),
    }


def _quality_figures(name: str, metric: str) -> Mapping[str, Callable[[], str]]:
    return {
        f"quality.{name}.{library}": _format_interval(
            _column_values("text_quality.csv", "value", set=name, library=library)
        )
        for library in ("tl_jax", "transformers")
    } | {
        f"quality.{name}.examples": lambda: format(
            int(_column_values("text_quality.csv", "examples", set=name, metric=metric)()[0]), ","
        )
    }


def _box_figures(metric: str) -> Mapping[str, Callable[[], str]]:
    arms = {
        arm: _column_values("applications.csv", metric, study="detection", arm=arm) for arm in ("pretrained", "scratch")
    }
    gain = lambda: [a - b for a, b in zip(arms["pretrained"](), arms["scratch"](), strict=True)]  # noqa: E731
    return {f"boxes.{metric}.{arm}": _format_interval(read) for arm, read in arms.items()} | {
        f"boxes.{metric}.gain": _format_interval(gain, "points")
    }


def _method_seconds(method: str) -> Mapping[str, Callable[[], str]]:
    """Return the shortest and the longest of the calls of ``fine_tune`` with MobileNetV2 and 20 images a class."""
    read = _column_values("fine_tuning.csv", "seconds", network="mobilenet_v2", per_class="20", method=method)
    return {
        f"fine_tuning.{method}.shortest": lambda: format(min(read()), ".0f"),
        f"fine_tuning.{method}.longest": lambda: format(max(read()), ".0f"),
    }


_STARTS, _TEXT = "results/benchmarks/starts.json", "results/benchmarks/text.json"
_PREDICTIONS = "results/benchmarks/predictions.json"
_GPU, _GPU_BERT = "results/benchmarks/gpu.json", "results/benchmarks/gpu_bert.json"

FIGURES: Mapping[str, Callable[[], str]] = {
    "digits.examples": _format_number(_json_value("expected.json", "recipes", "digits_resnet", "examples")),
    "digits.pretrained": _expected_figure("digits_resnet", "pretrained accuracy"),
    "digits.scratch": _expected_figure("digits_resnet", "scratch accuracy"),
    "digits.gain": _expected_figure("digits_resnet", "pretrained over scratch, accuracy", "points"),
    "docs.examples": _format_number(_json_value("expected.json", "recipes", "docs_bert", "examples")),
    "docs.pretrained": _expected_figure("docs_bert", "pretrained f1"),
    "docs.scratch": _expected_figure("docs_bert", "scratch f1"),
    "docs.gain": _expected_figure("docs_bert", "pretrained over scratch, f1", "points"),
    "starts.first": _format_number(_json_value(_STARTS, "cases", 0, "median", "first", "end")),
    "starts.second": _format_number(_json_value(_STARTS, "cases", 0, "median", "second", "end")),
    "gpu.resnet50.forward": _format_number(_json_value(_GPU, "rows", 0, "ratio"), ".2f"),
    "gpu.resnet50.step": _format_number(_json_value(_GPU, "rows", 1, "ratio"), ".2f"),
    "gpu.bert.forward": _format_number(_json_value(_GPU_BERT, "rows", 0, "ratio"), ".2f"),
    "gpu.bert.step": _format_number(_json_value(_GPU_BERT, "rows", 1, "ratio"), ".2f"),
    "text.length32": _format_number(_json_value(_TEXT, "rows", 0, "ratio"), ".2f"),
    "text.length128": _format_number(_json_value(_TEXT, "rows", 1, "ratio"), ".2f"),
    "text.buckets": _format_number(_json_value(_TEXT, "rows", 2, "share"), ".2f"),
    "cartpole.seconds": lambda: format(
        _column_values("rl_recipes.csv", "seconds_all_seeds", recipe="cartpole")()[0], ".0f"
    ),
    "predictions.ours": _format_number(_json_value(_PREDICTIONS, "images_per_second", "ours"), ",.0f"),
    "predictions.loop": _format_number(_json_value(_PREDICTIONS, "images_per_second", "plain loop"), ",.0f"),
    "predictions.memory": _format_number(_json_value(_PREDICTIONS, "peak_memory_gb", "ours"), ".2f"),
    "predictions.memory.loop": _format_number(_json_value(_PREDICTIONS, "peak_memory_gb", "plain loop"), ".2f"),
    **{
        f"modes.{mode}": _format_number(_json_value("results/benchmarks/silence.json", "commands", mode, "whole"))
        for mode in ("train", "eval", "export", "report")
    },
    **_method_seconds("auto"),
    **_method_seconds("logistic"),
    **_article_figures("tl_jax"),
    **_article_figures("tl_jax again"),
    **_article_figures("keras"),
    **_article_figures("torch"),
    **_quality_figures("trec6", "accuracy"),
    **_quality_figures("sst2", "accuracy"),
    **_quality_figures("wikiann_en", "f1"),
    **_box_figures("map"),
    **_box_figures("map50"),
}


if __name__ == "__main__":
    command.run(main)
