"""Report of the transferability study: how well each score ranks sources by their gain over training from scratch.

The page, tables and plots are made from the record of ``study.py`` alone. Rank correlations are computed within a
group, the sources for one target with one number of examples, and averaged over groups, since no score is meant to
compare targets. Intervals resample the pairs of source and target within their groups.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure  # the object interface needs no display and keeps no global state
from scipy import stats

from experiments import record
from experiments.transferability.pairs import RANDOM
from experiments.transferability.scores import distance_names, score_names
from tl_jax.report import html as html_module
from tl_jax.report.plots import format_percent, t_interval
from tl_jax.train.workdir import read_json
from tl_jax.utils import disk

NUM_RESAMPLES = 1000


class Group(NamedTuple):
    """Sources on one target: gains (S,), and each score's values (S,)."""

    gains: np.ndarray
    scores: Mapping[str, np.ndarray]


class Agreement(NamedTuple):
    """What a score has to do with gains.

    Attributes:
        score: its name.
        tau: weighted Kendall rank correlation, mean over groups.
        low, high: 95 % interval of tau.
        spearman: Spearman's rank correlation, mean over groups.
        behind: mean by which tau is below that of the best score, paired.
        p: two-sided bootstrap p-value of that difference; 1 for the best.
        needed: pairs of source and target it would take to tell the two apart with a power of 0.8.
    """

    score: str
    tau: float
    low: float
    high: float
    spearman: float
    behind: float
    p: float
    needed: float


def agreements(groups: Sequence[Group], seed: int = 0, resamples: int = NUM_RESAMPLES) -> list[Agreement]:
    """Return what each score has to do with gains, best first, those that rank nothing last and with NaN.

    All are judged on the same pairs, in the same groups: where a score is the same for all sources of a group, as the
    H-score of fewer examples than features is, it ranks nothing there and counts as 0.
    """
    names = list(groups[0].scores)
    rng = np.random.default_rng(seed)
    pairs = sum(len(group.gains) for group in groups)
    tau = {name: _mean_correlation(groups, name, _weighted_tau) for name in names}
    ranks = {name for name in names if any(np.ptp(group.scores[name]) for group in groups)}
    order = sorted((name for name in names if name in ranks and np.isfinite(tau[name])), key=lambda name: -tau[name])
    resampled: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(resamples):
        row_sets = [rng.integers(0, len(group.gains), len(group.gains)) for group in groups]
        sampled_groups = [
            Group(group.gains[rows], {name: values[rows] for name, values in group.scores.items()})
            for group, rows in zip(groups, row_sets, strict=True)
        ]
        for name in names:
            resampled[name].append(_mean_correlation(sampled_groups, name, _weighted_tau))
    ranked = []
    for name in order:
        low, high = np.nanquantile(resampled[name], (0.025, 0.975))
        gaps = np.asarray(resampled[order[0]]) - np.asarray(resampled[name])
        behind, spread = tau[order[0]] - tau[name], float(np.nanstd(gaps))
        p = min(1.0, 2 * float(np.mean(gaps <= 0))) if name != order[0] else 1.0
        needed = pairs * (2.8 * spread / behind) ** 2 if behind > 0 else np.inf  # 2.8 = 1.96 + 0.84
        spearman = _mean_correlation(groups, name, _spearman)
        ranked.append(Agreement(name, tau[name], float(low), float(high), spearman, behind, p, needed))
    undefined = Agreement("", *np.full(6, np.nan), needed=np.inf)
    return ranked + [undefined._replace(score=name) for name in names if name not in order]


def _mean_correlation(groups: Sequence[Group], name: str, measure) -> float:
    def correlate(group: Group) -> float:
        if not np.ptp(group.gains):
            return np.nan  # nothing to rank, for any score
        return measure(group.scores[name], group.gains) if np.ptp(group.scores[name]) else 0.0

    with warnings.catch_warnings():  # a resample of nothing but equal gains has no correlation
        warnings.simplefilter("ignore")
        return float(np.nanmean([correlate(group) for group in groups]))


def _weighted_tau(a: np.ndarray, b: np.ndarray) -> float:
    result: Any = stats.weightedtau(a, b)
    return float(result.statistic)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    result: Any = stats.spearmanr(a, b)
    return float(result.statistic)


METHODS = {"fine_tune": "fine-tuning", "probe": "a logistic probe"}


class Pair(NamedTuple):
    """A source on a target with a number of examples: per seed gains over scratch by way, and mean scores."""

    source: str
    target: str
    per_class: int
    gains: Mapping[str, np.ndarray]
    scores: Mapping[str, float]

    @property
    def own(self) -> bool:
        """Whether the source was trained on the target's own data, so that nothing is transferred."""
        return self.source == self.target


