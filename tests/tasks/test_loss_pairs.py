"""Every pair of what changes the loss of labelled pictures, against the same loss and gradient in NumPy."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tasks import small
from tl_jax import training
from tl_jax.config import recipe, validate
from tl_jax.data.augment import AugmentConfig
from tl_jax.tasks import losses
from tl_jax.train import sharding
from tl_jax.train.state import TrainState
from tl_jax.train.step import make_optimizer_init, make_train_step
from tl_jax.transfer import mixup
from tl_jax.transfer.freeze import RECIPES
from tl_jax.transfer.optimizer import OptimSpec
from tl_jax.transfer.regularizers import RegularizeConfig
from tl_jax.utils.errors import UserError

N, CLASSES, WIDTH, SOURCES = 8, 3, 4, 5
WEIGHTS = (1.0, 2.0, 20.0)
STRENGTHS = {
    "mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "weights": WEIGHTS, "co_tuning": 0.7,
    "distill": 0.3, "l2_sp": 0.2,
}  # fmt: skip
TOGETHER = [{a, b} for a, b in itertools.combinations((*STRENGTHS, "parts"), 2)]
REFUSED = [{"mixup", "cutmix"}, {"mixup", "co_tuning"}, {"cutmix", "co_tuning"}]
PAIRS = [set(), *({name} for name in (*STRENGTHS, "parts")), *(pair for pair in TOGETHER if pair not in REFUSED)]
PAIRS += [set(STRENGTHS) - {"cutmix", "co_tuning"} | {"parts"}]


class Linear(nn.Module):
    """Two dense layers in a row, whose gradients are written down in a few lines."""

    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, x, train=False):
        features = nn.Dense(WIDTH, use_bias=False, name="trunk")(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes, name="head")(features), {"features": features}


def problem():
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(N, 2, 2, 3)).astype(np.float32), np.array([0, 1, 2, 0, 0, 1, 0, 0])
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    params = {
        "trunk": {"kernel": draw(12, WIDTH)},
        "head": {"kernel": draw(WIDTH, CLASSES), "bias": draw(CLASSES)},
        "extra": {"source_head": {"kernel": draw(WIDTH, SOURCES), "bias": draw(SOURCES)}},
    }
    start = {"trunk": {"kernel": draw(12, WIDTH)}, "head": {"kernel": draw(WIDTH, CLASSES), "bias": draw(CLASSES)}}
    relation = rng.dirichlet(np.ones(SOURCES), CLASSES).astype(np.float32)
    return images, labels, params, {"params": start, "batch_stats": {}, "relation": relation}


def step(names):
    """Return the loss and, as what a step of gradient descent at rate 1 takes away, the gradient."""
    images, labels, params, source = problem()
    how = RegularizeConfig.from_dict(
        {"endpoints": ("features",), **{name: STRENGTHS[name] for name in names - {"parts"}}}
    )
    loss = losses.make_loss(losses.Network(Linear(), losses.Maps()), AugmentConfig(), how, None)
    optim = OptimSpec("sgd", momentum=0.0, accumulate=2 if "parts" in names else 1)
    state = TrainState(
        jnp.zeros((), jnp.int32), params, {}, make_optimizer_init(optim, RECIPES["all"])(params), {"source": source}
    )
    before = jax.device_get(params)
    batch = {"inputs": images, "label": labels, "mask": np.ones(N, np.float32)}
    take = make_train_step(loss, optim, RECIPES["all"], "auto")
    given = sharding.shard_batch(batch), sharding.replicate(jax.random.key(7)), sharding.replicate(np.float32(1.0))
    new, row = take(sharding.replicate(state), *given)
    sums = jax.device_get(row["sums"])
    value = sum(total / count for name, (total, count) in sums.items() if name in ("loss", "penalty"))
    return value, jax.tree.map(lambda a, b: a - b, before, jax.device_get(new.params))


def expected(names):
    """Return the same from NumPy: the mean over parts, each with its own draw of what is mixed."""
    images, labels, params, source = problem()
    key, parts = jax.random.fold_in(jax.random.key(7), 0), 2 if "parts" in names else 1
    found = []
    for i in range(parts):
        own = jax.random.fold_in(key, i) if parts > 1 else key
        found.append(by_hand(names, images[i::parts], labels[i::parts], params, source, own))
    return np.mean([value for value, _ in found]), jax.tree.map(lambda *g: np.mean(g, 0), *(g for _, g in found))


def by_hand(names, images, labels, params, source, key):
    images, targets = mixed(names, np.asarray(images, np.float64), labels, key)
    n, flat = len(images), images.reshape(len(images), -1)
    trunk, head, bias = params["trunk"]["kernel"], params["head"]["kernel"], params["head"]["bias"]
    features = flat @ trunk
    value, error = entropy(features @ head + bias, targets)
    grads = {"trunk": 0, "head": {"kernel": features.T @ error, "bias": error.sum(0)}}
    below, start = error @ head.T, source["params"]
    other = {"kernel": np.zeros((WIDTH, SOURCES)), "bias": np.zeros(SOURCES)}
    if "co_tuning" in names:
        own = params["extra"]["source_head"]
        more, error = entropy(features @ own["kernel"] + own["bias"], source["relation"][labels])
        value += STRENGTHS["co_tuning"] * more
        below = below + STRENGTHS["co_tuning"] * error @ own["kernel"].T
        other = {"kernel": STRENGTHS["co_tuning"] * features.T @ error, "bias": STRENGTHS["co_tuning"] * error.sum(0)}
    if "distill" in names:
        moved = features - flat @ start["trunk"]["kernel"]
        value += STRENGTHS["distill"] * (moved**2).sum(1).mean()
        below = below + STRENGTHS["distill"] * 2 * moved / n
    trunk_grad = flat.T @ below
    if "l2_sp" in names:  # the head is new, and l2_sp_head is off
        gone = trunk - start["trunk"]["kernel"]
        value += STRENGTHS["l2_sp"] * 0.5 * (gone**2).sum()
        trunk_grad = trunk_grad + STRENGTHS["l2_sp"] * gone
    return value, {**grads, "trunk": {"kernel": trunk_grad}, "extra": {"source_head": other}}


def mixed(names, images, labels, key):
    """Return pictures, and for each the shares of its one or two labels, each weighted and smoothed by itself."""
    own = np.eye(CLASSES)[labels]
    if "label_smoothing" in names:
        own = (1 - STRENGTHS["label_smoothing"]) * own + STRENGTHS["label_smoothing"] / CLASSES
    if "weights" in names:
        own = own * np.asarray(WEIGHTS)[labels][:, None]
    for name, mix in (("mixup", mixup.mixup), ("cutmix", mixup.cutmix)):
        if name in names:  # who meets whom, and in which shares, is drawn by the library; see test_mixup.py
            drawn = jnp.asarray(images, jnp.float32), jnp.eye(len(images)), jax.random.fold_in(key, losses.MIX_KEY)
            images, shares = (np.asarray(each, np.float64) for each in mix(*drawn, STRENGTHS[name]))
            own = shares @ own
    return images, own


def entropy(logits, targets):
    """Return the mean cross-entropy in nats and its gradient for the logits; rows of targets have any sum."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return -(targets * np.log(p)).sum(1).mean(), (p * targets.sum(1, keepdims=True) - targets) / len(logits)


