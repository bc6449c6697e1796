"""Fields under the names of 0.1: in stored runs, flags and recipes, with one warning; unknown names are refused."""

import json
import pickle
import warnings

import pytest

from tests.config.test_recipes import parsed
from tl_jax.config import recipe, renames, stored, validate
from tl_jax.config.renames import RenamedField
from tl_jax.config.schema import PHASE_FIELDS, all_fields
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast

OWN = """
from tl_jax.config import recipe


def get_config(variant=""):
    config = recipe.load("cartpole_ppo").get_config("smoke")
    config.rl.passes = 3
    config.test_on = "best"
    config.phases = ({"name": "all", "epochs": 1.0, "rates": (("train", 0.5),)},)
    return config
"""


def test_the_table_leads_from_names_that_are_gone_to_names_that_are_there():
    assert set(renames.RENAMED_FIELDS.values()) <= set(all_fields()) and not set(renames.RENAMED_FIELDS) & set(
        all_fields()
    )
    assert set(renames.RENAMED_PHASE_FIELDS.values()) <= set(PHASE_FIELDS) and not set(
        renames.RENAMED_PHASE_FIELDS
    ) & set(PHASE_FIELDS)
    for old, new in renames.RENAMED_FIELDS.items():  # what RenamingDict relies on
        assert old.rpartition(".")[0] == new.rpartition(".")[0]


def test_flags_and_recipes_may_use_old_names(monkeypatch, tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    flags = ("--config.rl.worlds=4", "--config.save_rest=2.5")
    config = parsed(monkeypatch, f"--config={tmp_path}/own.py", *flags)
    assert (config.rl.ppo_epochs, config.rl.num_envs, config.min_checkpoint_interval) == (3, 4, 2.5)
    assert config.phases[0]["lr_multipliers"] == (("train", 0.5),)
    assert config.eval_checkpoint == "best" and not set(renames.RENAMED_FIELDS) & set(config.rl.keys())
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "WARNING" in line)
    for old, new in (("rl.passes", "rl.ppo_epochs"), ("rl.worlds", "rl.num_envs"), ("test_on", "eval_checkpoint"),
                     ("phases.rates", "phases.lr_multipliers")):  # fmt: skip
        assert f"{old} is now {new}" in line


def test_a_field_of_a_phase_may_have_its_old_name(monkeypatch, capsys):
    config = parsed(monkeypatch, "--config=cifar_inception", "--config.phases[1].rates=(('train', 0.5),)")
    assert config.phases[1]["lr_multipliers"] == (("train", 0.5),)
    assert "phases[1].rates is now phases[1].lr_multipliers" in capsys.readouterr().err


def test_a_stored_run_of_old_names_is_read_with_a_warning(tmp_path):
    content = recipe.load("cartpole_ppo").get_config().to_dict()
    content["rl"]["worlds"] = content["rl"].pop("num_envs") * 2
    content["test_on"] = "best"
    del content["eval_checkpoint"]
    content["phases"] = [{"name": "a", "epochs": 1.0, "rates": [["train", 0.5]]}]
    content["arms"] = [["slow", [["optim.rates", []]]], ["plain", []]]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.warns(RenamedField) as caught:
        config = stored.get_config(str(tmp_path))
    (warning,) = caught
    again = pickle.loads(pickle.dumps(warning.message))
    assert str(again) == str(warning.message) and "rl.worlds is now rl.num_envs" in str(again)
    assert set(warning.message.names) == {"rl.worlds", "test_on", "phases.rates", "optim.rates"}
    assert config.rl.num_envs == 32 and config.eval_checkpoint == "best"
    assert config.phases[0]["lr_multipliers"] == (("train", 0.5),)
    assert config.arms[0] == ("slow", (("optim.lr_multipliers", ()),))


@pytest.mark.parametrize("group,key", [("rl", "wrlds"), ("optim", "rate"), ("", "sead")])
def test_a_stored_run_with_an_unknown_field_is_refused(tmp_path, group, key):
    content = recipe.load("cartpole_ppo").get_config().to_dict()
    (content[group] if group else content)[key] = 1
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"config.json: unknown field {group}{'.' if group else ''}{key}"):
        stored.get_config(str(tmp_path))


def test_an_old_name_beside_todays_is_refused(tmp_path):
    content = recipe.load("cartpole_ppo").get_config().to_dict()
    content["rl"]["worlds"] = 3
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="unknown field rl.worlds"):
        stored.get_config(str(tmp_path))


def test_an_old_name_beside_todays_in_a_phase_is_refused():
    config = recipe.load("cifar_inception").get_config()
    config.phases = ({"name": "all", "epochs": 1.0, "rates": (), "lr_multipliers": ()},)
    with pytest.raises(UserError, match=r"unknown field config.phases\[0\].rates"):
        validate.validate(config)


def test_names_of_today_warn_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = recipe.override(recipe.load("cartpole_ppo").get_config(), (("rl.num_envs", 4),))
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        assert stored.get_config(str(tmp_path)).rl.num_envs == 4
