"""What was done in a run, the network that was trained, and what it cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tl_jax.errors import listed
from tl_jax.report import page
from tl_jax.report.results import Results

STYLE = """
dl.facts { display: grid; grid-template-columns: minmax(7rem, auto) 1fr; gap: .35rem 1.25rem; margin: .75rem 0; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { dl.facts { grid-template-columns: 1fr; gap: 0; } dl.facts dd { margin-bottom: .5rem; } }
.network { max-width: 44rem; } .network .box { stroke: var(--c0); fill: none; } .network .trained { fill: var(--c0); }
.network .frozen { fill: url(#hatch); }
"""
ROW, BAR, LABEL = 32, 150, 92  # units of the drawing: a row, the longest bar, room for names


def done(found: Results) -> page.Section | None:
    """Return the data, weights, machine and versions, and the fields that differ from ``configs/base.py``."""
    run = found.first[0]
    summary = {**run.summary, **found.summary}
    facts = run.facts or run.summary.get("facts", {})
    sizes = summary.get("examples", {})
    parts = ", ".join(f"{size:,} {part}" for part, size in sizes.items() if size)
    classes = run.details.get("classes") or list(run.summary.get("per_class", {}))
    versions = summary.get("versions", {})
    counted = summary.get("parameters", {})
    starts = {arm: _start(runs[0].facts or runs[0].summary.get("facts", {})) for arm, runs in found.arms.items()}
    rows = {
        "task": found.about.get("task", ""),
        "network": found.about.get("model", ""),
        "parameters": ", ".join(f"{count:,} {how}" for how, count in counted.items()),
        "data": facts.get("data") or facts.get("world", ""),
        "examples": parts,
        "tested on": f"{summary['examples_evaluated']:,} examples; {facts.get('tested', '')}".strip("; ")
        if "examples_evaluated" in summary
        else "",
        "classes": _listed(classes),
        "started from": "; ".join(f"{arm}: {start}" if arm else start for arm, start in starts.items() if start),
        "licence of these weights": found.about.get("licence", ""),
        "seeds": ", ".join(str(each.seed) for each in found.first),
        "steps": f"{summary['steps']:,}" if "steps" in summary else "",
        "hardware": _hardware(summary),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": summary.get("commit", ""),
        "to run it again": found.about.get("command", ""),
    }
    fields = [[field, *each] for field, each in found.changed.items()]
    text = [] if fields else ["Every field is as in configs/base.py."]
    title = f"{len(fields)} field{'s differ' if len(fields) > 1 else ' differs'} from configs/base.py"
    table = page.Table(["field", "here", "configs/base.py"], fields, words=True, title=title)
    return page.Section("", text, [_facts(rows), *([table] if fields else [])])


def network(found: Results) -> page.Section | None:
    """Return a drawing of the network for each layout that the arms have."""
    drawn: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for arm, runs in found.arms.items():
        if runs and runs[0].network:
            drawn.setdefault(str(runs[0].network), (runs[0].network, []))[1].append(arm)
    parts: list[Any] = []
    for layout, arms in drawn.values():
        parts += [page.Raw(Markup("<h3>{}</h3>").format(", ".join(arms)))] if len(drawn) > 1 else []
        parts += [page.Raw(_drawing(layout))]
    if not parts:
        return None
    text = "From the input (top) to the output. A bar is as long as the square root of the number of parameters; "
    text += "the solid part is trained in the last phase, the hatched part stays frozen."
    still = all(not layout["phases"] for layout, _ in drawn.values())
    return page.Section("", [text, *(["No step was taken: what is new was computed at once."] if still else [])], parts)


def costs(found: Results) -> page.Section | None:
    """Return seconds and memory."""
    seconds, peak = found.summary.get("seconds", {}), found.summary.get("peak_memory_bytes")
    if not seconds:
        return None
    names = {
        "data": "read weights and data", "features": "compute frozen layers", "compile": "compile", "train": "train",
        "eval": "test", "total": "all in all",
    }  # fmt: skip
    rows = [[names.get(part, part), f"{value:.1f}"] for part, value in seconds.items() if value is not None]
    parts: list[Any] = [page.Table(["", "seconds"], rows)]
    text = [f"Over {len(found.runs)} runs in one process."] if len(found.runs) > 1 else []
    if peak:
        text.append(
            f"At most {peak / 2**20:,.0f} MiB of memory were held (peak resident set, without an accelerator's)."
        )
    return page.Section("", text, parts)


def _start(facts: Mapping[str, Any]) -> str:
    weights, sha = str(facts.get("weights", "")), facts.get("weights_sha256") or ""
    if not weights or weights == "random":
        return "random weights" if weights else ""
    return weights.rpartition("/")[2] + (f", SHA-256 {sha[:16]}…" if sha else "")


def _hardware(summary: Mapping[str, Any]) -> str:
    devices, machine = summary.get("devices", []), summary.get("machine", {})
    counted = [f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices)]
    host = f"{machine['cores']} cores, {machine['processor']}, {machine['system']}" if machine else ""
    return "; ".join(filter(None, [", ".join(counted), host]))


def _listed(names: Sequence[str], most: int = 20) -> str:
    return f"{len(names)}: {listed(names, most)}" if names else ""


def _facts(rows: Mapping[str, str]) -> page.Raw:
    row = Markup("<dt>{}</dt><dd>{}</dd>\n")
    return page.Raw(Markup('<dl class="facts">{}</dl>').format(
        Markup("").join(row.format(name, value) for name, value in rows.items() if value)
    ))  # fmt: skip


def _drawing(layout: Mapping[str, Any]) -> Markup:
    phases, parts = layout["phases"], layout["parts"]
    scale = BAR / max(part["parameters"] for part in parts) ** 0.5
    body = Markup(
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<path d="M0 0V6" stroke="var(--c0)" stroke-width="2"/></pattern></defs>'
    )
    for i, part in enumerate(parts):
        body += _part(part, phases, i * ROW, scale)
    said = ", ".join(f"{part['name']} {_state(part, phases)}" for part in parts)
    return Markup('<div class="network"><svg viewBox="0 0 480 {0}" width="576" role="img" aria-label="{1}">{2}</svg>'
                  "</div>").format(ROW * len(parts), said, body)  # fmt: skip


def _part(part: Mapping[str, Any], phases: Sequence[str], top: float, scale: float) -> Markup:
    size, trained = part["parameters"], part["trained"][-1] if part["trained"] else 0
    width = max(4.0, scale * size**0.5)
    share = width * trained / size if size else 0.0
    box = Markup('<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="20"/>')
    bars = box.format("trained", LABEL, top + 4, share) if share else Markup("")
    bars += box.format("frozen", LABEL + share, top + 4, width - share) if share < width else Markup("")
    bars += box.format("box", LABEL, top + 4, width)
    text = Markup('<text x="{}" y="{}" text-anchor="{}"{}>{}</text>')
    name = text.format(LABEL - 10, top + 19, "end", "", part["name"])
    said = f"{size:,}  {_state(part, phases)}"
    return name + bars + text.format(round(LABEL + width + 10, 1), top + 19, "start", Markup(' class="soft"'), said)


def _state(part: Mapping[str, Any], phases: Sequence[str]) -> str:
    """Return "trained", "frozen" or the share that is trained; where that changes, from which phase on or in which."""
    each = [_share(trained, part["parameters"]) for trained in part["trained"]] or ["frozen"]
    if len(set(each)) == 1:
        return each[0]
    first = each.index("trained") if "trained" in each else 0
    if first and set(each[:first]) == {"frozen"} and set(each[first:]) == {"trained"}:
        return f"trained from phase {phases[first]} on"
    return ", ".join(f"{state} in {phase}" for state, phase in zip(each, phases, strict=True))


def _share(trained: int, size: int) -> str:
    return "trained" if trained == size else "frozen" if not trained else f"{100 * trained / size:.2g} % trained"
