"""Report of the comparison of transfer methods: record, table, plots and findings, from the results of its runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import record
from tl_jax.report.plots import format_percent, t_interval
from tl_jax.train.logging import say
from tl_jax.train.workdir import read_json
from tl_jax.utils import disk

SCRATCH, PLAIN, PROBE = "scratch", "fine_tune", "logistic"
AGAINST_OVERFITTING: Mapping[str, Sequence[str]] = {
    "kept close to the source": ("l2_sp", "delta", "distill", "bss", "co_tuning", "stochastic_norm"),
    "noise and mixtures": ("label_smoothing", "mixup", "cutmix", "dropout", "drop_path"),
    "averages and flatness": ("wise_ft", "ema", "sam", "early_stop"),
    "self-supervision": (
        "rotation_beside", "simclr_beside", "simsiam_beside", "rotation_first", "simclr_first", "simsiam_first",
        "words_beside", "words_first",
    ),
}  # fmt: skip


class Row(NamedTuple):
    """One tested run: accuracies in [0, 1]."""

    mechanism: str
    per_class: int
    rate: float
    seed: int
    test: float
    train: float
    trainable: int
    steps: int
    examples_evaluated: int
    commit: str


def findings(all_rows: Sequence[Row], size: int) -> list[str]:
    """Return paragraphs and a table on the runs with ``size`` examples of each class.

    "Surely" is said where the 95 % interval of the difference, paired by seed, does not hold zero.
    """
    rows = [row for row in all_rows if row.per_class == size]
    names = list(dict.fromkeys(row.mechanism for row in rows))
    paragraphs = []
    for reference, title in ((PLAIN, "plain fine-tuning"), (PROBE, "the logistic probe"), (SCRATCH, "scratch")):
        if reference not in names:
            continue
        intervals = {name: t_interval(differences(rows, name, reference)) for name in names if name != reference}
        worse = [name for name, (mean, _) in intervals.items() if mean < 0]
        significant = {
            sign: [name for name, value in intervals.items() if _is_significant(value, sign)] for sign in (1, -1)
        }
        paragraphs.append(
            f"Against {title}: of {len(intervals)} mechanisms {len(intervals) - len(worse)} are no worse on average. "
            f"Surely better: {_join_names(significant[1])}. Surely worse: {_join_names(significant[-1])}. "
            f"(Were all alike, chance would make about {len(intervals) / 20:.1f} of them sure.) "
            f"Worse on average: {_join_names(worse)}."
        )
    return paragraphs + ([overfitting_table(rows, names)] if PLAIN in names else [])


def overfitting_table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Return a Markdown table of what each remedy did to test accuracy and to the gap, training less test accuracy."""
    gap, _ = t_interval([row.train - row.test for row in rows if row.mechanism == PLAIN])
    lines = [
        f"| against overfitting | remedy | test over {PLAIN} | change of its gap of {100 * gap:.0f} points |",
        "|---|---|---|---|",
    ]
    for family, members in AGAINST_OVERFITTING.items():
        for name in members:
            if name in names:
                test, gap_change = (
                    format_points(differences(rows, name, PLAIN, closing), "+") for closing in (False, True)
                )
                lines.append(f"| {family} | {name} | {test} | {gap_change} |")
    return "\n".join(lines)


def differences(rows: Sequence[Row], name: str, reference: str, gap: bool = False) -> list[float]:
    """Return test accuracy, or its gap to training accuracy, less that of the reference with the same seed."""

    def values(mechanism: str) -> dict[int, float]:
        return {row.seed: row.train - row.test if gap else row.test for row in rows if row.mechanism == mechanism}

    ours, theirs = values(name), values(reference)
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def format_points(values: Sequence[float], sign: str = "") -> str:
    """Return mean and interval of shares, in percent."""
    mean, half = t_interval(values)
    return format_percent({"mean": mean, "interval95": half}, sign)


