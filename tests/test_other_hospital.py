"""A run on CT slices, tested on slices of another scanner: smaller, in another window, and noisy."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

import tl_jax

pytestmark = pytest.mark.slow


def hashes(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "evaluations" not in path.parts
    }


def shifted(image, rng):
    """The slice as another scanner would store it."""
    small = image.resize([round(0.7 * side) for side in image.size], Image.Resampling.BILINEAR)
    values = np.asarray(small, np.float32)
    values = 255 * np.clip((values - 30) / 180, 0, 1) ** 0.8 + rng.normal(0, 12, values.shape)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def test_slices_of_another_scanner_are_all_tested_beside_the_runs_own(data_dir, tmp_path):
    source, rng = data_dir / "ct_covid", np.random.default_rng(0)
    weights = data_dir / "weights" / "mobilenet_v2_keras_imagenet.h5"
    if not (source / "test").is_dir() or not weights.is_file():
        pytest.skip("no CT slices, or no weights of MobileNetV2, in the folder of real data")
    for file in sorted((source / "test").rglob("*.png")):
        target = tmp_path / "other" / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shifted(Image.open(file), rng).save(target)
    learner = tl_jax.fine_tune(
        source, weights=weights, image_size=96, epochs=0, workdir=tmp_path / "run", positive="0", calibrate=True,
        metrics=("auc", "sensitivity", "ece"), data__fit="pad",
    )  # fmt: skip
    own, before = learner.evaluate(), hashes(learner.workdir)
    other = learner.evaluate(tmp_path / "other", classes={"covid": "0", "noncovid": "1"})  # as index.csv numbers them
    assert hashes(learner.workdir) == before
    assert own.examples == other.examples == 187 and own["auc"] > 0.65
    said = learner.predict(tmp_path / "other")
    truth = ["/covid/" in prediction.input for prediction in said]
    scores = [prediction.probabilities["0"] for prediction in said]
    assert other["auc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)
    assert 0.5 < other["auc"] < own["auc"]
    low, high = other.intervals["auc"]
    assert low < other["auc"] < high
