"""What a comparison of mechanisms shows, in sentences made from its rows alone."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tl_jax.report.comparison import interval, percent

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


def findings(found: Sequence[Row], size: int) -> list[str]:
    """Return paragraphs and a table on the runs with ``size`` examples of each class.

    "Surely" is said where the 95 % interval of the difference, paired by seed, does not hold zero.
    """
    rows = [row for row in found if row.per_class == size]
    names = list(dict.fromkeys(row.mechanism for row in rows))
    out = []
    for reference, called in ((PLAIN, "plain fine-tuning"), (PROBE, "the logistic probe"), (SCRATCH, "scratch")):
        if reference not in names:
            continue
        over = {name: interval(differences(rows, name, reference)) for name in names if name != reference}
        lower = [name for name, (mean, _) in over.items() if mean < 0]
        surely = {sign: [name for name, value in over.items() if _surely(value, sign)] for sign in (1, -1)}
        out.append(
            f"Against {called}: of {len(over)} mechanisms {len(over) - len(lower)} are no worse on average. "
            f"Surely better: {_listed(surely[1])}. Surely worse: {_listed(surely[-1])}. "
            f"(Were all alike, chance would make about {len(over) / 20:.1f} of them sure.) "
            f"Worse on average: {_listed(lower)}."
        )
    return out + ([overfitting(rows, names)] if PLAIN in names else [])


def overfitting(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Return a Markdown table of what each remedy did to test accuracy and to the gap, training less test accuracy."""
    gap, _ = interval([row.train - row.test for row in rows if row.mechanism == PLAIN])
    lines = [
        f"| against overfitting | remedy | test over {PLAIN} | change of its gap of {100 * gap:.0f} points |",
        "|---|---|---|---|",
    ]
    for family, members in AGAINST_OVERFITTING.items():
        for name in members:
            if name in names:
                test, less = (points(differences(rows, name, PLAIN, closing), "+") for closing in (False, True))
                lines.append(f"| {family} | {name} | {test} | {less} |")
    return "\n".join(lines)


def differences(rows: Sequence[Row], name: str, reference: str, gap: bool = False) -> list[float]:
    """Return test accuracy, or its gap to training accuracy, less that of the reference with the same seed."""

    def values(mechanism: str) -> dict[int, float]:
        return {row.seed: row.train - row.test if gap else row.test for row in rows if row.mechanism == mechanism}

    mine, other = values(name), values(reference)
    return [mine[seed] - other[seed] for seed in mine if seed in other]


def points(values: Sequence[float], sign: str = "") -> str:
    """Return mean and interval of shares, in percent."""
    mean, half = interval(values)
    return percent({"mean": mean, "interval95": half}, sign)


def _surely(value: tuple[float, float | None], sign: int) -> bool:
    mean, half = value
    return half is not None and sign * mean > half


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
