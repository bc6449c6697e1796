"""Where training starts: probes against scikit-learn, attention against a closed form, adapters and extras in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tasks import small
from tl_jax.config import schema
from tl_jax.tasks import head_init, image_network, image_task
from tl_jax.tasks.image_classification import ImageClassification
from tl_jax.tasks.losses import Network
from tl_jax.tasks.probe_strength import STRENGTHS
from tl_jax.train import evaluate
from tl_jax.train.state import initial_states, stream_key
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
KEY = stream_key(0, "init")


def features(task, variables, part):
    """Return features and labels of a part."""
    labels = np.concatenate([batch["label"][batch["mask"] > 0] for batch in task.eval_batches(part)])
    return evaluate.extract(task.features, variables, task.eval_batches(part)), labels


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_a_fitted_head_is_scikit_learns(kind):
    from sklearn.linear_model import LogisticRegression, RidgeClassifier

    task = small.task(("init.head", kind), ("init.strength", 0.1))
    variables = task.init(KEY)
    x, y = features(task, variables, "train")
    peer = LogisticRegression(C=0.1, max_iter=2000) if kind == "logistic" else RidgeClassifier(alpha=10.0)
    peer.fit(x, y)
    head = variables["params"]["head"]
    np.testing.assert_allclose(head["kernel"].T, peer.coef_, atol=5e-3)
    test_x, test_y = features(task, variables, "test")
    values, _, _, _ = evaluate.evaluate(task, jax.device_put(variables, _everywhere()), "test")
    assert values["accuracy"] == pytest.approx(peer.score(test_x, test_y), abs=0.011)


def test_training_starts_from_a_weaker_head_than_the_probe(capsys):
    from sklearn.linear_model import LogisticRegression

    task = small.task(("init.head", "logistic"), ("init.strength", 1.0), ("init.start_loss", 0.9))
    initial, first = initial_states(task, 0)
    strength = float(capsys.readouterr().out.split("from a head with C = ")[1].split()[0])
    x, y = features(task, initial.variables, "train")
    for state, c in ((initial, 1.0), (first, strength)):
        peer = LogisticRegression(C=c, max_iter=2000).fit(x, y)
        np.testing.assert_allclose(state.params["head"]["kernel"].T, peer.coef_, atol=5e-3)
    assert strength < 1.0
    np.testing.assert_array_equal(
        *(
            np.concatenate([leaf.ravel() for leaf in jax.tree.leaves({**s.params, "head": {}})])
            for s in (initial, first)
        )
    )


def test_strength_is_chosen_on_validation(capsys):
    task = small.task(("init.head", "logistic"), ("data.validation", 0.2))
    variables = task.init(KEY)
    said = capsys.readouterr().out
    strength = float(said.split("C = ")[1].split()[0])
    assert strength in STRENGTHS
    given = small.task(("init.head", "logistic"), ("data.validation", 0.2), ("init.strength", strength)).init(KEY)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], given["params"]["head"]["kernel"])


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_strength_is_chosen_by_folds(kind, capsys):
    """scikit-learn finds it no worse than its neighbours, on folds of its own."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    task = small.task(("init.head", kind), ("init.folds", 3), ("data.validation", 0.0), ("data.per_class", 20))
    variables = task.init(KEY)
    said = capsys.readouterr().out
    strength = float(said.split("C = ")[1].split(",")[0])
    given = small.task(
        ("init.head", kind), ("data.validation", 0.0), ("data.per_class", 20), ("init.strength", strength)
    ).init(KEY)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], given["params"]["head"]["kernel"])
    if kind == "logistic":
        x, y = features(task, variables, "train")
        losses = [
            -cross_val_score(LogisticRegression(C=c, max_iter=2000), x, y, cv=3, scoring="neg_log_loss").mean()
            for c in (strength / 10, strength, strength * 10)
        ]
        assert losses[1] <= min(losses) + 0.05


def test_a_class_without_examples_is_an_error_that_says_so():
    task = small.task(("init.head", "ridge"), ("init.strength", 1.0), ("data.per_class", 0), ("data.train_examples", 4))
    with pytest.raises(UserError, match="each class needs a training example"):
        task.init(KEY)


