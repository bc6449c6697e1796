"""Areas, sensitivities, calibration errors and temperatures, against scikit-learn and values worked by hand."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score, roc_curve
from sklearn.utils.class_weight import compute_class_weight

from tl_jax.config import recipe
from tl_jax.data.dataset import Split
from tl_jax.metrics import classification
from tl_jax.tasks import image_evaluation
from tl_jax.transfer.regularizers import class_weights
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 300)
RAISED = RNG.normal(size=(300, 4)) + 1.5 * np.eye(4)[LABELS]
PROBABILITIES = np.exp(RAISED) / np.exp(RAISED).sum(1, keepdims=True)


def test_areas_equal_scikit_learn():
    one = np.round(PROBABILITIES[:, 1], 1)  # with many ties
    weights = RNG.integers(0, 4, (3, 300))
    assert classification.auc(one, LABELS == 1) == pytest.approx(roc_auc_score(LABELS == 1, one))
    expected = [roc_auc_score(LABELS == 1, one, sample_weight=w) for w in weights]
    np.testing.assert_allclose(classification.auc(one, LABELS == 1, weights), expected, rtol=1e-9)
    macro = roc_auc_score(LABELS, PROBABILITIES, multi_class="ovr", average="macro")
    assert classification.mean_auc(PROBABILITIES, LABELS, 0) == pytest.approx(macro)
    two = np.stack([one, 1 - one], 1)
    assert classification.mean_auc(two, (LABELS != 1).astype(int), 0) == pytest.approx(roc_auc_score(LABELS == 1, one))


def test_an_area_by_hand():
    # pairs (positive, negative): .8 over .1 and .5, .5 over .1 and beside .5, which counts half: 3.5 of 4
    assert classification.auc(np.array([0.1, 0.5, 0.5, 0.8]), np.array([False, False, True, True])) == 3.5 / 4
    assert np.isnan(classification.auc(np.array([0.1, 0.5]), np.array([True, True])))


def test_sensitivity_at_a_specificity():
    values = np.array([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.9, 0.3, 0.5, 0.6, 0.95])
    positive = np.arange(14) >= 10  # of ten negatives one may lie above: all but 0.9, so from 0.5 on
    assert classification.operating_point(values, positive, 0.9) == (0.5, 0.75, pytest.approx(0.9))
    assert classification.operating_point(values, positive, 1.0) == (0.95, 0.25, 1.0)
    fpr, tpr, _ = roc_curve(LABELS == 2, PROBABILITIES[:, 2])
    found = classification.operating_point(PROBABILITIES[:, 2], LABELS == 2, 0.8)
    assert found.sensitivity == tpr[fpr <= 0.2 + 1e-9].max() and found.specificity >= 0.8 - 1e-9


def test_calibration_error_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.3, 0.7], [0.28, 0.72]])
    bins = classification.reliability_bins(probabilities, np.array([0, 1, 1, 1]), num_bins=10)
    # (0.9, 1]: sure 0.95, half right; (0.6, 0.7]: 0.7, right; (0.7, 0.8]: 0.72, right
    assert bins.ece == pytest.approx(0.5 * 0.45 + 0.25 * 0.3 + 0.25 * 0.28)
    assert bins.share.tolist() == [0, 0, 0, 0, 0, 0, 0.25, 0.25, 0, 0.5]


def test_the_temperature_is_that_of_the_logits():
    raised = 3.0 * RNG.normal(size=(4000, 3))
    true = np.exp(raised) / np.exp(raised).sum(1, keepdims=True)
    labels = (RNG.random((4000, 1)) > true.cumsum(1)).sum(1)
    sure = classification.apply_temperature(true, 1 / 2.5)  # logits times 2.5
    np.testing.assert_allclose(sure, np.exp(2.5 * raised) / np.exp(2.5 * raised).sum(1, keepdims=True), rtol=1e-9)
    found = classification.fit_temperature(sure, labels)
    assert found == pytest.approx(2.5, rel=0.06)
    losses = [log_loss(labels, classification.apply_temperature(sure, t)) for t in (0.98 * found, found, 1.02 * found)]
    assert (
        losses[1]
        == min(losses)
        == pytest.approx(classification.log_loss(classification.apply_temperature(sure, found), labels))
    )
    assert classification.reliability_bins(classification.apply_temperature(sure, found), labels).ece < 0.03
    assert classification.reliability_bins(sure, labels).ece > 0.08


def test_intervals_are_over_groups():
    """Twenty copies of each picture say no more than one does; of normal scores the width is about the known one."""
    labels = np.repeat([0, 1], 40)
    one = RNG.normal(size=80) + labels
    probabilities = np.stack([-one, one], 1)
    low, high = classification.auc_interval(probabilities, labels, 1, None)
    area = classification.auc(one, labels == 1)
    ranks = stats.rankdata(one)
    v10 = (ranks[40:] - stats.rankdata(one[40:])) / 40  # DeLong's variance of the area
    v01 = 1 - (ranks[:40] - stats.rankdata(one[:40])) / 40
    deviation = np.sqrt(v10.var(ddof=1) / 40 + v01.var(ddof=1) / 40)
    assert low < area < high and high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    copied = classification.auc_interval(probabilities.repeat(20, 0), labels.repeat(20), 1, np.arange(80).repeat(20))
    assert copied == pytest.approx((low, high), abs=1e-9)
    narrow = classification.auc_interval(probabilities.repeat(20, 0), labels.repeat(20), 1, None)
    assert narrow[1] - narrow[0] < (high - low) / 3


def test_balanced_weights_are_scikit_learns():
    labels = np.repeat([0, 1, 2], [10, 30, 60])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights("balanced", labels, ("a", "b", "c")), expected)
    assert class_weights("1,2.5,0", labels, ("a", "b", "c")) == (1, 2.5, 0)
    assert class_weights("", labels, ("a", "b", "c")) == ()
    for wrong in ("1,2", "ballanced", "0,0,0", "1,-1,1"):
        with pytest.raises(
            UserError, match=f"class_weights='{wrong}': must be balanced or 3 factors; for example 1,1,1"
        ):
            class_weights(wrong, labels, ("a", "b", "c"))
    with pytest.raises(UserError, match="balanced: 'd' has no training example"):
        class_weights("balanced", labels, ("a", "b", "c", "d"))


def test_a_temperature_at_its_bound_is_named(tmp_path, capsys):
    labels = np.tile([0, 1], 50)
    how = image_evaluation.EvaluationSettings((), ("no", "yes"), None, 0.9, True, None)
    for sure, right, said in ((0.999, 0, "at its upper limit"), (0.6, 1, "at its lower limit"), (0.8, 0.9, "")):
        predicted = np.where(np.arange(100) < 100 * right, labels, 1 - labels)
        half = image_evaluation.Predictions(np.where(np.eye(2)[predicted] > 0, sure, 1 - sure), labels)
        out = image_evaluation.report_calibration(how, half, half, tmp_path)
        line = capsys.readouterr().out
        assert (f"({said}: " in line) if said else "limit" not in line
        assert said or 0.06 < out["calibration"]["temperature"] < 19


def test_the_report_says_what_the_scores_are(tmp_path):
    labels = (LABELS == 1).astype(int)
    halves = [image_evaluation.Predictions(np.stack([1 - p, p], 1), y) for p, y in zip(
        np.split(PROBABILITIES[:, 1], 2), np.split(labels, 2), strict=True)]  # fmt: skip
    how = image_evaluation.EvaluationSettings(("auc", "sensitivity"), ("no", "yes"), 1, 0.9, True, np.arange(150) // 3)
    out = image_evaluation.report_calibration(how, *halves, tmp_path)
    assert out["intervals"]["over"] == "50 groups"
    assert out["intervals"]["auc"][0] < roc_auc_score(halves[0].labels, halves[0].probabilities[:, 1])
    point, (p, y) = out["operating_point"], (halves[0].probabilities[:, 1], halves[0].labels)
    assert (
        point["threshold"]
        == classification.operating_point(halves[1].probabilities[:, 1], halves[1].labels == 1, 0.9)[0]
    )
    assert point["sensitivity"] == pytest.approx(np.mean(p[y == 1] >= point["threshold"]))
    assert point["specificity"] == pytest.approx(np.mean(p[y == 0] < point["threshold"]))
    assert out["calibration"]["temperature"] == classification.fit_temperature(*halves[1])
    assert out["calibration"]["loss_before"] == pytest.approx(log_loss(y, p))
    assert (tmp_path / "reliability.png").stat().st_size > 5000


def test_a_class_without_test_examples_leaves_the_means_and_is_named():
    here = LABELS != 2
    how = image_evaluation.EvaluationSettings(
        ("auc", "sensitivity", "ece"), ("a", "b", "c", "d"), None, 0.9, False, None
    )
    batch = {"label": LABELS[here], "mask": np.ones(here.sum())}
    evaluation = image_evaluation.evaluate_predictions(how, [PROBABILITIES[here]], [batch])
    areas = [roc_auc_score(LABELS[here] == k, PROBABILITIES[here, k]) for k in (0, 1, 3)]
    assert evaluation.values["auc"] == pytest.approx(np.mean(areas))
    assert {name for name in evaluation.missing} == {"auc of c", "sensitivity of c"}
    assert "needs examples of the class" in evaluation.missing["auc of c"]
    whole = image_evaluation.evaluate_predictions(how, [PROBABILITIES], [{"label": LABELS, "mask": np.ones(300)}])
    assert not whole.missing and set(whole.values) == {"auc", "sensitivity", "ece"}


def test_calibration_error_of_one_example_is_its_distance():
    bins = classification.reliability_bins(np.array([[0.8, 0.2]]), np.array([0]))
    assert bins.ece == pytest.approx(0.2) and np.isfinite(bins.accuracy).all()  # 14 of 15 bins are empty


def test_a_positive_class_that_changes_nothing_is_refused():
    config = recipe.override(recipe.get_config(), (("metrics", ("auc",)), ("positive", "b"), ("data.name", "npz")))
    parts = {name: Split(np.zeros((300, 1)), LABELS) for name in ("validation", "test")}
    with pytest.raises(UserError, match="positive=b has no effect on the auc of 4 classes, a mean over all; add sens"):
        image_evaluation.read_settings(config, ("a", "b", "c", "d"), parts)
    more = recipe.override(config, (("metrics", ("auc", "sensitivity")),))
    assert image_evaluation.read_settings(more, ("a", "b", "c", "d"), parts).positive == 1