def read_pairs(rows: Sequence[Mapping[str, str]]) -> list[Pair]:
    """Return the pairs of a record, seeds put together."""
    rows_by_pair: dict[tuple[str, str, int], list[Mapping[str, str]]] = {}
    for row in rows:
        rows_by_pair.setdefault((row["source"], row["target"], int(row["per_class"])), []).append(row)
    return [
        Pair(
            *key,
            {way: np.asarray([float(row[way]) - float(row["scratch"]) for row in pair_rows]) for way in METHODS},
            {
                name: float(np.mean([float(row.get(name) or "nan") for row in pair_rows]))
                for name in (*score_names(), *distance_names())
            },
        )
        for key, pair_rows in rows_by_pair.items()
    ]


def comparable_pairs(all_pairs: Sequence[Pair]) -> tuple[dict[tuple[str, int], list[Pair]], list[str]]:
    """Return by target and number of examples the pairs for which every score is defined, and the names of these.

    A score that is defined for half of the pairs or fewer is left out, lest it leave hardly any. What the tables say
    and what the plots show are these pairs.
    """
    others = [pair for pair in all_pairs if not pair.own]
    names = [
        name for name in (*score_names(), *distance_names())
        if 2 * sum(np.isfinite(pair.scores[name]) for pair in others) > len(others)
    ]  # fmt: skip
    by_group: dict[tuple[str, int], list[Pair]] = {}
    for pair in others:
        if all(np.isfinite(pair.scores[name]) for name in names):
            by_group.setdefault((pair.target, pair.per_class), []).append(pair)
    # two sources have an order, but no correlation to speak of
    return {group: members for group, members in by_group.items() if len(members) > 2}, names


def make_groups(all_pairs: Sequence[Pair], way: str) -> list[Group]:
    """Return the gains of the pairs that are compared, and their scores."""
    by_group, names = comparable_pairs(all_pairs)
    return [
        Group(
            np.asarray([pair.gains[way].mean() for pair in members]),
            {name: np.asarray([pair.scores[name] for pair in members]) for name in names},
        )
        for members in by_group.values()
    ]


def plot_gains(all_pairs: Sequence[Pair], way: str, path: Path) -> Path:
    """Draw the mean gain of each source on each target."""
    sources = list(dict.fromkeys(pair.source for pair in all_pairs))
    targets = list(dict.fromkeys(pair.target for pair in all_pairs))
    values = np.full((len(sources), len(targets)), np.nan)
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            gains = [pair.gains[way].mean() for pair in all_pairs if (pair.source, pair.target) == (source, target)]
            values[i, j] = 100 * np.mean(gains) if gains else np.nan
    figure = Figure(figsize=(2 + 1.1 * len(targets), 1.5 + 0.6 * len(sources)), dpi=110, layout="constrained")
    axis: Any = figure.subplots()
    limit = max(1.0, float(np.nanmax(abs(values))))
    image = axis.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            if np.isfinite(values[i, j]):
                use_white = abs(values[i, j]) > 0.6 * limit
                axis.text(
                    j, i, f"{values[i, j]:+.1f}", ha="center", va="center", color="white" if use_white else "black"
                )
            if source == target:
                axis.plot([j - 0.5, j + 0.5], [i - 0.5, i + 0.5], color="grey", lw=1)
    axis.set_xticks(range(len(targets)), targets, rotation=30, ha="right")
    axis.set_yticks(range(len(sources)), sources)
    axis.set_xlabel("target")
    axis.set_ylabel("source")
    figure.colorbar(image, label="gain over scratch, points")
    return disk.save_figure(figure, path, colors=128)


def plot_taus(ranked: Sequence[Agreement], words: str, path: Path) -> Path:
    """Draw tau with its interval for each score, the best on top."""
    figure = Figure(figsize=(8, 1 + 0.32 * len(ranked)), dpi=110, layout="constrained")
    axis: Any = figure.subplots()
    for i, agreement in enumerate(reversed(ranked)):
        is_significant = agreement.low > 0 or agreement.high < 0
        axis.plot([agreement.low, agreement.high], [i, i], color="tab:blue" if is_significant else "grey", lw=2)
        axis.plot([agreement.tau], [i], "o", color="tab:blue" if is_significant else "grey")
    axis.set_yticks(range(len(ranked)), [agreement.score for agreement in reversed(ranked)])
    axis.axvline(0, color="black", lw=0.8)
    axis.set_xlabel(f"weighted Kendall tau with the gain of {words}, 95 % interval (grey: includes zero)")
    axis.grid(alpha=0.3, axis="x")
    return disk.save_figure(figure, path, colors=128)