def _is_significant(value: tuple[float, float | None], sign: int) -> bool:
    mean, half = value
    return half is not None and sign * mean > half


def _join_names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


PANELS = {
    "ways to transfer": (
        "fine_tune", "still_norms", "logistic", "ridge", "head", "lp_ft", "last_stages", "gradual", "layer_decay",
    ),
    "few trained values": ("fine_tune", "norm_only", "bias_only", "lora", "parallel", "bottleneck"),
    **{family: (PLAIN, *names) for family, names in AGAINST_OVERFITTING.items()},
}  # fmt: skip


def read_record(prefix: Path) -> list[Row]:
    """Return the rows of a record."""
    kinds = Row.__annotations__
    return [Row(**{name: kinds[name](value) for name, value in row.items()}) for row in record.read_rows(prefix)]


def update_record(folder: Path, prefix: Path) -> list[Row]:
    """Write to the record what finished in a study's folder; return all its rows."""
    new = collect_rows(folder)
    replaced = {(row.mechanism, row.per_class) for row in new}
    all_rows = [row for row in read_record(prefix) if (row.mechanism, row.per_class) not in replaced] + new
    all_rows.sort(key=lambda row: (row.mechanism, row.per_class or 10**9, row.seed))
    if all_rows:
        record.write_rows(prefix, [row._asdict() for row in all_rows])
    return all_rows


def collect_rows(folder: Path) -> list[Row]:
    """Return the tested runs of a study, by mechanism, size and seed, of the rates that were chosen."""
    rows = []
    for path in sorted(folder.glob("*/per_class*/choice.json")):
        choice = json.loads(path.read_text())
        for seed in choice["seeds"]:
            run = path.parent / f"rate{choice['rate']}" / f"seed{seed}" / "summary.json"
            if not run.is_file():  # it diverged; the table counts the seeds that are there
                continue
            summary = json.loads(run.read_text())
            rows.append(
                Row(
                    choice["mechanism"],
                    choice["per_class"],
                    float(choice["rate"]),
                    summary["seed"],
                    summary["metrics"]["accuracy"],
                    summary["train_metrics"]["accuracy"],
                    summary["parameters"]["trainable"],
                    summary["steps"],
                    summary["examples_evaluated"],
                    choice.get("commit", ""),
                )
            )
    return rows


def write_report(folder: Path, prefix: Path) -> None:
    """Write ``PREFIX.csv``, ``PREFIX.md`` and ``PREFIX_gain.png``."""
    rows = update_record(folder, prefix)
    if not rows:
        say(f"no finished runs in {folder} yet")
        return
    text = describe_protocol(read_json(Path(f"{prefix}.json")), rows) + "\n" + make_table(rows)
    for size in _list_sizes(rows):
        text += "\n".join([f"\n## {_size_name(size)}\n", *(f"{paragraph}\n" for paragraph in findings(rows, size))])
    disk.write_text(Path(f"{prefix}.md"), text)
    plot_gain(rows, Path(f"{prefix}_gain.png"))
    say(text)
    say(f"{prefix}.csv, {prefix}.md, {prefix}_gain.png")


def describe_protocol(protocol: dict[str, Any], rows: Sequence[Row]) -> str:
    """Return what the numbers are, from the protocol of the record."""
    budget = ", ".join(f"{n} steps with {_size_name(int(size))}" for size, n in protocol["steps"].items())
    commits = sorted({row.commit for row in rows} - {""})
    versions = "; ".join(", ".join(f"{k} {v}" for k, v in names.items()) for names in protocol.get("versions", []))
    lines = [
        f"{protocol['network']} ({protocol['source']} weights) on {protocol['data']}, {_inputs(protocol)}, batches of "
        f"{protocol['batch']}: {budget}.",
        f"Test accuracy in percent on {rows[0].examples_evaluated} examples, mean and 95 % interval (Student's t) of "
        f"{len({row.seed for row in rows})} seeds; gap: training less test accuracy, in points; the last column of a "
        f"size: points over {PLAIN}, paired by seed. Rates tried: {', '.join(protocol['rates'])}, chosen on "
        f"{protocol['validation']} validation examples with the first seed.",
        f"commit {', '.join(commits) or 'unknown'}; {', '.join(protocol.get('devices', []))}; {versions}",
    ]
    return "\n\n".join(lines) + "\n"