def test_gradients_of_the_last_map_have_their_closed_form():
    config = schema.freeze(small.config(("regularize.delta", 1.0)))
    net, task = image_network.load_network(config), ImageClassification(config)
    net = image_task.with_head(net, 10, "new")
    network = Network(net.model, image_task.Inputs(**task.facts["input"]))
    variables = task.init(KEY)
    batch = next(task.eval_batches("test"))
    maps, grads = head_init._make_map_gradients(network, ("stage3",))(variables, batch)
    head = variables["params"]["head"]
    probs = jax.nn.softmax(maps["stage3"].mean((1, 2)) @ head["kernel"] + head["bias"][None])
    moved = (probs - jax.nn.one_hot(batch["label"], 10)) @ head["kernel"].T
    height, width = maps["stage3"].shape[1:3]
    expected = jnp.broadcast_to(moved[:, None, None] / (height * width), maps["stage3"].shape)
    np.testing.assert_allclose(grads["stage3"], expected, atol=1e-6)


def test_attention_has_a_weight_for_each_channel_and_mean_one():
    weights = small.task(("regularize.delta", 1.0), ("regularize.endpoints", ("stage2", "stage3"))).init(KEY)
    attention = weights["source"]["attention"]
    assert {name: leaf.shape for name, leaf in attention.items()} == {"stage2": (64,), "stage3": (128,)}
    for leaf in attention.values():
        np.testing.assert_allclose(leaf.mean(), 1.0, rtol=1e-5)
        assert leaf.min() > 0 and leaf.std() > 0.05


def test_what_is_loaded_stays_as_it_was_beside_what_is_new():
    plain = small.task().init(KEY)
    changes = (
        ("adapt.kind", "lora"),
        ("freeze.recipe", "adapters"),
        ("pretext.name", "simsiam"),
        ("pretext.weight", 1.0),
    )
    rich = small.task(*changes).init(KEY)
    before, after = tree.flatten(plain["params"]), tree.flatten(rich["params"])
    assert all(np.array_equal(leaf, after[path]) for path, leaf in before.items())
    new = set(after) - set(before)
    assert {path for path in new if path.startswith("extra/")} == {
        f"extra/pretext/{head}/{leaf}"
        for head in ("projector", "predictor")
        for leaf in ("dense1/kernel", "scale", "bias", "dense2/kernel", "dense2/bias")
    }
    assert all(path.startswith("extra/") or path.endswith(("lora_a", "lora_b")) for path in new)
    assert "source" not in rich


def test_a_pretext_sits_on_features_where_the_head_sits_on_hidden_layers():
    changes = (
        ("model.name", "vgg16_tiny"), ("model.options", {"fc": True}), ("init.source", "random"), ("input.size", 32),
        ("pretext.name", "rotation"), ("pretext.weight", 0.5),
    )  # fmt: skip
    task = small.task(*changes)
    variables = jax.eval_shape(task.init, KEY)
    assert variables["params"]["head"]["kernel"].shape == (32, 10)
    assert variables["params"]["extra"]["pretext"]["kernel"].shape == (16, 4)
    jax.eval_shape(task.loss, variables, task.train_batch(0), KEY)


def test_norms_are_asked_for_only_where_there_are_some():
    changes = (("model.name", "vgg16_tiny"), ("init.source", "random"), ("input.size", 32))
    with pytest.raises(UserError, match="vgg16_tiny has no BatchNorm"):
        small.task(*changes, ("regularize.stochastic_norm", 0.5))
    with pytest.raises(UserError, match="vgg16_tiny has no norms: .*norm_only"):
        small.task(*changes, ("freeze.recipe", "norm_only"))
    layer_norms = (("model.name", "vit_nano8"), ("init.layout", "timm"), *changes[1:], ("freeze.recipe", "norm_only"))
    assert small.task(*layer_norms)


def test_bottleneck_adapters_are_drawn_by_the_seed():
    changes = (("adapt.kind", "bottleneck"), ("adapt.rank", 4), ("freeze.recipe", "adapters"))
    kernels = [
        np.asarray(small.task(*changes, ("seed", seed)).init(KEY)["params"]["adapter_stem"]["down"]["kernel"])
        for seed in (0, 1)
    ]
    assert not np.allclose(*kernels)


def test_the_source_is_kept_only_for_penalties_that_need_it():
    kept = small.task(("regularize.l2_sp", 1.0)).init(KEY)["source"]
    assert set(kept) == {"params", "batch_stats"}
    assert "source" not in small.task(("regularize.bss", 1.0)).init(KEY)


def _everywhere():
    from tl_jax.train import sharding

    return sharding.replicated()
