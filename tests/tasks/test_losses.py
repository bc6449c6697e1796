"""What each penalty adds to the loss of the shipped network on digits, against the same worked out beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tasks import small
from tl_jax.config import schema
from tl_jax.tasks.image_classification import ImageClassification
from tl_jax.train.state import stream_key
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.slow


def evaluate(move=0.0, *changes):
    """Return loss, sums, variables, batch and task, with all parameters moved a little away from the start."""
    task = small.task(*changes)
    variables = task.init(stream_key(0, "init"))
    params = {
        name: leaves if name == "head" else jax.tree.map(lambda leaf: leaf + move, leaves)
        for name, leaves in variables["params"].items()
    }
    batch = task.train_batch(0)
    value, (_, sums) = jax.jit(task.loss)({**variables, "params": params}, batch, jax.random.key(1))
    return float(value), jax.device_get(sums), {**variables, "params": params}, batch, task


@pytest.fixture(scope="module")
def plain():
    return {move: evaluate(move)[0] for move in (0.0, 0.01)}


@pytest.mark.parametrize("name", ["l2_sp", "distill", "delta", "bss", "co_tuning", "l2_sp_head"])
def test_a_penalty_is_what_it_adds_and_is_reported(plain, name):
    at_start, sums, *_ = evaluate(0.0, (f"regularize.{name}", 0.5))
    moved, moved_sums, *_ = evaluate(0.01, (f"regularize.{name}", 0.5))
    if name == "l2_sp":  # maps differ before anything moved: in training BatchNorm uses the batch
        assert at_start == pytest.approx(plain[0.0], rel=1e-6)
    assert at_start - plain[0.0] == pytest.approx(float(sums["penalty"][0]), abs=2e-5)
    assert moved - plain[0.01] == pytest.approx(float(moved_sums["penalty"][0]), abs=2e-5)
    assert moved > plain[0.01]


def test_l2_sp_counts_every_leaf_that_moved():
    _, sums, variables, *_ = evaluate(0.01, ("regularize.l2_sp", 2.0))
    moved = tree.count(variables["params"]) - tree.count(variables["params"]["head"])
    assert float(sums["penalty"][0]) == pytest.approx(2.0 * 0.5 * moved * 0.01**2, rel=1e-3)


def test_co_tuning_is_the_cross_entropy_of_the_head_that_came_with_the_weights():
    from tl_jax import pretrained

    _, sums, variables, batch, task = evaluate(0.0, ("regularize.co_tuning", 1.0), ("freeze.batch_stats", "frozen"))
    source = pretrained.load("resnet8", "tl_jax").variables["params"]["head"]
    np.testing.assert_array_equal(variables["params"]["extra"]["source_head"]["kernel"], source["kernel"])
    relation = np.asarray(variables["source"]["relation"])
    assert relation.shape == (10, 10)
    np.testing.assert_allclose(relation.sum(1), 1.0, rtol=1e-5)
    features = np.concatenate([task.features(variables, b)[b["mask"] > 0] for b in task.eval_batches("train")])
    labels = np.concatenate([b["label"][b["mask"] > 0] for b in task.eval_batches("train")])
    probs = np.asarray(jax.nn.softmax(features @ source["kernel"] + source["bias"][None]))
    np.testing.assert_allclose(relation[3], probs[labels == 3].mean(0), rtol=1e-4, atol=1e-6)


def test_smoothing_and_mixing_change_the_targets_only_as_told(plain):
    smooth, *_ = evaluate(0.0, ("regularize.label_smoothing", 0.3))
    # The loss is linear in the share: between that of the labels and that of uniform targets.
    uniform, *_ = evaluate(0.0, ("regularize.label_smoothing", 1.0))
    assert smooth == pytest.approx(0.7 * plain[0.0] + 0.3 * uniform, rel=1e-5)
    mixed, *_ = evaluate(0.0, ("regularize.mixup", 1.0))
    assert mixed != pytest.approx(plain[0.0], rel=1e-3)


def test_stochastic_norm_everywhere_is_evaluation():
    value, _, variables, batch, task = evaluate(0.0, ("regularize.stochastic_norm", 1.0))
    sums = jax.jit(task.metrics)(variables, batch)
    assert value == pytest.approx(float(sums["loss"][0] / sums["loss"][1]), rel=1e-5)


@pytest.mark.parametrize("name", ["rotation", "simclr", "simsiam"])
def test_a_pretext_beside_the_labels_adds_its_loss_and_trains_the_trunk(plain, name):
    value, sums, variables, batch, task = evaluate(0.0, ("pretext.name", name), ("pretext.weight", 0.5))
    assert value == pytest.approx(plain[0.0] + 0.5 * float(sums[name][0]), rel=1e-4)
    assert 0 <= float(sums[f"{name}_score"][0]) <= 1
    loss, train_batch, _ = task.objective("pretext")
    grads = jax.jit(jax.grad(loss, has_aux=True))(variables, train_batch(0), jax.random.key(1))[0]
    norms = {part: float(optax.tree.norm(leaves)) for part, leaves in grads["params"].items()}
    assert norms["stem"] > 0 and norms["extra"] > 0 and norms["head"] == 0
    assert all(np.isfinite(value) for value in norms.values())


def test_a_pretext_sees_pictures_that_the_labels_do_not_reach():
    task = small.task(("pretext.name", "rotation"), ("pretext.weight", 0.5), ("data.per_class", 2))
    assert task.sizes["train"] == 20 and task.sizes["unlabelled"] == 1138
    seen = {image.tobytes() for step in range(20) for image in task.pretext.train_batch(step)["inputs"]}
    assert len(seen) > 150


def test_averaging_two_views_is_the_mean_of_their_probabilities():
    task, one = small.task(("test_views", 2)), small.task()
    variables = one.init(stream_key(0, "init"))
    batch = next(one.eval_batches("test"))
    mirrored = {**batch, "inputs": batch["inputs"][:, :, ::-1]}
    logits = []
    for b in (batch, mirrored):
        features = one.features(variables, b)
        head = variables["params"]["head"]
        logits.append(features @ head["kernel"] + head["bias"][None])
    probs = sum(jax.nn.softmax(x) for x in logits) / 2
    sums = jax.jit(task.metrics)(variables, batch)
    expected = -jnp.log(probs[jnp.arange(len(probs)), batch["label"]]) * batch["mask"]
    np.testing.assert_allclose(sums["loss"][0], expected.sum(), rtol=1e-4)


def test_co_tuning_without_a_head_in_the_file_says_what_to_do():
    with pytest.raises(UserError, match="co_tuning needs weights with their own head"):
        changes = (("regularize.co_tuning", 1.0), ("init.source", "random"), ("init.layout", "tl_jax"))
        small.task(*changes).init(stream_key(0, "init"))


def test_an_endpoint_that_is_no_part_is_named():
    with pytest.raises(UserError, match="'stage9', which is none of stem, stage1"):
        ImageClassification(
            schema.freeze(small.config(("regularize.distill", 1.0), ("regularize.endpoints", ("stage9",))))
        )