@pytest.mark.slow
@pytest.mark.parametrize("names", PAIRS, ids=lambda names: "+".join(sorted(names)) or "plain")
def test_a_step_with_any_two_of_them_is_that_of_numpy(names):
    (value, grads), (right, right_grads) = step(names), expected(names)
    assert value == pytest.approx(right, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), grads, right_grads)


@pytest.mark.fast
@pytest.mark.parametrize("names", REFUSED, ids=lambda names: "+".join(sorted(names)))
def test_the_pairs_that_mean_nothing_are_refused(names):
    with pytest.raises(UserError, match="set one of them|both set"):
        validate.validate(
            recipe.override(recipe.get_config(), [(f"regularize.{name}", STRENGTHS[name]) for name in names])
        )


@pytest.mark.slow
def test_a_heavy_class_does_not_draw_all_others_to_itself_with_label_smoothing(tmp_path):
    """With smoothing a weight of 20 acted on each example's share of the heavy class: everything became that class."""
    found = {}
    for smoothing in (0.0, 0.1):
        config = small.config(
            ("data.per_class", 10), ("epochs", 10.0), ("data.validation", 0.0), ("freeze.recipe", "head"),
            ("regularize.class_weights", "20" + ",1" * 9), ("regularize.label_smoothing", smoothing),
        )  # fmt: skip
        found[smoothing] = training.train(config, tmp_path / str(smoothing))["metrics"]["accuracy"]
    assert found[0.1] > 0.18 and found[0.1] > found[0.0] - 0.1  # a tenth is what one class alone gives
