"""What a run takes for what, and how well it knows: classes, confusions, calibration, ROC."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from tl_jax.report import charts, page
from tl_jax.report.reliability import at_bound
from tl_jax.report.results import Result, Results

STYLE = """
.heat td, .heat th { padding: .25rem .45rem; text-align: center; } .heat thead th { vertical-align: bottom; }
.heat .tall { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem; overflow: hidden; }
.heat tbody th { text-align: right; font-weight: 400; } .heat td { min-width: 2.4rem; }
"""
WIDEST = 25  # classes of a matrix that is drawn whole
MOST = 20  # confusions that are listed otherwise


def by_class(found: Results) -> page.Section | None:
    """Return precision, recall and F1 of each class, from the confusions of all seeds or as the run wrote them."""
    runs = [run for run in found.first if run.details.get("confusion")]
    written = found.first[0].summary.get("per_class", {})
    if written and ("ap" in next(iter(written.values())) or "sentences" in found.first[0].details):
        names = list(next(iter(written.values())))  # boxes and entities are no confusions of classes
        rows = [[name, *(_cell(key, row[key]) for key in names)] for name, row in written.items()]
        return page.Section("", _whose(found, found.first[:1]), [page.Table(["class", *names], rows)])
    if not runs:
        return None
    counts, classes = _counts(runs), runs[0].details["classes"]
    rows = []
    for k, name in enumerate(classes):
        hits = counts[k, k]
        labelled, predicted = counts[k].sum(), counts[:, k].sum()
        shares = (hits, predicted), (hits, labelled), (2 * hits, labelled + predicted)
        rows.append([name, *("" if not whole else f"{part / whole:.3f}" for part, whole in shares), f"{labelled:,}"])
    columns = ["class", "precision", "recall", "F1", "examples"]
    return page.Section("", _whose(found, runs), [page.Table(columns, rows)])


def confusions(found: Results) -> page.Section | None:
    """Return who is taken for what: the matrix, or of many classes the commonest confusions."""
    runs = [run for run in found.first if run.details.get("confusion")]
    if not runs:
        return None
    counts, classes = _counts(runs), runs[0].details["classes"]
    if len(classes) <= WIDEST:
        text = ["Rows are labels, columns predictions; the shade is the share of the row.", *_whose(found, runs)]
        return page.Section("", text, [page.Raw(_matrix(counts, classes))])
    wrong = Counter({(i, k): int(counts[i, k]) for i, k in np.argwhere(counts) if i != k})
    rows = [[classes[i], classes[k], f"{n:,}", f"{n / counts[i].sum():.1%}"] for (i, k), n in wrong.most_common(MOST)]
    text = [f"The commonest of {len(wrong):,} confusions.", *_whose(found, runs)]
    return page.Section("", text, [page.Table(["label", "prediction", "examples", "of the label's"], rows)])


def calibration(found: Results) -> page.Section | None:
    """Return the reliability diagram and the calibration error."""
    runs = [run for run in found.first if run.details.get("calibration")]
    drawn = found.pictures.get("reliability.png")
    if not runs and not drawn:
        return None
    text, parts = [], []
    if runs:
        bins = _pooled([run.details["calibration"] for run in runs], [run.details["examples"] for run in runs])
        error = float(np.mean([run.details["calibration"]["ece"] for run in runs]))
        mean = f"mean over {len(runs)} seeds" if len(runs) > 1 else "ECE"
        text = [f"Expected calibration error {error:.4f} ({mean}, {len(bins['share'])} bins): the mean distance of the "
                "dots from the diagonal. Darker bars have more examples.", *_whose(found, runs)]  # fmt: skip
        x, y = "probability of the prediction", "share that is right"
        parts = [page.Raw(charts.side_by_side([charts.bars("Right, against how sure", bins, x, y)]))]
    bounds = {at_bound(run.summary.get("calibration", {}).get("temperature", 1.0)) for run in found.first} - {""}
    text += [f"The fitted temperature is {bound}." for bound in sorted(bounds)]
    parts += [page.Picture(drawn, "Before and after a temperature was fitted to the validation part.")] if drawn else []
    return page.Section("", text, parts)


def roc(found: Results) -> page.Section | None:
    """Return the ROC of two classes, or the one that was drawn."""
    runs = [run for run in found.first if run.details.get("roc")]
    parts: list[Any] = []
    if runs:
        each = [run.details["roc"] for run in runs]
        thin = len(each) > 1
        drawn = [charts.Line("", list(zip(r["fpr"], r["tpr"], strict=True)), thin=thin) for r in each]
        title = f"{each[0]['positive']}: area {np.mean([r['auc'] for r in each]):.4f}" + " (mean)" * thin
        whole = (0.0, 1.0)
        axes = "share of others taken for it", "share of it that is found"
        parts = [page.Raw(charts.side_by_side([charts.lines(title, drawn, *axes, whole, whole, chance=True)]))]
    if drawn := found.pictures.get("roc.png"):
        parts.append(page.Picture(drawn, "TAR over FAR of the test part."))
    return page.Section("", _whose(found, runs) if runs else (), parts) if parts else None


def _counts(runs: Sequence[Result]) -> np.ndarray:
    """Return the confusions (K labels, K predictions), summed over runs."""
    size = len(runs[0].details["classes"])
    counts = np.zeros((size, size), int)
    for run in runs:
        for label, k, n in run.details["confusion"]:
            counts[label, k] += n
    return counts


def _pooled(bins: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> dict[str, list[float]]:
    """Return the bins of all examples of several runs together."""
    weights = [np.asarray(one["share"]) * size for one, size in zip(bins, sizes, strict=True)]
    total = np.sum(weights, 0)
    out = {"share": (total / total.sum()).tolist()}
    for name in ("confidence", "accuracy"):
        summed = np.sum([w * np.asarray(one[name]) for w, one in zip(weights, bins, strict=True)], 0)
        out[name] = (summed / np.maximum(total, 1)).tolist()
    return out


def _matrix(counts: np.ndarray, classes: Sequence[str]) -> Markup:
    tall = Markup(' class="tall"') if max(map(len, classes)) > 3 else ""
    head = Markup("").join(Markup('<th scope="col"><span{}>{}</span></th>').format(tall, name) for name in classes)
    cell = Markup('<td style="background: color-mix(in srgb, var(--c{}) {:.0f}%, transparent)">{}</td>')
    rows = Markup("")
    for i, name in enumerate(classes):
        share = counts[i] / max(counts[i].sum(), 1)
        cells = (cell.format(int(i != k), 55 * share[k] ** 0.5, n or "") for k, n in enumerate(counts[i]))
        rows += Markup('<tr><th scope="row">{}</th>{}</tr>').format(name, Markup("").join(cells))
    table = '<table class="heat"><thead><tr><td></td>{}</tr></thead><tbody>{}</tbody></table>'
    return Markup('<div class="wide" tabindex="0">{}</div>').format(Markup(table).format(head, rows))


def _whose(found: Results, runs: Sequence[Result]) -> list[str]:
    """Say which runs a figure is of, where there are several."""
    if len(found.runs) == 1:
        return []
    arm = [runs[0].arm] if len(found.arms) > 1 else []
    seeds = f"{len(runs)} seeds together" if len(runs) > 1 else f"seed {runs[0].seed}"
    return [f"Of {', '.join([*arm, seeds])}."]


def _cell(name: str, value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if name == "examples" else f"{value:.3f}"
