"""Sentences of a comparison of mechanisms, on rows of which the answer is known."""

import pytest

from experiments.mechanisms.report import Row, differences, findings, measured_panels

pytestmark = pytest.mark.fast


def rows(name, *tests, train=1.0, per_class=10):
    return [Row(name, per_class, 1e-3, seed, test, train, 0, 40, 187, "") for seed, test in enumerate(tests)]


@pytest.fixture()
def found():
    return [
        *rows("fine_tune", 0.60, 0.65, 0.70),
        *rows("scratch", 0.50, 0.56, 0.59, train=0.8),
        *rows("logistic", 0.70, 0.76, 0.79),
        *rows("mixup", 0.65, 0.71, 0.74, train=0.9),
        *rows("l2_sp", 0.58, 0.75, 0.60),
        *rows("mixup", 0.1, 0.1, 0.1, per_class=50),
    ]


def test_what_is_sure_is_told_from_what_is_not(found):
    plain, probe, scratch, _ = findings(found, 10)
    assert "of 4 mechanisms 2 are no worse on average" in plain
    assert "Surely better: logistic, mixup. Surely worse: scratch. (" in plain and "about 0.2 of them" in plain
    assert "Worse on average: scratch, l2_sp." in plain
    assert "Surely better: none. Surely worse: fine_tune, scratch, mixup." in probe
    assert "of 4 mechanisms 4 are no worse" in scratch and "Surely better: fine_tune, logistic, mixup." in scratch


def test_remedies_stand_with_their_gap(found):
    *_, table = findings(found, 10)
    assert "change of its gap of 35 points" in table
    cells = next(line for line in table.splitlines() if "| mixup |" in line).split("|")
    assert cells[1].strip() == "noise and mixtures"
    assert cells[3].strip().startswith("+5.0") and cells[4].strip().startswith("-15.0")
    assert "logistic" not in table


def test_differences_are_paired_by_seed(found):
    missing = [row for row in found if row.per_class == 10 and (row.mechanism, row.seed) != ("mixup", 1)]
    assert differences(missing, "mixup", "fine_tune") == pytest.approx([0.05, 0.04])


def test_without_a_reference_nothing_is_said_against_it():
    assert findings(rows("mixup", 0.1, 0.2), 10) == []


def test_a_plot_has_only_the_panels_that_were_measured(found):
    assert measured_panels(found) == {
        "ways to transfer": ["fine_tune", "logistic"],
        "noise and mixtures": ["fine_tune", "mixup"],
        "kept close to the source": ["fine_tune", "l2_sp"],
    }
