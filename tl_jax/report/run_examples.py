"""Report sections on classes and examples: confusions, calibration, ROC, mistakes, boxes, figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from tl_jax.report import html, plots
from tl_jax.report.plots import describe_bound
from tl_jax.report.results import ENSEMBLE, Results, RunResult

CLASSES_STYLE = """
.heat td, .heat th { padding: .25rem .45rem; text-align: center; } .heat thead th { vertical-align: bottom; }
.heat .tall { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem; overflow: hidden; }
.heat tbody th { text-align: right; font-weight: 400; } .heat td { min-width: 2.4rem; }
"""
MAX_MATRIX_CLASSES = 25  # classes of a matrix that is drawn
MAX_CONFUSIONS = 20  # confusions listed for more classes
TAG_LETTER = 9  # width of a letter of a box's label, in units of the SVG


def class_scores(results: Results) -> html.Section | None:
    """Return precision, recall and F1 per class, from the confusions of all seeds or as written by the run."""
    runs = [run for run in results.first if run.details.get("confusion")]
    per_class = results.first[0].summary.get("per_class", {})
    if per_class and ("ap" in next(iter(per_class.values())) or "sentences" in results.first[0].details):
        names = list(next(iter(per_class.values())))  # boxes and entities have no confusion matrix
        rows = [[name, *(_format_cell(key, row[key]) for key in names)] for name, row in per_class.items()]
        return html.Section("", _runs_note(results, results.first[:1]), [html.Table(["class", *names], rows)])
    if not runs:
        return None
    counts, classes = _confusion_matrix(runs), runs[0].details["classes"]
    rows = []
    for class_id, name in enumerate(classes):
        hits = counts[class_id, class_id]
        labelled, predicted = counts[class_id].sum(), counts[:, class_id].sum()
        shares = (hits, predicted), (hits, labelled), (2 * hits, labelled + predicted)
        scores = ("" if not total else f"{count / total:.3f}" for count, total in shares)
        rows.append([name, *scores, f"{labelled:,}"])
    columns = ["class", "precision", "recall", "F1", "examples"]
    return html.Section("", _runs_note(results, runs), [html.Table(columns, rows)])


def confusions(results: Results) -> html.Section | None:
    """Return the confusion matrix, or for many classes the most frequent confusions."""
    runs = [run for run in results.first if run.details.get("confusion")]
    if not runs:
        return None
    counts, classes = _confusion_matrix(runs), runs[0].details["classes"]
    if len(classes) <= MAX_MATRIX_CLASSES:
        text = ["Rows are labels, columns predictions; shades are shares of a row.", *_runs_note(results, runs)]
        return html.Section("", text, [html.Raw(_matrix_markup(counts, classes))])
    wrong = Counter({(i, k): int(counts[i, k]) for i, k in np.argwhere(counts) if i != k})
    rows = [
        [classes[i], classes[k], f"{n:,}", f"{n / counts[i].sum():.1%}"]
        for (i, k), n in wrong.most_common(MAX_CONFUSIONS)
    ]
    text = [f"The most frequent of {len(wrong):,} confusions.", *_runs_note(results, runs)]
    return html.Section("", text, [html.Table(["label", "prediction", "examples", "share of the label"], rows)])


def calibration(results: Results) -> html.Section | None:
    """Return the reliability diagram and the calibration error."""
    runs = [run for run in results.first if run.details.get("calibration")]
    diagram = results.images.get("reliability.png")
    if not runs and not diagram:
        return None
    text: list[str] = []
    blocks: list[Any] = []
    if runs:
        bins = _pool_bins([run.details["calibration"] for run in runs], [run.details["examples"] for run in runs])
        error = float(np.mean([run.details["calibration"]["ece"] for run in runs]))
        label = f"mean over {len(runs)} seeds" if len(runs) > 1 else "ECE"
        text = [
            f"Expected calibration error {error:.4f} ({label}, {len(bins['share'])} bins): the mean distance of the "
            "dots from the diagonal. Darker bars have more examples.",
            *_runs_note(results, runs),
        ]
        x, y = "probability of the prediction", "accuracy"
        blocks = [html.Raw(plots.side_by_side([plots.reliability_chart("Accuracy by confidence", bins, x, y)]))]
    temperatures = [run.summary.get("calibration", {}).get("temperature", 1.0) for run in results.first]
    bounds = set(map(describe_bound, temperatures)) - {""}
    text += [f"The fitted temperature is {bound}." for bound in sorted(bounds)]
    if diagram:
        blocks.append(html.Image(diagram, "Before and after temperature scaling, fitted to the validation split."))
    return html.Section("", text, blocks)


def roc(results: Results) -> html.Section | None:
    """Return the ROC curve of two classes, or the plot of the run."""
    runs = [run for run in results.first if run.details.get("roc")]
    blocks: list[Any] = []
    if runs:
        curves = [run.details["roc"] for run in runs]
        thin = len(curves) > 1
        lines = [plots.Line("", list(zip(curve["fpr"], curve["tpr"], strict=True)), thin=thin) for curve in curves]
        title = f"{curves[0]['positive']}: area {np.mean([curve['auc'] for curve in curves]):.4f}" + " (mean)" * thin
        unit_range = (0.0, 1.0)
        axes = "false positive rate", "true positive rate"
        blocks = [
            html.Raw(plots.side_by_side([plots.line_chart(title, lines, *axes, unit_range, unit_range, chance=True)]))
        ]
    if diagram := results.images.get("roc.png"):
        blocks.append(html.Image(diagram, "TAR over FAR on the test split."))
    return html.Section("", _runs_note(results, runs) if runs else (), blocks) if blocks else None


def _confusion_matrix(runs: Sequence[RunResult]) -> np.ndarray:
    """Return the confusions (K labels, K predictions), summed over runs."""
    size = len(runs[0].details["classes"])
    counts = np.zeros((size, size), int)
    for run in runs:
        for label, k, n in run.details["confusion"]:
            counts[label, k] += n
    return counts


def _pool_bins(bins: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> dict[str, list[float]]:
    """Return the bins over all examples of several runs."""
    weights = [np.asarray(run_bins["share"]) * size for run_bins, size in zip(bins, sizes, strict=True)]
    total = np.sum(weights, 0)
    pooled = {"share": (total / total.sum()).tolist()}
    for name in ("confidence", "accuracy"):
        weighted_sum = np.sum([w * np.asarray(run_bins[name]) for w, run_bins in zip(weights, bins, strict=True)], 0)
        pooled[name] = (weighted_sum / np.maximum(total, 1)).tolist()
    return pooled


def _matrix_markup(counts: np.ndarray, classes: Sequence[str]) -> Markup:
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


def _runs_note(results: Results, runs: Sequence[RunResult]) -> list[str]:
    """Return a note on the runs of a figure, if there are several."""
    if len(results.runs) == 1:
        return []
    if runs[0].arm == ENSEMBLE:
        return ["Of the ensemble."]
    arm = [runs[0].arm] if len(results.arms) > 1 else []
    seeds = f"{len(runs)} seeds together" if len(runs) > 1 else f"seed {runs[0].seed}"
    return [f"Of {', '.join([*arm, seeds])}."]


def _format_cell(name: str, value: float | None) -> str:
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


def mistakes(results: Results) -> html.Section | None:
    """Return the most confident wrong predictions of the first run on the test split."""
    run = results.first[0]
    run_note = f" (of {run.arm}, seed {run.seed})" if run.arm not in ("", ENSEMBLE) else ""
    if sentences := run.details.get("sentences"):
        text = (
            f"The test sentences with the most wrong tags{run_note}. Wrong words are underlined, followed by the "
            "predicted tag "
        )
        return html.Section("", [text + "and the label."], [html.Raw(_sentence_list(sentences))])
    rows = run.details.get("mistakes")
    if rows is None:
        return None
    if not rows:
        return html.Section("", [f"All test predictions are correct{run_note}."])
    text = f"The most confident wrong predictions on the test split{run_note}, with their probabilities."
    examples = _image_gallery(rows) if "picture" in rows[0] else _text_list(rows)
    return html.Section("", [text], [html.Raw(examples)])


def detections(results: Results) -> html.Section | None:
    """Return test images with the detected boxes."""
    run = results.first[0]
    rows = run.details.get("detections")
    if not rows:
        return None
    min_score, classes = run.details["least_score"], run.details["classes"]
    text = (
        f"The first {len(rows)} test images. Solid: detections with a score of at least {min_score:g}; dashed: labels."
    )
    figures = Markup("").join(_draw_boxes(row, classes) for row in rows)
    return html.Section("", [text], [html.Raw(Markup('<div class="gallery boxes">{}</div>').format(figures))])


def grad_cam(results: Results) -> html.Section | None:
    """Return the Grad-CAM figure of ``--mode=explain``."""
    text = "Grad-CAM: image regions that support the predicted class (--mode=explain)."
    return _image_section(results, "explain.png", text)


def episode(results: Results) -> html.Section | None:
    """Return the episode of ``--mode=play``."""
    return _image_section(results, "episode.gif", "An episode with the most likely actions (--mode=play).")


def augmentation(results: Results) -> html.Section | None:
    """Return the figures of ``--mode=preview``."""
    section = _image_section(results, "preview.png", "Training images and their augmented versions (--mode=preview).")
    pretext = _image_section(results, "preview_pretext.png", "The views of the pretext task (--mode=preview).")
    return section._replace(blocks=[*section.blocks, *(pretext.blocks if pretext else ())]) if section else pretext


def learning_rate(results: Results) -> html.Section | None:
    """Return the figures of ``--mode=find_lr``."""
    section = _image_section(results, "find_lr.png", "Loss over the learning rate (--mode=find_lr).")
    head = _image_section(results, "find_lr_head.png", "The same for the head only.")
    return section._replace(blocks=[*section.blocks, *(head.blocks if head else ())]) if section else None


def _image_section(results: Results, name: str, caption: str) -> html.Section | None:
    path = results.images.get(name)
    return html.Section("", (), [html.Image(path, caption)]) if path else None


def _image_gallery(rows: Sequence[Mapping[str, Any]]) -> Markup:
    figure = Markup(
        '<figure><img alt="{0}, predicted as {1}" src="{2}"><figcaption><b>{0}</b>, predicted as <b>{1}</b>, {3:.1%}'
        "{4}</figcaption></figure>"
    )
    file = Markup("<br><small>{}</small>")
    files = [file.format(row["file"]) if "file" in row else "" for row in rows]
    figures = (
        figure.format(row["label"], row["prediction"], row["picture"], row["probability"], name)
        for row, name in zip(rows, files, strict=True)
    )
    return Markup('<div class="gallery">{}</div>').format(Markup("").join(figures))


def _text_list(rows: Sequence[Mapping[str, Any]]) -> Markup:
    item = Markup("<li>{}<br><span>{}, predicted as {}, {:.1%}</span></li>")
    items = (item.format(row["text"], row["label"], row["prediction"], row["probability"]) for row in rows)
    return Markup('<ol class="texts">{}</ol>').format(Markup("").join(items))


def _sentence_list(rows: Sequence[Mapping[str, Any]]) -> Markup:
    wrong = Markup("<mark>{}</mark> <small>{}, not {}</small>")
    items = []
    for row in rows:
        words = (
            wrong.format(word, tag, label) if tag != label else Markup.escape(word) for word, label, tag in row["words"]
        )
        items.append(Markup("<li>{}</li>").format(Markup(" ").join(words)))
    return Markup('<ol class="texts">{}</ol>').format(Markup("").join(items))


def _draw_boxes(row: Mapping[str, Any], classes: Sequence[str]) -> Markup:
    width, height = 320, round(320 / row["aspect"])
    body = Markup('<image href="{}" width="{}" height="{}" preserveAspectRatio="none"/>').format(
        row["picture"], width, height
    )
    rect = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')

    def to_pixels(box: Mapping[str, Any]) -> tuple[float, float, float, float]:
        x0, y0, x1, y1 = box["box"]
        return x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height

    for box in row["labels"]:
        body += rect.format("truth", *to_pixels(box), box["class"])
    for box in reversed(row["boxes"]):  # the most confident on top
        label, position = f"{box['class']} {box['score']:.2f}", to_pixels(box)
        body += rect.format(f"s{classes.index(box['class']) % 6}", *position, label)
        x, y = position[0] + 3, max(13.0, position[1] - 4)
        anchor = "start" if x + TAG_LETTER * len(label) < width else "end"  # which would leave the picture
        body += Markup('<text class="tag" text-anchor="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(
            anchor, x if anchor == "start" else width - 3.0, y, label
        )
    names = ", ".join(f"{box['class']} {box['score']:.2f}" for box in row["boxes"]) or "no detections"
    figure = Markup('<figure><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>')
    return figure.format(width, height, names, body)