def plot_scatter(all_pairs: Sequence[Pair], way: str, names: Sequence[str], path: Path) -> Path:
    """Draw scores against gains; both without the mean of their target and budget, scores in standard deviations.

    Only pairs that the rank correlations are taken over are drawn.
    """
    by_group, _ = comparable_pairs(all_pairs)
    figure = Figure(figsize=(13, 7.5), dpi=110, layout="constrained")
    axes: Any = figure.subplots(2, 3, sharey=True)
    targets = list(dict.fromkeys(pair.target for pair in all_pairs))
    for axis, name in zip(axes.ravel(), names, strict=False):
        for k, target in enumerate(targets):
            for per_class, mark in zip(sorted({pair.per_class for pair in all_pairs}), "os^v", strict=False):
                members = by_group.get((target, per_class))
                if not members:
                    continue
                x = np.asarray([pair.scores[name] for pair in members])
                y = np.asarray([100 * pair.gains[way].mean() for pair in members])
                x = (x - x.mean()) / (x.std() or 1.0)
                axis.plot(x, y - y.mean(), mark, color=f"C{k}", ms=5, label=f"{target}, {per_class}")
        axis.set_title(name, fontsize=11)
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("gain less the group's mean, points")
    for axis in axes[1]:
        axis.set_xlabel("score, standardised within the group")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    return disk.save_figure(figure, path, colors=128)


def write_report(prefix: Path) -> str:
    """Write ``PREFIX.md``, plots and ``report.html`` beside them; return what to say about it."""
    rows = record.read_rows(prefix)
    all_pairs, protocol = read_pairs(rows), read_json(Path(f"{prefix}.json"))
    rankings = {way: agreements(groups) for way in METHODS if (groups := make_groups(all_pairs, way))}
    sections = [html_module.Section("What was measured", describe_study(rows, all_pairs, protocol))]
    for way, words in METHODS.items():
        path = plot_gains(all_pairs, way, Path(f"{prefix}_gain_{way}.png"))
        caption = f"gain of {words} over scratch, points, mean over budgets and seeds; crossed out: its own data"
        sections.append(
            html_module.Section(
                f"Gain of {words}", blocks=(gain_table(all_pairs, way), html_module.Image(path, caption))
            )
        )
    for way, ranked in rankings.items():
        sections.append(ranking_section(prefix, all_pairs, way, ranked))
    sections.append(html_module.Section("What these numbers cannot say", describe_limits(all_pairs, rankings)))
    title = "How far is the source from the target: what scores and distances say about gain"
    html = html_module.write_page(prefix.with_name("report.html"), title, sections)
    disk.write_text(Path(f"{prefix}.md"), as_markdown(title, sections))
    return f"{prefix}.csv, {prefix}.md, {html}"


def describe_study(rows: Sequence[Any], all_pairs: Sequence[Pair], protocol: Mapping[str, Any]) -> list[str]:
    """Return what the numbers are."""
    seeds, commits = {row["seed"] for row in rows}, sorted({row["commit"] for row in rows} - {""})
    sources, targets = ({getattr(pair, name) for pair in all_pairs} for name in ("source", "target"))
    budgets = sorted({pair.per_class for pair in all_pairs})
    negative = [p for p in all_pairs if not p.own and p.source != RANDOM and _is_negative(p.gains["fine_tune"])]
    versions = "; ".join(", ".join(f"{k} {v}" for k, v in entry.items()) for entry in protocol.get("versions", []))
    return [
        f"{len(sources)} sources, {len(targets)} targets, {' and '.join(map(str, budgets))} training examples of each "
        f"class, {len(seeds)} seeds. Runs from scratch and from a source have {protocol['steps']} steps of "
        f"{protocol['batch']} examples and the rates {', '.join(protocol['rates'])}, of which the first seed's "
        f"validation part chooses; accuracies are of at most {protocol['tested']} test examples.",
        f"Fine-tuning was worse than scratch, its 95 % interval below zero, for {len(negative)} of "
        f"{sum(not p.own and p.source != RANDOM for p in all_pairs)} pairs: "
        + (", ".join(f"{p.source} to {p.target} ({p.per_class})" for p in negative) or "none")
        + ".",
        f"Commit {', '.join(commits) or 'unknown'}; {versions}.",
    ]


