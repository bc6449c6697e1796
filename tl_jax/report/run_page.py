"""``report.html``: what a run, or a comparison of runs, has found, from its result files."""

from pathlib import Path

from tl_jax.report import charts, page, run_classes, run_examples, run_facts, run_scores
from tl_jax.report.results import Results

# Titles and what makes them, from top to bottom; each takes the results and gives a section, or None.
SECTIONS = {
    "Result": run_scores.headline,
    "What was done": run_facts.done,
    "Curves": run_scores.curves,
    "By class": run_classes.by_class,
    "Confusions": run_classes.confusions,
    "Surest mistakes": run_examples.mistakes,
    "Boxes": run_examples.detections,
    "Calibration": run_classes.calibration,
    "ROC": run_classes.roc,
    "Where it looks": run_examples.looks,
    "An episode": run_examples.episode,
    "Network": run_facts.network,
    "Augmentation": run_examples.augmentation,
    "Learning rate": run_examples.rate,
    "Time and memory": run_facts.costs,
}
STYLE = charts.STYLE + run_scores.STYLE + run_classes.STYLE + run_examples.STYLE + run_facts.STYLE


def write(path: Path, found: Results) -> Path:
    """Write the page, a section for each kind of data that is there; what is damaged is said at the end."""
    sections, left_out = [], list(found.problems)
    for title, make in SECTIONS.items():
        try:
            parts = make(found)
        except (
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
        ) as e:  # a file that is not as it was written
            left_out.append(f"{title}: its data are not as expected ({type(e).__name__}: {e})")
            continue
        if parts:
            sections.append(parts._replace(title=title))
    if left_out:
        sections.append(page.Section("Not shown", left_out))
    name = found.summary.get("config_name") or found.about.get("name") or found.folder.name
    return page.write(path, name, sections, STYLE)
