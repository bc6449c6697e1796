"""Measured figures in the README, the pages and the headers of recipes: those of the results files, and no others."""

import ast
import re
from pathlib import Path

import pytest

from experiments import figures
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parents[2]
PAGES = figures.find_pages()
RECIPES = sorted((ROOT / "configs").glob("[a-z]*.py"))
# An interval, a share, a time or a rate; 95 % is the level of all intervals.
MEASURED = re.compile(
    r"\d[\d.,]* ± |(?<![\d.])(?!95 %)\d[\d.,]* ?%|\d (?:s|ms|seconds|minutes|hours|points)\b|\d times the (?:rate|time)"
)
CODE = re.compile(r"^(```).*?^```$|`[^`\n]*`", re.M | re.S)


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_figures_are_those_of_the_results_files(path):
    assert not figures.differences(path.read_text()), "run python -m experiments.figures --write"


def test_a_wrong_figure_is_seen():
    text = (ROOT / "README.md").read_text()
    right = re.search(r"<!-- figure: article.tl_jax -->(\d+)<!-- end -->", text)
    assert right
    wrong = text.replace(right[0], right[0].replace(f">{right[1]}<", ">97<"))
    assert figures.differences(wrong) == [f"article.tl_jax is 97, not {right[1]}"]
    assert figures.fill_figures(wrong) == text
    with pytest.raises(UserError, match="no figure 'article.tl_jaxx'; did you mean 'article.tl_jax'"):
        figures.fill_figures(text.replace("figure: article.tl_jax ", "figure: article.tl_jaxx "))


def test_every_known_figure_is_shown_somewhere():
    shown = {mark for path in PAGES for mark, _ in figures.MARK.findall(path.read_text())}
    assert shown == set(figures.FIGURES)


def typed(text: str) -> list[str]:
    """Return the measured figures of a text that stand neither in code nor between the marks of a figure."""
    return MEASURED.findall(CODE.sub("", figures.MARK.sub("", text)))


# The page of results is the record itself, whose prose explains its tables.
@pytest.mark.parametrize("path", [path for path in PAGES if path.parent.name != "results"], ids=name)
def test_no_measured_figure_is_typed_by_hand(path):
    assert not typed(path.read_text()), "name its results file in experiments/figures.py, or leave it out"


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_no_header_of_a_recipe_has_a_measured_figure(path):
    header = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert not typed(header), "point to the results file instead"


@pytest.mark.parametrize(
    "text", ["takes 97 seconds", "90.5 ± 2.6 %", "in 13 s where", "1.03 times the rate", "7.8 ± 7.5 points", "82.82 %"]
)
def test_a_figure_that_is_typed_is_seen(text):
    assert typed(text) and not typed("a 95 % interval, `0.5 s`, <!-- figure: x -->97 s<!-- end -->, 5 examples, 94 MB")
