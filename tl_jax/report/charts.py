"""Charts as SVG: they follow the page's light or dark colours, scale, and need no plotting library to be imported."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 440, 270  # units, at the most as many pixels
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 44  # margins
COLOURS = 6
DASHES = ("none", "6 4", "2 3")

STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem 1.5rem; }
.charts figure { margin: 0; max-width: 34rem; }
svg { display: block; font: 13px system-ui, sans-serif; fill: var(--text); }
svg .grid { stroke: var(--line); } svg .soft { fill: var(--soft); } svg .axis { stroke: var(--soft); }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; } svg .thin { stroke-width: 1; opacity: .45; }
svg .hollow { fill: var(--page); stroke-width: 1.5; }
svg .chance { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1rem; font-size: 13px; color: var(--soft); }
.legend span { display: inline-flex; align-items: center; gap: .4rem; } .legend svg { flex: none; }
""" + "".join(f"svg .s{i} {{ stroke: var(--c{i}); }} svg .f{i} {{ fill: var(--c{i}); }}\n" for i in range(COLOURS))


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: in the legend; lines of the same name stand there once.
        points: (x, y), in the order of x.
        colour: number of it.
        dash: index into ``DASHES``.
        thin: one of many, of which the legend says nothing.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dash: int = 0
    thin: bool = False


class Frame(NamedTuple):
    """Where values stand in a chart."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return units from the left and from the top."""
        right, down = (x - self.x[0]) / (self.x[1] - self.x[0]), (self.y[1] - y) / (self.y[1] - self.y[0])
        return LEFT + right * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - BOTTOM)


def lines(
    title: str,
    drawn: Sequence[Line],
    x_name: str,
    y_name: str,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
    chance: bool = False,
) -> Markup:
    """Return a chart of lines with its legend; ``chance`` adds the diagonal. Lines of one point are dots."""
    drawn = [line for line in drawn if line.points]
    every = [point for line in drawn for point in line.points]
    frame = Frame(x or _span([p[0] for p in every], 0.0), y or _span([p[1] for p in every], 0.05))
    body = Markup("")
    if chance:
        body += _path([(frame.x[0], frame.y[0]), (frame.x[1], frame.y[1])], frame, "chance")
    for line in drawn:
        body += _path(line.points, frame, f"line s{line.colour % COLOURS}{' thin' * line.thin}", DASHES[line.dash])
        if len(line.points) <= 12 and not line.thin:
            kind = "hollow s" if line.dash else "f"
            dot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" class="{}{}"/>')
            body += Markup("").join(dot.format(*frame.at(*p), kind, line.colour % COLOURS) for p in line.points)
    named = list({(n.name, n.colour, n.dash): n for n in drawn if not n.thin}.values())
    return _figure(title, body, frame, x_name, y_name, legend(named) if len(named) > 1 else Markup(""))


def bars(title: str, bins: Mapping[str, Sequence[float]], x_name: str, y_name: str) -> Markup:
    """Return a reliability diagram of B bins: ``accuracy``, ``confidence`` and ``share`` (B,) of each."""
    frame, count = Frame((0.0, 1.0), (0.0, 1.0)), len(bins["share"])
    body = Markup("")
    rows = zip(bins["confidence"], bins["accuracy"], bins["share"], strict=True)
    bar = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="f0" opacity="{:.2f}">{}</rect>')
    dot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3.5" class="f1"/>')
    for i, (confidence, accuracy, share) in enumerate(rows):
        if not share:
            continue
        (x0, top), (x1, bottom) = frame.at(i / count, accuracy), frame.at((i + 1) / count, 0.0)
        said = Markup("<title>{:.1%} of the examples: probability {:.3f} on average, {:.1%} right</title>")
        told = said.format(share, confidence, accuracy)
        body += bar.format(x0 + 1, top, x1 - x0 - 2, bottom - top, 0.35 + 0.65 * math.sqrt(share), told)
        body += dot.format(*frame.at(confidence, accuracy))
    body += _path([(0, 0), (1, 1)], frame, "chance")
    return _figure(title, body, frame, x_name, y_name, Markup(""))


