"""What the study of fine-tuning found: accuracies by target, and how far ``auto`` is ahead of each other method."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments import record
from tl_jax.train.logging import say
from tl_jax.utils import disk

DRAWS = 10_000
OURS, PLAIN = "auto", "fine_tune"
Rows = Sequence[Mapping[str, str]]
Pairs = list[tuple[Mapping[str, str], Mapping[str, str]]]


def write_report(prefix: Path) -> None:
    """Write ``PREFIX.md``."""
    rows = record.read_rows(prefix)
    if not rows:
        say(f"no rows in {prefix}.csv yet")
        return
    sections = [difference_table(rows), accuracy_table(rows), overfitting_table(rows), losing_cells(rows)]
    text = "\n\n".join([f"# {prefix.name}", *filter(None, sections)]) + "\n"
    disk.write_text(Path(f"{prefix}.md"), text)
    say(text)


def difference_table(rows: Rows) -> str:
    """Return the mean difference of ``auto`` to each method, paired by target, examples and seed, and seconds."""
    lines = [
        f"Accuracy of `{OURS}` minus that of others, in points, paired; 95 % intervals from drawing targets and seeds.",
        "",
        "| network | examples a class | other | difference | interval | pairs | its time, of the other's |",
        "|---|---|---|---|---|---|---|",
    ]
    for (network, size, method), pairs in sorted(pair_rows(rows).items()):
        mean, low, high = mean_gain(pairs)
        times = np.median([float(a["seconds"]) / float(b["seconds"]) for a, b in pairs])
        interval = f"{low:+.1f} to {high:+.1f}" if len(pairs) > 1 else "-"
        lines.append(f"| {network} | {size} | {method} | {mean:+.1f} | {interval} | {len(pairs)} | {times:.1f} |")
    return "\n".join(lines)


def pair_rows(rows: Rows) -> dict[tuple[str, int, str], Pairs]:
    """Return for each network, number of examples and method the rows of ``auto`` with those of the method.

    Methods without a network are paired with ``auto`` of every network.
    """
    ours = {_place(row): row for row in rows if row["method"] == OURS}
    groups: dict[tuple[str, int, str], Pairs] = {}
    for row in rows:
        for place, our_row in ours.items():
            is_same = place[0] == row["target"] and place[2:] == _place(row)[2:] and row["network"] in (place[1], "")
            if row["method"] != OURS and is_same:
                groups.setdefault((place[1], int(row["per_class"]), row["method"]), []).append((our_row, row))
    return groups


def mean_gain(pairs: Pairs) -> tuple[float, float, float]:
    """Return the mean of the differences of accuracy in points, and its 95 % interval, see ``two_way_interval``."""
    gains = [100 * (float(a["accuracy"]) - float(b["accuracy"])) for a, b in pairs]
    low, high = two_way_interval(gains, [a["target"] for a, _ in pairs], [a["seed"] for a, _ in pairs])
    return float(np.mean(gains)), low, high


def two_way_interval(values: Sequence[float], first: Sequence[str], second: Sequence[str]) -> tuple[float, float]:
    """Return the 95 % interval of a mean of values (N,) that share two kinds of groups, such as targets and seeds.

    Both are drawn with replacement, and a value counts as often as its two groups were drawn together: the pigeonhole
    bootstrap, Owen 2007, doi:10.1214/07-AOAS122. It is conservative.
    """
    generator, weights = np.random.default_rng(0), np.ones((DRAWS, len(values)))
    for groups in (first, second):
        _, members = np.unique(np.asarray(groups), return_inverse=True)
        count = members.max() + 1
        drawn = generator.multinomial(count, np.full(count, 1 / count), DRAWS)
        weights *= drawn[:, members]
    totals = weights.sum(1)
    means = (weights @ np.asarray(values))[totals > 0] / totals[totals > 0]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def accuracy_table(rows: Rows) -> str:
    """Return mean accuracies over seeds, methods down and targets across."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    lines = [
        f"Test accuracy in percent, mean of seeds (seconds).\n\n| network | a class | method | {' | '.join(targets)} |",
        "|---" * (3 + len(targets)) + "|",
    ]
    keys = dict.fromkeys((row["network"], row["per_class"], row["method"]) for row in rows)
    for key in sorted(keys, key=lambda key: (key[0], int(key[1]), key[2] != OURS, key[2])):
        values = []
        for target in targets:
            found = [r for r in rows if (r["network"], r["per_class"], r["method"]) == key and r["target"] == target]
            accuracy = np.mean([100 * float(row["accuracy"]) for row in found]) if found else 0.0
            values.append(f"{accuracy:.1f} ({np.mean([float(r['seconds']) for r in found]):.0f})" if found else "")
        lines.append(f"| {' | '.join(key)} | {' | '.join(values)} |")
    return "\n".join(lines)


def overfitting_table(rows: Rows) -> str:
    """Return how much more of the training examples methods know than of others; "" without plain fine-tuning.

    Gains over plain fine-tuning are paired by target, network and seed; only what was run with both counts.
    """
    plain = {(row["per_class"], *_place(row)): row for row in rows if row["method"] == PLAIN}
    groups: dict[tuple[int, str], Pairs] = {}
    for row in rows:
        if row.get("train_accuracy") and (other := plain.get((row["per_class"], *_place(row)))):
            groups.setdefault((int(row["per_class"]), row["method"]), []).append((row, other))
    lines = [
        f"Training less test accuracy in points (the gap), and test accuracy over plain `{PLAIN}`, paired.",
        "",
        "| a class | method | pairs | training | test | gap | over plain | interval |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (size, method), pairs in sorted(groups.items()):
        train, test = (np.mean([100 * float(row[name]) for row, _ in pairs]) for name in ("train_accuracy", "accuracy"))
        gain, low, high = mean_gain(pairs)
        interval = f"{low:+.1f} to {high:+.1f}" if len(pairs) > 1 else "-"
        values = f"{train:.1f} | {test:.1f} | {train - test:.1f} | {gain:+.1f} | {interval}"
        lines.append(f"| {size} | {method} | {len(pairs)} | {values} |")
    return "\n".join(lines) if plain else ""


def losing_cells(rows: Rows) -> str:
    """Return the cells in which ``auto`` is behind its probe, with what it said of its choice."""
    probes = {_place(row): float(row["accuracy"]) for row in rows if row["method"] == "logistic"}
    lines = [f"Where `{OURS}` is behind the logistic probe:", ""]
    for row in rows:
        gain = 100 * (float(row["accuracy"]) - probes.get(_place(row), 0.0))
        if row["method"] == OURS and gain < 0:
            place = ", ".join(map(str, (row["target"], row["network"], f"{row['per_class']} a class", row["seed"])))
            lines.append(f"- {place}: {gain:+.1f} points; {row['choice']}")
    return "\n".join(lines if len(lines) > 2 else [*lines, "- nowhere"])


def _place(row: Mapping[str, str]) -> tuple[str, str, str, str]:
    return row["target"], row["network"], row["per_class"], row["seed"]