def make_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table: test accuracy, gap to training accuracy, gain over plain fine-tuning, by size."""
    sizes = _list_sizes(rows)
    headers = [f"{_size_name(n)}: test | gap | over {PLAIN}" for n in sizes]
    lines = [f"| mechanism | trained values | {' | '.join(headers)} |", "|---|---|" + "---|---|---|" * len(sizes)]
    for name in dict.fromkeys(row.mechanism for row in rows):
        cells = []
        for n in sizes:
            selected = [row for row in rows if (row.mechanism, row.per_class) == (name, n)]
            if not selected:
                cells.append(" | | ")
                continue
            gap, _ = t_interval([row.train - row.test for row in selected])
            gains = differences([row for row in rows if row.per_class == n], name, PLAIN)
            gain = format_points(gains, "+") if gains and name != PLAIN else ""
            cells.append(f"{format_points([row.test for row in selected])} | {100 * gap:.0f} | {gain}")
        trained = next(row.trainable for row in rows if row.mechanism == name)
        lines.append(f"| {name} | {trained:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measured_panels(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the panels that have a mechanism besides plain fine-tuning, each with its measured mechanisms."""
    names = {row.mechanism for row in rows}
    panels = {title: [name for name in panel if name in names] for title, panel in PANELS.items()}
    return {title: panel for title, panel in panels.items() if set(panel) - {PLAIN}}


def plot_gain(rows: Sequence[Row], path: Path) -> Path:
    """Draw the gain over training from scratch against the examples per class, paired by seed; a panel a family."""
    from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state

    sizes, panels = _list_sizes(rows), measured_panels(rows)
    columns = min(3, len(panels))
    num_rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 4.3 * num_rows), dpi=110, layout="constrained")
    axes: Any = figure.subplots(num_rows, columns, sharey=True, squeeze=False)
    for axis in axes.ravel()[len(panels) :]:
        axis.axis("off")
    for axis, (title, names) in zip(axes.ravel(), panels.items(), strict=False):
        for i, name in enumerate(names):
            gains = [differences([row for row in rows if row.per_class == n], name, SCRATCH) for n in sizes]
            points = [(index, *t_interval(values)) for index, values in enumerate(gains) if values]
            if not points:
                continue
            x, mean, half = (np.asarray([point[j] or 0.0 for point in points]) for j in range(3))
            shift = 0.04 * (i - len(names) / 2)
            axis.errorbar(x + shift, 100 * mean, yerr=100 * half, marker="o", ms=4, capsize=3, label=name, lw=1)
        axis.set_xticks(range(len(sizes)), [_size_name(n) for n in sizes])
        axis.set_xlim(-0.5, len(sizes) - 0.5)
        axis.axhline(0, color="black", lw=0.8)
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7, ncol=4, loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("test accuracy over scratch, points")
    seeds = len({row.seed for row in rows})
    figure.suptitle(f"gain over training from scratch: mean and 95 % interval of {seeds} seeds, paired", fontsize=12)
    return disk.save_figure(figure, path, colors=128)


def _list_sizes(rows: Sequence[Row]) -> list[int]:
    return sorted({row.per_class for row in rows}, key=lambda n: n or 10**9)


def _inputs(protocol: dict[str, Any]) -> str:
    return (
        f"pictures of {protocol['pixels']} pixels"
        if "pixels" in protocol
        else f"texts of up to {protocol['tokens']} tokens"
    )


def _size_name(per_class: int) -> str:
    return f"{per_class} a class" if per_class else "all"