def dots(title: str, arms: Mapping[str, Mapping[str, Any]], scale: float, x_name: str) -> Markup:
    """Return a chart with a row for each arm: its ``values`` as dots, ``mean`` and ``interval95`` (half its width).

    An interval ``interval95_both`` is drawn pale behind it.
    """
    ends = [v for row in arms.values() for v in row["values"]]
    wide = {name: row.get("interval95_both") or row["interval95"] or 0.0 for name, row in arms.items()}
    ends += [row["mean"] + sign * wide[name] for name, row in arms.items() for sign in (-1, 1)]
    low, high = _span([scale * end for end in ends], 0.06)
    height = 62 * len(arms) + BOTTOM
    place = lambda value: 12 + (scale * value - low) / (high - low) * (WIDTH - 24)  # noqa: E731
    body = Markup("")
    for tick in ticks(low, high):
        x = place(tick / scale)
        body += Markup('<path class="grid" d="M{0:.1f} 4V{1}"/><text class="soft" x="{0:.1f}" y="{2}" '
                       'text-anchor="middle">{3}</text>').format(x, height - 38, height - 22, number(tick))  # fmt: skip
    for i, (name, row) in enumerate(arms.items()):
        y, half = 62 * i + 32, row["interval95"]
        body += Markup('<text x="12" y="{}" font-weight="600">{}</text>').format(y - 14, name)
        each = Markup('<circle cx="{:.1f}" cy="{}" r="4" class="f{}" opacity=".6"/>')
        body += Markup("").join(each.format(place(value), y + 15, i % COLOURS) for value in row["values"])
        pale = Markup('<path class="line s{0}" opacity=".35" stroke-width="6" d="M{1:.1f} {3}H{2:.1f}"/>')
        if row.get("interval95_both") is not None:
            body += pale.format(i % COLOURS, *(place(row["mean"] + sign * wide[name]) for sign in (-1, 1)), y)
        if half is not None:
            span = Markup('<path class="line s{0}" d="M{1:.1f} {3}H{2:.1f}M{1:.1f} {4}v12M{2:.1f} {4}v12"/>')
            body += span.format(i % COLOURS, place(row["mean"] - half), place(row["mean"] + half), y, y - 6)
        mark = Markup('<path class="f{}" d="M{:.1f} {}l6 6l-6 6l-6 -6z"/>')
        body += mark.format(i % COLOURS, place(row["mean"]), y - 6)
    body += Markup('<text class="soft" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        WIDTH / 2, height - 4, x_name
    )
    return _svg(title, body, WIDTH, height)


def legend(named: Sequence[Line]) -> Markup:
    """Return the names of lines beside pieces of them."""
    piece = Markup(
        '<span><svg width="26" height="8" aria-hidden="true"><path class="line s{}" stroke-dasharray="{}" '
        'd="M0 4H26"/></svg>{}</span>'
    )
    rows = Markup("").join(piece.format(line.colour % COLOURS, DASHES[line.dash], line.name) for line in named)
    return Markup('<div class="legend">{}</div>').format(rows)


def side_by_side(charts: Sequence[Markup]) -> Markup:
    """Return charts beside each other as far as there is room."""
    return Markup('<div class="charts">{}</div>').format(Markup("").join(charts))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers from ``low`` to ``high``."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.75)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Return a number as an axis has it."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 10):.4g}"


def _span(values: Sequence[float], room: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    edge = (high - low) * room
    return (low - edge, high + edge) if high > low else (low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1)


def _path(points: Sequence[tuple[float, float]], frame: Frame, kind: str, dash: str = "none") -> Markup:
    places = "L".join("{:.1f} {:.1f}".format(*frame.at(*point)) for point in points)
    return Markup('<path class="{}" stroke-dasharray="{}" d="M{}"/>').format(kind, dash, places)


def _figure(title: str, body: Markup, frame: Frame, x_name: str, y_name: str, below: Markup) -> Markup:
    axes = Markup("")
    for value in ticks(*frame.y):
        x, y = frame.at(frame.x[0], value)
        axes += Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(x, y, WIDTH - RIGHT)
        axes += Markup('<text class="soft" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            x - 6, y + 4, number(value)
        )
    for value in ticks(*frame.x, count=4):
        x, y = frame.at(value, frame.y[0])
        axes += Markup('<text class="soft" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            x, y + 17, number(value)
        )
    middle = (HEIGHT - BOTTOM + TOP) / 2
    axes += Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT)
    axes += Markup('<text class="soft" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_name
    )
    axes += Markup('<text class="soft" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
        middle, y_name
    )
    heading = Markup("<figcaption>{}</figcaption>").format(title)
    return Markup("<figure>{}{}{}</figure>").format(heading, _svg(title, axes + body, WIDTH, HEIGHT), below)


def _svg(title: str, body: Markup, width: float, height: float) -> Markup:
    return Markup('<svg viewBox="0 0 {0} {1}" width="{0}" role="img" aria-label="{2}">{3}</svg>').format(
        width, height, title, body
    )
