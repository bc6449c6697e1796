"""The study of distances: its published record, what its plots show, and what a data folder must have."""

from pathlib import Path

import matplotlib.axes
import pytest

from experiments import record
from experiments.transferability import pairs, report, scores
from tl_jax.pretrained.catalog import EMBEDDED_RESNET8
from tl_jax.transferability.registry import FEATURES, MOMENTS, SETS, measures
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
STUDY = Path(__file__).parents[2] / "experiments" / "results" / "transfer_distance" / "study"


def test_every_source_of_the_bank_has_data_of_its_own(tmp_path):
    for source in EMBEDDED_RESNET8:
        if source in pairs.SYNTHETIC:
            assert len(scores.source_images(source, "")[1]) > 100
        else:
            with pytest.raises(UserError, match=str(tmp_path)):
                scores.source_images(source, str(tmp_path))


def test_faces_are_a_source_but_no_target(data_dir):
    assert "faces" in pairs.available_sources("") and "faces" not in pairs.TARGETS
    images, labels = scores.source_images("faces", str(data_dir))
    assert len(images) == len(labels) and len(set(labels.tolist())) == 40


def test_an_unknown_data_set_or_a_folder_without_photos_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no data set 'fces'; did you mean 'faces'"):
        pairs.target_config("fces", str(tmp_path), 5, 0)
    with pytest.raises(UserError, match="no photos"):
        scores.source_images(pairs.IMAGENET, str(tmp_path))


@pytest.mark.parametrize("way", ["fine_tune", "probe"])
def test_a_scatter_plot_shows_the_pairs_that_its_tau_is_taken_over(way, tmp_path, monkeypatch):
    drawn = []
    plot = matplotlib.axes.Axes.plot
    monkeypatch.setattr(
        matplotlib.axes.Axes, "plot", lambda self, x, *a, **k: drawn.append(len(x)) or plot(self, x, *a, **k)
    )
    found = report.read_pairs(record.read_rows(STUDY))
    behind = sum(len(group.gains) for group in report.make_groups(found, way))
    report.plot_scatter(found, way, ["logme"], tmp_path / "a.png")
    assert sum(drawn) == behind == 74
    assert f"{behind} pairs for which all are defined" in Path(f"{STUDY}.md").read_text()


def test_the_published_record_has_every_score_that_a_report_knows():
    rows = record.read_rows(STUDY)
    names = [name for name in rows[0] if name not in pairs.SETS][10:]
    assert sorted(names) == sorted((*scores.score_names(), *scores.distance_names()))
    assert {*measures(FEATURES), *measures(MOMENTS)} <= set(scores.score_names())
    assert set(measures(SETS)) <= set(scores.distance_names())
