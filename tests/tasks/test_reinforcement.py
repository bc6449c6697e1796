"""Policies through the same calls as pictures: train, resume, freeze, export, transfer, and what is refused."""

import json

import jax
import numpy as np
import pytest

from configs import cartpole_ppo
from experiments.rl_transfer import seeds
from tl_jax import pretrained, restore, training
from tl_jax.config import recipe
from tl_jax.export import stablehlo
from tl_jax.export.bundle import export
from tl_jax.learner import Learner
from tl_jax.pretrained import formats
from tl_jax.restore import make_task
from tl_jax.rl import envs
from tl_jax.rl import policy_transfer as policies
from tl_jax.rl.policy_transfer import DEFAULT_COMPONENTS
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.state import initial_state
from tl_jax.transfer import optimizer
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.slow


def config_of(*changes):
    return recipe.override(cartpole_ppo.get_config("smoke"), (("model.options", {"widths": (8, 8)}), *changes))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The export of a short run."""
    folder = tmp_path_factory.mktemp("source")
    training.train(config_of(), folder)
    return export(config_of(), folder)


def test_jax_alone_runs_the_policy(source):
    observations = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    logits = stablehlo.run_program(source.with_name("model.stablehlo"), observations)
    leaves = policies.load(source.parent).leaves
    x = observations
    for layer in ("layer1", "layer2"):
        x = np.tanh(x @ leaves[f"params/{layer}/actor/kernel"] + leaves[f"params/{layer}/actor/bias"])
    expected = x @ leaves["params/head/policy/kernel"] + leaves["params/head/policy/bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    facts = formats.read_bundle(source.parent)
    assert facts["program"]["inputs"] == {"observations": {"shape": ["n", 4], "dtype": "float32"}}
    assert facts["program"]["output"]["name"] == "logits" and facts["data"] == "CartPole-v1"
    with pytest.raises(UserError, match="holds a policy"):
        pretrained.load(source="tl_jax", path=source)


def test_a_run_says_what_it_did(tmp_path):
    summary = training.train(config_of(), tmp_path)
    assert summary["config_name"] == "cartpole_ppo_smoke" and summary["steps"] == 8
    assert summary["examples_evaluated"] == 4 and summary["metrics"]["episode_return"] > 5
    assert summary["facts"]["spaces"] == {"observation": [4], "actions": 2}
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["split"] == "train"]
    assert {"loss", "policy_loss", "value_loss", "entropy", "divergence", "clipped", "lr"} <= set(trained[-1])
    assert training.test(config_of(), tmp_path)["metrics"] == pytest.approx(summary["metrics"])
    assert Learner(config_of(), tmp_path).play().read_bytes()[:3] == b"GIF"


def test_a_checkpoint_of_the_first_release_is_read(tmp_path):
    """Its environments lay among the statistics of observations."""
    task = make_task(config_of())
    state = initial_state(task, 0)
    old = state.replace(batch_stats={**state.batch_stats, "worlds": state.carry}, carry={}, step=state.step + 3)
    checkpoints = Checkpoints(tmp_path / "checkpoints", task)
    checkpoints.save(old, {"episode_return": 1.0})
    checkpoints.wait()
    found = checkpoints.restore(3, state, opt_state=False)
    checkpoints.close()
    assert set(found.batch_stats) == set(state.batch_stats)
    jax.tree.map(np.testing.assert_array_equal, found.carry, state.carry)
    jax.tree.map(np.testing.assert_array_equal, found.variables, state.variables)


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    from tl_jax.train import checkpoint

    config = config_of(
        ("epochs", 10.0),
        ("phases", ({"name": "head", "epochs": 0.5, "recipe": "head"}, {"name": "all", "epochs": 0.5})),
    )
    whole = training.train(config, tmp_path / "whole")
    save = checkpoint.Checkpoints.save

    def stop(self, state, metrics):
        save(self, state, metrics)
        if int(state.step) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoints, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        training.train(config, tmp_path / "parts")
    monkeypatch.undo()
    parts = training.train(config, tmp_path / "parts")
    assert parts["resumed_from"] == 4
    assert parts["parameters_sha256"] == whole["parameters_sha256"] and parts["metrics"] == whole["metrics"]


def test_a_frozen_trunk_is_proved(tmp_path, source):
    changes = ("init.source", "tl_jax"), ("init.path", str(source)), ("freeze.recipe", "head"), ("freeze.verify", True)
    summary = training.train(config_of(*changes), tmp_path)
    assert summary["freeze"]["changed"] == 0 and summary["freeze"]["leaves"] == 8
    assert summary["parameters"] == {"trainable": 8 * 2 + 2 + 8 + 1, "frozen": 2 * (4 * 8 + 8 + 8 * 8 + 8)}


def test_a_policy_starts_another_in_a_changed_world(tmp_path, source):
    changes = ("init.source", "tl_jax"), ("init.path", str(source)), ("rl.env_params", (("masspole", 1.0),))
    config = config_of(*changes, ("rl.kickstart", 1.0), ("rl.kickstart_share", 0.25))
    summary = training.train(config, tmp_path)
    assert summary["facts"]["physics"]["masspole"] == 1.0 and summary["facts"]["weights"] == str(source)
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["kickstart"]) for row in rows if row["split"] == "train")


def test_a_run_goes_on_with_the_optimizer_of_its_source(tmp_path, source):
    digests, counts = set(), []
    for take in (DEFAULT_COMPONENTS, (*DEFAULT_COMPONENTS, "optimizer")):
        config = config_of(("init.source", "tl_jax"), ("init.path", str(source)), ("init.load_parts", take))
        folder = tmp_path / str(len(take))
        digests.add(training.train(config, folder)["parameters_sha256"])
        task, _, state = restore.restore(config, folder)
        counts.append(int(optimizer.adam_moments(task.optimizer_state(folder, state))["count"]))
    steps = 8 * 2 * 4  # updates, passes, minibatches
    assert counts == [steps, 2 * steps] and len(digests) == 2


def test_arms_are_compared_in_returns_not_in_percent(tmp_path, capsys):
    arms = (("fast", (("optim.lr", 1e-2),)), ("slow", (("optim.lr", 1e-5),)))
    summary = training.train(config_of(("arms", arms), ("seeds", (0, 1))), tmp_path)
    shown = capsys.readouterr().out
    mean = summary["arms"]["fast"]["mean"]
    assert f"{mean:.1f} ±" in shown and " %   (" not in shown and (tmp_path / "comparison.png").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("rl.env", "CartPole-v9")], "unknown environment 'CartPole-v9'"),
        ([("rl.env_params", (("mass", 1.0),))], "has no parameter 'mass'; "),
        ([("batch_size", 500)], "batch_size=500 is not a multiple of config.rl.num_envs=8; use 496"),
        ([("rl.minibatches", 3)], "not a multiple of config.rl.minibatches=3"),
        ([("rl.episodes", 3)], "rl.episodes=3 is not divisible by the 2 devices"),
        ([("model.options", {"width": 3})], "config.model.options: .*widths, channels and activation"),
        ([("model.options", {"activation": "gelo"})], "unknown activation 'gelo'"),
        ([("init.source", "tl_jax")], "init.path must be the export of a policy"),
        ([("init.allow_shape_mismatch", True)], "need config.init.source=tl_jax"),
        ([("rl.kickstart", 1.0)], "rl.kickstart needs a source"),
        ([("rl.kickstart_share", 0.1)], "has an effect with config.rl.kickstart only"),
        ([("data.train_examples", 5)], "data.train_examples has no effect with config.task=policy"),
        ([("regularize.mixup", 0.5)], "regularize.mixup has no effect with config.task=policy"),
        ([("model.name", "resnet50")], "model.name=resnet50 is no network for task=policy; choose one of policy"),
        ([("init.source", "keras")], "init.source=keras has no weights for task=policy"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        training.train(config_of(*changes), tmp_path)


def test_rl_fields_are_refused_elsewhere():
    from configs import digits_resnet

    with pytest.raises(UserError, match="rl.total_timesteps has no effect with config.task=image; .* task=policy"):
        recipe.override(digits_resnet.get_config(), (("rl.total_timesteps", 5),))
    with pytest.raises(UserError, match="config.task='policy': start from .*get_config.'policy'"):
        recipe.override(digits_resnet.get_config(), (("task", "policy"),))


def test_a_policy_has_no_learning_rate_curve(tmp_path):
    with pytest.raises(UserError, match="task=policy lacks"):
        Learner(config_of(), tmp_path).find_lr()


def test_another_network_is_refused(tmp_path, source):
    changes = ("init.source", "tl_jax"), ("init.path", str(source)), ("model.options", {"widths": (16, 16)})
    with pytest.raises(UserError, match=r"differs at params/.*\{'widths': \(8, 8\)"):
        training.train(config_of(*changes), tmp_path)


def test_seeds_are_trained_at_once_and_tested_on_the_way():
    config, world = config_of(), envs.make_env("CartPole-v1")
    start = seeds.init_variables(config, world, 2)
    often, curves = seeds.train_seeds(config, world, start, seeds.EvalSchedule(3, 2))  # of 8 updates: 3, 2 and 3
    once, ends = seeds.train_seeds(config, world, start, seeds.EvalSchedule(1, 2))
    assert curves.shape == (2, 4) and ends.shape == (2, 2) and (curves >= 8).all()
    for mine, theirs in zip(seeds.unstack_trees(often), seeds.unstack_trees(once), strict=True):
        kernel, other = (each["params"]["layer1"]["actor"]["kernel"] for each in (mine, theirs))
        np.testing.assert_allclose(kernel, other, atol=1e-4)
    first, second = (each["params"]["layer1"]["actor"]["kernel"] for each in seeds.unstack_trees(often))
    assert not np.allclose(first, second, atol=1e-2)
