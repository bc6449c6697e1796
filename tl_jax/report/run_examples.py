"""Sections of ``report.html`` on classes and examples: confusions, calibration, ROC, worst mistakes, boxes, images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from tl_jax.report import html, plots
from tl_jax.report.plots import at_bound
from tl_jax.report.results import Result, Results

CLASSES_STYLE = """
.heat td, .heat th { padding: .25rem .45rem; text-align: center; } .heat thead th { vertical-align: bottom; }
.heat .tall { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem; overflow: hidden; }
.heat tbody th { text-align: right; font-weight: 400; } .heat td { min-width: 2.4rem; }
"""
WIDEST = 25  # classes of a matrix that is drawn whole
MOST = 20  # confusions that are listed otherwise


def by_class(found: Results) -> html.Section | None:
    """Return precision, recall and F1 of each class, from the confusions of all seeds or as the run wrote them."""
    runs = [run for run in found.first if run.details.get("confusion")]
    written = found.first[0].summary.get("per_class", {})
    if written and ("ap" in next(iter(written.values())) or "sentences" in found.first[0].details):
        names = list(next(iter(written.values())))  # boxes and entities are no confusions of classes
        rows = [[name, *(_cell(key, row[key]) for key in names)] for name, row in written.items()]
        return html.Section("", _whose(found, found.first[:1]), [html.Table(["class", *names], rows)])
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
    return html.Section("", _whose(found, runs), [html.Table(columns, rows)])


def confusions(found: Results) -> html.Section | None:
    """Return who is taken for what: the matrix, or of many classes the commonest confusions."""
    runs = [run for run in found.first if run.details.get("confusion")]
    if not runs:
        return None
    counts, classes = _counts(runs), runs[0].details["classes"]
    if len(classes) <= WIDEST:
        text = ["Rows are labels, columns predictions; the shade is the share of the row.", *_whose(found, runs)]
        return html.Section("", text, [html.Raw(_matrix(counts, classes))])
    wrong = Counter({(i, k): int(counts[i, k]) for i, k in np.argwhere(counts) if i != k})
    rows = [[classes[i], classes[k], f"{n:,}", f"{n / counts[i].sum():.1%}"] for (i, k), n in wrong.most_common(MOST)]
    text = [f"The commonest of {len(wrong):,} confusions.", *_whose(found, runs)]
    return html.Section("", text, [html.Table(["label", "prediction", "examples", "of the label's"], rows)])


def calibration(found: Results) -> html.Section | None:
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
        parts = [html.Raw(plots.side_by_side([plots.bars("Right, against how sure", bins, x, y)]))]
    bounds = {at_bound(run.summary.get("calibration", {}).get("temperature", 1.0)) for run in found.first} - {""}
    text += [f"The fitted temperature is {bound}." for bound in sorted(bounds)]
    parts += [html.Picture(drawn, "Before and after a temperature was fitted to the validation part.")] if drawn else []
    return html.Section("", text, parts)


def roc(found: Results) -> html.Section | None:
    """Return the ROC of two classes, or the one that was drawn."""
    runs = [run for run in found.first if run.details.get("roc")]
    parts: list[Any] = []
    if runs:
        each = [run.details["roc"] for run in runs]
        thin = len(each) > 1
        drawn = [plots.Line("", list(zip(r["fpr"], r["tpr"], strict=True)), thin=thin) for r in each]
        title = f"{each[0]['positive']}: area {np.mean([r['auc'] for r in each]):.4f}" + " (mean)" * thin
        whole = (0.0, 1.0)
        axes = "share of others taken for it", "share of it that is found"
        parts = [html.Raw(plots.side_by_side([plots.lines(title, drawn, *axes, whole, whole, chance=True)]))]
    if drawn := found.pictures.get("roc.png"):
        parts.append(html.Picture(drawn, "TAR over FAR of the test part."))
    return html.Section("", _whose(found, runs) if runs else (), parts) if parts else None


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


EXAMPLES_STYLE = """
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem; margin: 1rem 0; }
.gallery figure { margin: 0; background: var(--card); border-radius: 6px; padding: .6rem; }
.gallery img { width: 96px; height: 96px; object-fit: contain; display: block; margin: 0 auto .5rem; }
.gallery img { image-rendering: pixelated; } .gallery figcaption { font-size: 13px; line-height: 1.4; }
.gallery small { overflow-wrap: anywhere; }
.gallery b { color: var(--text); } .boxes { grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.boxes svg { width: 100%; height: auto; border-radius: 4px; } .boxes rect { fill: none; stroke-width: 3; }
.boxes .truth { stroke: white; stroke-dasharray: 7 5; } .boxes text { font-weight: 600; }
.boxes .tag { paint-order: stroke; stroke: black; stroke-width: 3px; fill: white; }
ol.texts { padding-left: 1.5rem; } ol.texts li { margin: .75rem 0; max-width: 50rem; }
ol.texts span { color: var(--soft); font-size: 14px; } ol.texts mark { background: none; color: inherit;
  border-bottom: 2px solid var(--c1); } ol.texts small { color: var(--c1); }
"""


def mistakes(found: Results) -> html.Section | None:
    """Return the test examples that the first run was surest of and wrong about."""
    run = found.first[0]
    whose = f" (of {run.arm}, seed {run.seed})" if run.arm else ""
    if sentences := run.details.get("sentences"):
        text = f"The test sentences with the most wrong tags{whose}. A wrong one is underlined: what it was taken for, "
        return html.Section("", [text + "and what it is."], [html.Raw(_sentences(sentences))])
    rows = run.details.get("mistakes")
    if rows is None:
        return None
    if not rows:
        return html.Section("", [f"No test example was taken for another class{whose}."])
    text = f"The test examples that it was surest of and wrong about{whose}, with the probability it gave its answer."
    drawn = _pictures(rows) if "picture" in rows[0] else _texts(rows)
    return html.Section("", [text], [html.Raw(drawn)])


def detections(found: Results) -> html.Section | None:
    """Return test pictures with the boxes that were found on them."""
    run = found.first[0]
    rows = run.details.get("detections")
    if not rows:
        return None
    least, classes = run.details["least_score"], run.details["classes"]
    text = f"The first {len(rows)} test pictures. Solid: found, with a score of {least:g} or more; dashed: labelled."
    drawn = Markup("").join(_boxes(row, classes) for row in rows)
    return html.Section("", [text], [html.Raw(Markup('<div class="gallery boxes">{}</div>').format(drawn))])


def looks(found: Results) -> html.Section | None:
    """Return the Grad-CAM that ``--mode=explain`` drew."""
    text = "Grad-CAM: what speaks for the class that each picture is taken for (--mode=explain)."
    return _picture(found, "explain.png", text)


def episode(found: Results) -> html.Section | None:
    """Return the episode that ``--mode=play`` drew."""
    return _picture(found, "episode.gif", "The policy acts by its likeliest actions (--mode=play).")


def augmentation(found: Results) -> html.Section | None:
    """Return what ``--mode=preview`` drew."""
    section = _picture(found, "preview.png", "Training pictures and what augmentation makes of them (--mode=preview).")
    more = _picture(found, "preview_pretext.png", "The views of the pretext (--mode=preview).")
    return section._replace(parts=[*section.parts, *(more.parts if more else ())]) if section else more


def rate(found: Results) -> html.Section | None:
    """Return what ``--mode=find_lr`` drew."""
    return _picture(found, "find_lr.png", "Loss over a rising learning rate (--mode=find_lr).")


def _picture(found: Results, name: str, caption: str) -> html.Section | None:
    path = found.pictures.get(name)
    return html.Section("", (), [html.Picture(path, caption)]) if path else None


def _pictures(rows: Sequence[Mapping[str, Any]]) -> Markup:
    figure = Markup(
        '<figure><img alt="{0}, taken for {1}" src="{2}"><figcaption><b>{0}</b>, taken for <b>{1}</b>, {3:.1%}'
        "{4}</figcaption></figure>"
    )
    file = Markup("<br><small>{}</small>")
    files = [file.format(r["file"]) if "file" in r else "" for r in rows]
    drawn = (
        figure.format(r["label"], r["prediction"], r["picture"], r["probability"], name)
        for r, name in zip(rows, files, strict=True)
    )
    return Markup('<div class="gallery">{}</div>').format(Markup("").join(drawn))


def _texts(rows: Sequence[Mapping[str, Any]]) -> Markup:
    item = Markup("<li>{}<br><span>{}, taken for {}, {:.1%}</span></li>")
    drawn = (item.format(r["text"], r["label"], r["prediction"], r["probability"]) for r in rows)
    return Markup('<ol class="texts">{}</ol>').format(Markup("").join(drawn))


def _sentences(rows: Sequence[Mapping[str, Any]]) -> Markup:
    wrong = Markup("<mark>{}</mark> <small>{}, not {}</small>")
    drawn = []
    for row in rows:
        words = (wrong.format(w, is_, was) if is_ != was else Markup.escape(w) for w, was, is_ in row["words"])
        drawn.append(Markup("<li>{}</li>").format(Markup(" ").join(words)))
    return Markup('<ol class="texts">{}</ol>').format(Markup("").join(drawn))


def _boxes(row: Mapping[str, Any], classes: Sequence[str]) -> Markup:
    width, height = 320, round(320 / row["aspect"])
    body = Markup('<image href="{}" width="{}" height="{}" preserveAspectRatio="none"/>').format(
        row["picture"], width, height
    )
    rect = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')

    def place(each: Mapping[str, Any]) -> tuple[float, float, float, float]:
        x0, y0, x1, y1 = each["box"]
        return x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height

    for each in row["labels"]:
        body += rect.format("truth", *place(each), each["class"])
    for each in reversed(row["boxes"]):  # the surest on top
        said, where = f"{each['class']} {each['score']:.2f}", place(each)
        body += rect.format(f"s{classes.index(each['class']) % 6}", *where, said)
        body += Markup('<text class="tag" x="{:.1f}" y="{:.1f}">{}</text>').format(
            where[0] + 3, max(13.0, where[1] - 4), said
        )
    names = ", ".join(f"{each['class']} {each['score']:.2f}" for each in row["boxes"]) or "nothing found"
    figure = Markup('<figure><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>')
    return figure.format(width, height, names, body)
