"""Plots of the page of results, drawn from its records.

    python -m experiments.plots

Each is a PNG beside its record, below 100 kB, on a white ground that also reads in dark mode.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import record
from experiments.mechanisms import report as mechanisms
from tl_jax.report.plots import t_interval
from tl_jax.train.logging import say
from tl_jax.utils import command, disk

RESULTS = Path(__file__).parent / "results"
COLORS = 128  # of the palette of a PNG
OURS, OTHERS, FOR_SURE, UNSURE = "#0b62a8", "#c2540a", "#22783c", "#8a929b"
NETWORKS = {
    "resnet50": "ResNet50", "vgg16": "VGG16", "inception_v3": "InceptionV3", "mobilenet_v2": "MobileNetV2",
    "bert_base": "BERT-base",
}  # fmt: skip


def plot_article() -> Any:
    """Draw the seconds of each library for a head on a frozen ResNet50."""
    median = _read_benchmark("article")["median"]
    names = {"tl_jax again": "tl_jax, second run", "tl_jax": "tl_jax", "torch": "PyTorch", "keras": "Keras"}
    figure, axis = _figure(7.2, 2.4)
    seconds = [median[key] for key in names]
    bars = axis.barh(list(names.values()), seconds, color=[OURS, OURS, OTHERS, OTHERS])
    axis.bar_label(bars, [f"{value:.0f} s" for value in seconds], padding=4)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12 * max(seconds))
    axis.set_xlabel("seconds, from the start of the process to the test accuracy")
    return figure


def plot_networks() -> Any:
    """Draw our rate over that of the fastest peer, forward pass and training step of each network."""
    rows = []
    for file, place in (("networks", "2 cores"), ("gpu", "H100"), ("gpu_bert", "H100")):
        for row in _read_benchmark(file)["rows"]:
            network, size, _ = row["case"].split(":")
            unit = "tokens" if network == "bert_base" else "pixels"
            rows.append((f"{NETWORKS[network]}, {size} {unit}, {place}", row["what"], row["ratio"]))
    names = list(dict.fromkeys(name for name, _, _ in rows))
    figure, axis = _figure(7.2, 3.4)
    axis.axvspan(0.9, 1.1, color="#e7eaee")
    for what, label, color in (("forward", "forward pass", OURS), ("step", "training step", OTHERS)):
        points = [(ratio, names.index(name)) for name, kind, ratio in rows if kind == what]
        axis.plot(*zip(*points, strict=True), "o", color=color, ms=8, label=label)
    axis.axvline(1, color="black", lw=1)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("rate of tl_jax over that of the fastest peer (grey: a tie)")
    axis.legend(loc="lower right")
    return figure


def plot_applications() -> Any:
    """Draw mean and interval of CT slices, faces and boxes, pretrained and from scratch."""
    rows = record.read_rows(RESULTS / "applications")
    figure, axes = _figure(10.4, 2.9, columns=3)
    arms = {"fine_tune": ("fine-tuned", OURS), "probe": ("frozen", FOR_SURE), "scratch": ("scratch", OTHERS)}
    sizes = ["10", "50", "all"]
    for i, (arm, (label, color)) in enumerate(arms.items()):
        means, halves = _intervals(
            [[float(row["auc"]) for row in rows if _has(row, study="ct", arm=arm, per_class=n)] for n in sizes]
        )
        x = np.arange(len(sizes)) + 0.2 * (i - 1)
        axes[0].errorbar(x, means, yerr=halves, fmt="o", capsize=3, color=color, label=label)
    axes[0].axhline(0.5, color="black", lw=0.8, ls=":")
    axes[0].set_xticks(range(len(sizes)), ["10 a class", "50", "all"])
    axes[0].set(title="CT slices", ylabel="test AUC", ylim=(0.35, 1))
    axes[0].legend(fontsize=8)
    arms = {
        "fine_tune_arcface": ("fine-tuned,\nArcFace", OURS), "fine_tune_softmax": ("fine-tuned,\nsoftmax", OURS),
        "probe_arcface": ("frozen,\nArcFace", FOR_SURE), "untrained": ("as loaded", UNSURE),
    }  # fmt: skip
    _plot_arms(axes[1], rows, "faces", "auc", arms)
    axes[1].set(title="Faces", ylabel="test AUC", ylim=(0.85, 1))
    axes[1].tick_params(axis="x", labelsize=8)
    _plot_arms(axes[2], rows, "detection", "map", {"pretrained": ("pretrained", OURS), "scratch": ("scratch", OTHERS)})
    axes[2].set(title="Boxes", ylabel="test mAP, IoU 0.5 to 0.95", ylim=(0, 0.6))
    return figure


def plot_text_quality() -> Any:
    """Draw mean and interval of tl_jax and transformers on each set of texts."""
    rows = record.read_rows(RESULTS / "text_quality")
    names = {"trec6": "TREC,\naccuracy", "sst2": "SST-2,\naccuracy", "wikiann_en": "WikiANN,\nF1"}
    figure, axis = _figure(5.6, 2.9)
    for shift, library, color in ((-0.08, "tl_jax", OURS), (0.08, "transformers", OTHERS)):
        values = [[100 * float(row["value"]) for row in rows if _has(row, set=n, library=library)] for n in names]
        means, halves = _intervals(values)
        axis.errorbar(np.arange(len(names)) + shift, means, yerr=halves, fmt="o", capsize=4, color=color, label=library)
    axis.set_xticks(range(len(names)), list(names.values()))
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.set_ylabel("test score, percent")
    axis.legend(loc="upper right")
    return figure


def plot_mechanisms() -> Any:
    """Draw the gain of each method over plain fine-tuning, for the largest budget of flowers and of CT slices."""
    figure, axes = _figure(9.6, 7.4, columns=2)
    for axis, (study, per_class, title) in zip(
        axes,
        (("flowers", 0, "flowers, all 3,103 training photos"), ("ct", 50, "CT slices, 50 a class")),
        strict=True,
    ):
        rows = [row for row in mechanisms.read_record(RESULTS / f"mechanisms_{study}") if row.per_class == per_class]
        names = {row.mechanism for row in rows} - {mechanisms.PLAIN}
        gains = {name: t_interval(mechanisms.differences(rows, name, mechanisms.PLAIN)) for name in names}
        ordered = sorted(gains, key=lambda name: gains[name][0])
        for y, name in enumerate(ordered):
            mean, half = (100 * (value or 0.0) for value in gains[name])
            color = UNSURE if abs(mean) <= half else FOR_SURE if mean > 0 else OTHERS
            axis.errorbar(mean, y, xerr=half, fmt="o", ms=4, color=color)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_yticks(range(len(ordered)), ordered, fontsize=8)
        axis.set_ylim(-0.7, len(ordered) - 0.3)
        axis.set(title=title, xlabel="test accuracy over fine_tune, points")
    return figure


PLOTS: Mapping[str, Callable[[], Any]] = {
    "benchmarks/article.png": plot_article,
    "benchmarks/networks.png": plot_networks,
    "applications.png": plot_applications,
    "text_quality.png": plot_text_quality,
    "mechanisms.png": plot_mechanisms,
}


def main(_: list[str]) -> None:
    """Draw all plots."""
    for name, plot in PLOTS.items():
        say(str(disk.save_figure(plot(), RESULTS / name, colors=COLORS)))


def _read_benchmark(name: str) -> Any:
    return json.loads((RESULTS / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    return figure, axes[0] if columns == 1 else axes


def _has(row: Mapping[str, str], **values: str) -> bool:
    return all(row[key] == value for key, value in values.items())


def _intervals(groups: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Return the mean and the half width of the interval of each group; the width of a single value is 0."""
    pairs = [t_interval(values) for values in groups]
    return [mean for mean, _ in pairs], [half or 0.0 for _, half in pairs]


def _plot_arms(
    axis: Any, rows: Sequence[Mapping[str, str]], study: str, metric: str, arms: Mapping[str, tuple[str, str]]
) -> None:
    groups = [[float(row[metric]) for row in rows if _has(row, study=study, arm=arm)] for arm in arms]
    for x, (mean, half, (_, color)) in enumerate(zip(*_intervals(groups), arms.values(), strict=True)):
        axis.errorbar(x, mean, yerr=half, fmt="o", capsize=4, color=color)
    axis.set_xticks(range(len(arms)), [label for label, _ in arms.values()])
    axis.set_xlim(-0.6, len(arms) - 0.4)


if __name__ == "__main__":
    command.run(main)
