"""Keep the measured figures in the README and the pages equal to those in the results files.

    python -m experiments.figures              lists every figure that differs from its results file
    python -m experiments.figures --write      corrects them

In a page a figure is between two invisible comments, ``<!-- figure: NAME -->71<!-- end -->``; ``FIGURES`` defines the
names. After a new measurement, ``--write`` updates every page.
"""

import csv
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import record
from experiments.fine_tuning import report as fine_tuning
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


def _format_interval(read: Callable[[], list[float]], unit: str = "%", sign: str = "") -> Callable[[], str]:
    """Return what writes the mean of shares and its 95 % interval in percent or points."""

    def write() -> str:
        mean, half = t_interval(read())
        return f"{100 * mean:{sign}.1f} ± {100 * (half or 0.0):.1f} {unit}"

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


def _share_interval(read: Callable[[], list[float]], form: str = ".3f") -> Callable[[], str]:
    """Return what writes the mean of shares and its 95 % interval as they are; a single one has no interval."""

    def write() -> str:
        mean, half = t_interval(read())
        return format(mean, form) + (f"\u00a0±\u00a0{half:{form}}" if half is not None else "")  # stays in one line

    return write


def _application_figures() -> Mapping[str, Callable[[], str]]:
    """Return the figures of the tables of CT slices and of faces."""
    figures = {}
    for arm in ("fine_tune", "probe", "scratch"):
        for size in ("10", "50", "all"):
            for name, column in (("auc", "auc"), ("before", "ece_before"), ("after", "ece_after")):
                read = _column_values("applications.csv", column, study="ct", arm=arm, per_class=size)
                figures[f"ct.{arm}.{size}.{name}"] = _share_interval(read)
    for arm in ("fine_tune_arcface", "fine_tune_softmax", "probe_arcface", "untrained"):
        for column in ("auc", "tar_at_1e-2", "tar_at_1e-3", "accuracy", "rank1"):
            read = _column_values("applications.csv", column, study="faces", arm=arm)
            figures[f"faces.{arm}.{column}"] = _share_interval(read)
    return figures


def _network_figures() -> Mapping[str, Callable[[], str]]:
    """Return the rates of tl_jax and of its fastest peer on CPU and GPU, with ratio and share of a matrix product."""
    cases = ("resnet50_32", "resnet50", "vgg16", "inception_v3", "mobilenet_v2")
    rows = [(f"cpu.{case}", "networks", 2 * i) for i, case in enumerate(cases)]
    rows += [("gpu.resnet50", "gpu", 0), ("gpu.bert", "gpu_bert", 0)]
    figures = {}
    for name, file, first in rows:
        for what, index in (("forward", first), ("step", first + 1)):
            row = (f"results/benchmarks/{file}.json", "rows", index)
            figures |= {
                f"{name}.{what}": _format_number(_json_value(*row, "ratio"), ".2f"),
                f"{name}.{what}.ours": _rate(row, lambda row: "tl_jax"),
                f"{name}.{what}.peer": _rate(row, lambda row: row["fastest_peer"]),
                f"{name}.{what}.share": _format_number(_json_value(*row, "share_of_matmul"), ".0f", 100),
            }
    return figures


def _rate(path: tuple[str | int, ...], library: Callable[[Any], str]) -> Callable[[], str]:
    """Return what writes the examples a second of a library: one decimal below 100."""

    def write() -> str:
        row = _json_value(*path)()
        value = row["per_second"][library(row)]
        return format(value, ".1f" if value < 100 else ",.0f")

    return write


def _policy_figures() -> Mapping[str, Callable[[], str]]:
    figures = {}
    for name, case in (("recipe", "recipe"), ("defaults", "defaults of Stable-Baselines3")):
        path = ("results/benchmarks/policies.json", "cases", case)
        figures |= {
            f"policies.{name}.{key}": _format_number(_json_value(*path, "steps_per_second", library), ",.0f")
            for key, library in (("one", "one seed"), ("eight", "8 seeds"), ("peer", "stable_baselines3"))
        }
        figures[f"policies.{name}.ratio"] = _format_number(_json_value(*path, "ratio"), ".1f")
        figures[f"policies.{name}.time"] = _format_number(_json_value(*path, "time_of_many_over_one"), ".1f")
    return figures


def _method_scores(study: str, sizes: str, methods: str) -> Mapping[str, Callable[[], str]]:
    """Return the mean test accuracy of each method in percent, by examples a class."""
    figures = {}
    for size in sizes.split():
        for method in methods.split():
            read = _column_values(f"mechanisms_{study}.csv", "test", mechanism=method, per_class=size)
            figures[f"{study}.{method}.{_size_name(size)}"] = _format_number(
                lambda f=read: t_interval(f())[0], ".1f", 100
            )
    return figures


def _method_gain(study: str, method: str, size: str) -> Mapping[str, Callable[[], str]]:
    """Return the gain of a method over plain fine-tuning, paired by seed."""

    def by_seed(name: str) -> dict[float, float]:
        where = {"mechanism": name, "per_class": size}
        seeds, tests = (_column_values(f"mechanisms_{study}.csv", column, **where)() for column in ("seed", "test"))
        return dict(zip(seeds, tests, strict=True))

    def gains() -> list[float]:
        plain = by_seed("fine_tune")
        return [value - plain[seed] for seed, value in by_seed(method).items()]

    return {f"{study}.{method}.{_size_name(size)}.gain": _format_interval(gains, "points", "+")}


