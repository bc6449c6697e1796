"""Training on outputs of frozen layers: the same results as without, at any boundary, and only where that is so."""

import jax
import numpy as np
import pytest

from tests.tasks import small
from tl_jax.tasks import feature_cache
from tl_jax.train import evaluate, loop
from tl_jax.train.state import initial_state
from tl_jax.utils import tree

pytestmark = pytest.mark.fast
LAST = ((r"(stem|stage1|stage2)/.*", "frozen"), (".*", "train"))
HEAD_THEN_LAST = (
    {"name": "head", "epochs": 2.0, "recipe": "head"},
    {"name": "last", "epochs": 2.0, "rules": LAST, "lr_scale": 0.1},
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_cache, "MIN_FLOPS_PER_BYTE", 0.0)  # on pictures of 8 pixels nothing is much work


def fit(folder, *changes):
    task = small.task(*(("freeze.recipe", "head"), ("epochs", 3.0), ("optim.warmup", 0.0), *changes))
    plan = task.plan()
    fitted = loop.fit(task, plan, loop.Pace(5, 2), 0, folder, verbose=False)
    fitted.checkpoints.close()
    return fitted, task


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "features").glob("*.npy"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        (),
        (("phases", HEAD_THEN_LAST),),
        (("regularize.label_smoothing", 0.1), ("regularize.dropout", 0.3), ("optim.ema", 0.5)),
    ],
)
def test_results_are_those_without(tmp_path, changes):
    with_cache, task = fit(tmp_path / "on", *changes)
    without, _ = fit(tmp_path / "off", ("cache.features", "off"), *changes)
    assert with_cache.task is not task and without.task.train_batch(0)["inputs"].dtype == np.uint8
    assert with_cache.task.train_batch(0)["inputs"].dtype == np.float32
    a, b = (tree.flatten(fitted.state.variables) for fitted in (with_cache, without))
    for path in a:
        np.testing.assert_allclose(a[path], b[path], atol=3e-4, err_msg=path)
    scores = [evaluate.evaluate(f.task, f.state.eval_variables, "test").values for f in (with_cache, without)]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-3)
    assert scores[0]["accuracy"] == pytest.approx(scores[1]["accuracy"], abs=0.011)
    assert kept(tmp_path)


@pytest.mark.slow
def test_a_second_run_computes_nothing(tmp_path, capsys):
    fit(tmp_path / "a")
    assert "once" in capsys.readouterr().out
    before = kept(tmp_path)
    fit(tmp_path / "b", ("optim.lr", 1e-2))  # another rate, the same features
    assert "once" not in capsys.readouterr().out and kept(tmp_path) == before


def test_most_of_a_set_shares_what_is_kept_of_the_whole(tmp_path):
    """Other seeds cut other validation parts out of the same pictures."""
    for seed in (0, 1):
        fit(tmp_path / f"{seed}", ("data.per_class", 0), ("batch_size", 300), ("epochs", 1.0), ("seed", seed))
    assert len(kept(tmp_path)) == 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ((("augment.flip", True),), "each epoch sees other pictures"),
        ((("regularize.mixup", 0.2),), "pictures are mixed"),
        ((("regularize.distill", 0.1),), "maps are compared"),
        ((("regularize.stochastic_norm", 0.5),), "statistics are mixed"),
        ((("freeze.batch_stats", "train"),), "statistics move"),
        ((("freeze.recipe", "all"),), "nothing is frozen"),
        ((("freeze.recipe", "norm_only"),), "the first part trains"),
        ((("test_views", 2),), "tests need pictures"),
        ((("epochs", 0.5),), "half of the pictures are never used"),
        ((("cache.gigabytes", 1e-6),), "no room"),
        ((("pretext.name", "rotation"), ("pretext.weight", 1.0)), "turned pictures are needed"),
    ],
)
def test_where_nothing_is_kept(tmp_path, changes, why):
    task = small.task(("freeze.recipe", "head"), ("epochs", 3.0), *changes)
    (phase,) = task.plan()
    variables = initial_state(task, 0).variables
    assert task.cache_features(variables, phase) is task, why
    assert not kept(tmp_path)


def test_views_are_taken_in_turn(tmp_path):
    changes = (("augment.crop_pad", 2), ("cache.views", 3), ("epochs", 6.0))
    task = small.task(("freeze.recipe", "head"), *changes)
    (phase,) = task.plan()
    seen = task.cache_features(initial_state(task, 0).variables, phase)
    n = task.sizes["train"]
    images = seen.train_batch.inputs
    assert len(images) == 3 * n
    first, second, third = images[:n], images[n : 2 * n], images[2 * n :]
    assert not np.allclose(first, second, atol=1e-3) and not np.allclose(second, third, atol=1e-3)
    steps = n // 10
    rows = [np.sort(np.concatenate([seen.train_batch.rows(e * steps + i) for i in range(steps)])) for e in range(6)]
    for epoch, found in enumerate(rows):
        np.testing.assert_array_equal(found, epoch % 3 * n + np.arange(n))
    plain = next(seen.eval_batches("train"))["inputs"]  # tests see pictures as they are
    np.testing.assert_allclose(plain, pictures(task, n), atol=1e-3)


def pictures(task, n):
    """Return the features of the first training pictures."""
    batch = next(task.eval_batches("train"))
    return jax.jit(task.features)(initial_state(task, 0).variables, batch)[:n]


@pytest.mark.slow
def test_a_run_cut_short_ends_with_the_same_bits(tmp_path):
    from tl_jax.train.state import digest

    changes = (("phases", HEAD_THEN_LAST),)
    whole, task = fit(tmp_path / "whole", *changes)
    plan = task.plan()
    cut = loop.fit(task, [plan[0]], loop.Pace(5, 2), 0, tmp_path / "cut", verbose=False)
    cut.checkpoints.close()
    again, _ = fit(tmp_path / "cut", *changes)
    assert again.resumed_from == plan[0].stop
    assert digest(again.state.variables) == digest(whole.state.variables)
