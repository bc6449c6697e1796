"""The plots of the page of results: drawn from the records, small, and on the page."""

from pathlib import Path

import pytest
from PIL import Image

from experiments import plots
from tl_jax.utils import disk

pytestmark = pytest.mark.fast
PAGE = (plots.RESULTS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", plots.PLOTS)
def test_plots_are_drawn_and_stored(name, tmp_path):
    drawn = disk.save_figure(plots.PLOTS[name](), tmp_path / "plot.png", colors=plots.COLORS)
    with Image.open(drawn) as new, Image.open(plots.RESULTS / name) as stored:
        assert new.size == stored.size, "run python -m experiments.plots"
    assert f"({name})" in PAGE


@pytest.mark.parametrize("path", sorted(plots.RESULTS.rglob("*.png")), ids=lambda path: path.name)
def test_stored_plots_are_small(path: Path):
    assert path.stat().st_size < 100_000, "save it with colors=128"