def _size_name(size: str) -> str:
    return "all" if size == "0" else size


def _table_cell(file: str, heading: str, column: str, *keys: str) -> Callable[[], str]:
    """Return what reads a cell of a record's Markdown: its row begins with ``keys``."""

    def read() -> str:
        text = (RESULTS / file).read_text(encoding="utf-8")
        text = text.partition(f"## {heading}\n")[2] if heading else text
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
        head = next(row for row in rows if column in row)
        row = next(row for row in rows if row[: len(keys)] == list(keys))
        return row[head.index(column)]

    return read


def _method_seconds(method: str) -> Mapping[str, Callable[[], str]]:
    """Return the shortest and the longest of the calls of ``fine_tune`` with MobileNetV2 and 20 images a class."""
    read = _column_values("fine_tuning.csv", "seconds", network="mobilenet_v2", per_class="20", method=method)
    return {
        f"fine_tuning.{method}.shortest": lambda: format(min(read()), ".0f"),
        f"fine_tuning.{method}.longest": lambda: format(max(read()), ".0f"),
    }


def _auto_gains(network: str, *methods: str) -> Mapping[str, Callable[[], str]]:
    """Return how far ``auto`` is ahead of each method with 20 examples a class, with its interval, and their means."""

    def read(method: str) -> fine_tuning.Pairs:
        return fine_tuning.pair_rows(record.read_rows(RESULTS / "fine_tuning"))[network, 20, method]

    def gain(method: str) -> str:
        mean, low, high = fine_tuning.mean_gain(pairs := read(method))
        return f"{mean:+.1f} points" + (f" ({low:+.1f} to {high:+.1f})" if len(pairs) > 1 else "")

    def ratio(method: str) -> str:
        return f"{np.median([float(a['seconds']) / float(b['seconds']) for a, b in read(method)]):.1f}"

    def mean(method: str, which: int) -> str:
        return f"{100 * np.mean([float(pair[which]['accuracy']) for pair in read(method)]):.1f} %"

    figures = {}
    for method in methods:
        figures[f"fine_tuning.{network}.{method}.gain"] = functools.partial(gain, method)
        figures[f"fine_tuning.{network}.{method}.ratio"] = functools.partial(ratio, method)
        figures[f"fine_tuning.{network}.{method}.auto"] = functools.partial(mean, method, 0)
        figures[f"fine_tuning.{network}.{method}.mean"] = functools.partial(mean, method, 1)
    return figures


_TAU = ("transfer_distance/study.md", "What goes with the gain of fine-tuning")
_TAU_PROBE = ("transfer_distance/study.md", "What goes with the gain of a logistic probe")
_DEPTH = ("what_is_transferred/digits.md", "First d parts from the source")
_RESET = ("what_is_transferred/digits.md", "One part of the fine-tuned network reset")
_STARTS, _TEXT = "results/benchmarks/starts.json", "results/benchmarks/text.json"
_PREDICTIONS = "results/benchmarks/predictions.json"

FIGURES: Mapping[str, Callable[[], str]] = {
    **_auto_gains("mobilenet_v2", "logistic", "lp_ft", "fastai", "raw"),
    **_auto_gains("mobilenet_v2_keras", "keras_guide"),
    **_auto_gains("minilm", "logistic", "lp_ft", "tfidf", "trainer"),
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
    **_application_figures(),
    **_network_figures(),
    **_policy_figures(),
    **_method_scores("flowers", "5 20 0", "fine_tune scratch logistic still_norms parallel lora"),
    **_method_gain("flowers", "parallel", "0"),
    **_method_gain("flowers", "still_norms", "0"),
    **_method_gain("flowers", "logistic", "0"),
    **_method_scores("ct", "10 50", "fine_tune scratch logistic ridge"),
    **_method_scores("sst2", "50", "fine_tune scratch logistic words_first lp_ft"),
    **_method_gain("sst2", "words_first", "50"),
    **_method_gain("sst2", "lp_ft", "50"),
    **{
        f"rl.{target}.area": _table_cell("rl_cartpole.md", "", "area ratio", target, "everything")
        for target in ("heavy", "weak", "short", "long", "reversed")
    },
    **{
        f"rl.breakout.{way}": _table_cell("rl_minatar.md", "", "area ratio", "breakout", way)
        for way in ("trunk", "frozen_trunk")
    },
    **{f"tau.{score}": _table_cell(*_TAU, "weighted tau", score) for score in ("logme", "gbc", "otdd")},
    **{f"tau.{score}.interval": _table_cell(*_TAU, "95 % interval", score) for score in ("logme", "gbc", "otdd")},
    "tau.probe": _table_cell(*_TAU_PROBE, "weighted tau", "logistic_probe"),
    "tau.probe.interval": _table_cell(*_TAU_PROBE, "95 % interval", "logistic_probe"),
    "layers.scratch": _table_cell(*_DEPTH, "tuned", "0"),
    "layers.all": _table_cell(*_DEPTH, "tuned", "4"),
    "layers.frozen3": _table_cell(*_DEPTH, "frozen", "3"),
    "layers.frozen4": _table_cell(*_DEPTH, "frozen", "4"),
    "layers.reset": _table_cell(*_RESET, "start", "stage3"),
    **_box_figures("map"),
    **_box_figures("map50"),
}


if __name__ == "__main__":
    command.run(main)
