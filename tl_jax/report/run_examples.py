"""Single examples of a run: the surest mistakes, boxes on pictures, and pictures that were drawn already."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tl_jax.report import page
from tl_jax.report.results import Results

STYLE = """
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


def mistakes(found: Results) -> page.Section | None:
    """Return the test examples that the first run was surest of and wrong about."""
    run = found.first[0]
    whose = f" (of {run.arm}, seed {run.seed})" if run.arm else ""
    if sentences := run.details.get("sentences"):
        text = f"The test sentences with the most wrong tags{whose}. A wrong one is underlined: what it was taken for, "
        return page.Section("", [text + "and what it is."], [page.Raw(_sentences(sentences))])
    rows = run.details.get("mistakes")
    if rows is None:
        return None
    if not rows:
        return page.Section("", [f"No test example was taken for another class{whose}."])
    text = f"The test examples that it was surest of and wrong about{whose}, with the probability it gave its answer."
    drawn = _pictures(rows) if "picture" in rows[0] else _texts(rows)
    return page.Section("", [text], [page.Raw(drawn)])


def detections(found: Results) -> page.Section | None:
    """Return test pictures with the boxes that were found on them."""
    run = found.first[0]
    rows = run.details.get("detections")
    if not rows:
        return None
    least, classes = run.details["least_score"], run.details["classes"]
    text = f"The first {len(rows)} test pictures. Solid: found, with a score of {least:g} or more; dashed: labelled."
    drawn = Markup("").join(_boxes(row, classes) for row in rows)
    return page.Section("", [text], [page.Raw(Markup('<div class="gallery boxes">{}</div>').format(drawn))])


def looks(found: Results) -> page.Section | None:
    """Return the Grad-CAM that ``--mode=explain`` drew."""
    text = "Grad-CAM: what speaks for the class that each picture is taken for (--mode=explain)."
    return _picture(found, "explain.png", text)


def episode(found: Results) -> page.Section | None:
    """Return the episode that ``--mode=play`` drew."""
    return _picture(found, "episode.gif", "The policy acts by its likeliest actions (--mode=play).")


def augmentation(found: Results) -> page.Section | None:
    """Return what ``--mode=preview`` drew."""
    section = _picture(found, "preview.png", "Training pictures and what augmentation makes of them (--mode=preview).")
    more = _picture(found, "preview_pretext.png", "The views of the pretext (--mode=preview).")
    return section._replace(parts=[*section.parts, *(more.parts if more else ())]) if section else more


def rate(found: Results) -> page.Section | None:
    """Return what ``--mode=find_lr`` drew."""
    return _picture(found, "find_lr.png", "Loss over a rising learning rate (--mode=find_lr).")


def _picture(found: Results, name: str, caption: str) -> page.Section | None:
    path = found.pictures.get(name)
    return page.Section("", (), [page.Picture(path, caption)]) if path else None


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