def gain_table(all_pairs: Sequence[Pair], way: str) -> html_module.Table:
    """Return gains in points, mean and 95 % interval over seeds; a triangle marks what is surely negative."""
    columns = list(dict.fromkeys((pair.target, pair.per_class) for pair in all_pairs))
    rows = []
    for source in dict.fromkeys(pair.source for pair in all_pairs):
        row = [source]
        for target, per_class in columns:
            matching = [p for p in all_pairs if (p.source, p.target, p.per_class) == (source, target, per_class)]
            mean, half = t_interval(matching[0].gains[way]) if matching else (float("nan"), None)
            mark = (" (own)" if source == target else "") + (
                " ▼" if matching and _is_negative(matching[0].gains[way]) else ""
            )
            row.append(format_percent({"mean": mean, "interval95": half}, "+") + mark if matching else "")
        rows.append(row)
    return html_module.Table(["source", *(f"{target}, {n}" for target, n in columns)], rows)


def ranking_section(
    prefix: Path, all_pairs: Sequence[Pair], way: str, ranked: Sequence[Agreement]
) -> html_module.Section:
    """Return which scores go with the gain."""
    columns = ["score", "weighted tau", "95 % interval", "Spearman", "behind the best", "p", "pairs to tell apart"]
    rows = [
        [
            row.score, f"{row.tau:.2f}", f"{row.low:.2f} to {row.high:.2f}", f"{row.spearman:.2f}",
            f"{row.behind:.2f}" if i else "", f"{row.p:.3f}" if i else "",
            f"{row.needed:,.0f}" if i and np.isfinite(row.needed) else "",
        ]
        if np.isfinite(row.tau) else [row.score, "the same for all sources", *[""] * 5]
        for i, row in enumerate(ranked)
    ]  # fmt: skip
    groups = make_groups(all_pairs, way)
    count = sum(len(group.gains) for group in groups)
    best, significant = ranked[0], [agreement.score for agreement in ranked if agreement.low > 0]
    text = [
        f"Rank correlation of each score, distances with a minus sign, with the gain of {METHODS[way]}, among the "
        f"sources of one target and budget; mean over {len(groups)} such groups, {count} pairs for which all are "
        "defined; where a score is the same for all sources of a group, it counts as 0.",
        f"Best: {best.score} ({best.tau:.2f}, {best.low:.2f} to {best.high:.2f}). "
        f"Surely better than chance: {', '.join(significant) or 'none'}. Not told apart from the best at p < 0.05: "
        f"{', '.join(agreement.score for agreement in ranked[1:] if agreement.p >= 0.05) or 'none'}.",
    ]
    if left_out := [name for name in (*score_names(), *distance_names()) if name not in groups[0].scores]:
        text.append(f"Defined for at most half of the pairs, and so left out: {', '.join(left_out)}.")
    tau_path = plot_taus(ranked, METHODS[way], Path(f"{prefix}_tau_{way}.png"))
    scatter_path = plot_scatter(
        all_pairs, way, [agreement.score for agreement in ranked[:6]], Path(f"{prefix}_{way}.png")
    )
    blocks = (
        html_module.Table(columns, rows),
        html_module.Image(tau_path, "weighted Kendall tau with the gain, 95 % intervals over pairs"),
        html_module.Image(
            scatter_path,
            f"each score against the gain, centred within its target and budget: the {count} pairs of the table",
        ),
    )
    return html_module.Section(f"What goes with the gain of {METHODS[way]}", text, blocks)


def describe_limits(all_pairs: Sequence[Pair], rankings: Mapping[str, Sequence[Agreement]]) -> list[str]:
    """Return what the sample is too small for."""
    sentences = []
    for way, ranked in rankings.items():
        close = [agreement for agreement in ranked[1:] if agreement.p >= 0.05 and np.isfinite(agreement.needed)]
        if close:
            closest, *_, furthest = sorted((close[0], *close), key=lambda agreement: agreement.needed)
            sentences.append(
                f"For {METHODS[way]}, {len(close)} scores are not told apart from {ranked[0].score}. Telling "
                f"{closest.score} from it would take about {closest.needed:,.0f} pairs, "
                f"{furthest.score} about {furthest.needed:,.0f}."
            )
    sentences.append(
        "Sources are few and alike: one small architecture. Pairs of one source, or of one target, are not "
        "independent, so the intervals are if anything too narrow. Nothing is said about large networks."
    )
    return sentences


def as_markdown(title: str, sections: Sequence[html_module.Section]) -> str:
    """Return the page's text and tables, with links to its pictures."""
    text = [f"# {title}\n"]
    for section in sections:
        text += [f"## {section.title}\n", *(f"{paragraph}\n" for paragraph in section.text)]
        for block in section.blocks:
            if isinstance(block, html_module.Table):
                text.append(html_module.to_markdown(block))
            elif isinstance(block, html_module.Image):
                text.append(f"![{block.caption}]({block.path.name})\n")
    return "\n".join(text)


def _is_negative(gains: np.ndarray) -> bool:
    mean, half = t_interval(gains)
    return half is not None and mean + half < 0
