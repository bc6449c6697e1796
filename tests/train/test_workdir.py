"""A folder belongs to one configuration, one set of weights and one process."""

import json

import pytest

from tl_jax.train import workdir
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
CONFIG = {"optim": {"lr": 0.1}, "data": {"dir": "here"}, "seeds": (1, 2)}


def start(folder):
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')


def test_the_same_configuration_may_go_on_and_another_is_named(tmp_path):
    workdir.claim_folder(tmp_path, CONFIG)
    start(tmp_path)
    workdir.claim_folder(tmp_path, CONFIG | {"data": {"dir": "moved"}})
    with pytest.raises(UserError, match=r"another config.optim.lr \(0.1 there, 0.2 here\); pass another --workdir"):
        workdir.claim_folder(tmp_path, CONFIG | {"optim": {"lr": 0.2}})
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 0.1


def test_a_folder_in_which_nothing_was_run_is_free(tmp_path):
    workdir.claim_folder(tmp_path, CONFIG)
    workdir.claim_folder(tmp_path, CONFIG | {"optim": {"lr": 0.2}})
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 0.2


def test_other_weights_or_data_are_refused(tmp_path):
    workdir.claim_facts(tmp_path, {"weights_sha256": "a", "data": "cifar10:3.0.2"})
    start(tmp_path)
    workdir.claim_facts(tmp_path, {"weights_sha256": "a", "data": "cifar10:3.0.2"})
    with pytest.raises(UserError, match="other weights .a then, b now"):
        workdir.claim_facts(tmp_path, {"weights_sha256": "b", "data": "cifar10:3.0.2"})
    with pytest.raises(UserError, match="other data"):
        workdir.claim_facts(tmp_path, {"weights_sha256": "a", "data": "gratings"})


def test_a_finished_run_of_weights_that_have_changed_is_refused(tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"one")
    import hashlib

    summary = {"facts": {"weights": str(file), "weights_sha256": hashlib.sha256(b"one").hexdigest()}}
    workdir.check_unchanged(summary, tmp_path)
    file.write_bytes(b"two")
    with pytest.raises(UserError, match="has changed since"):
        workdir.check_unchanged(summary, tmp_path)


def test_one_process_at_a_time(tmp_path):
    with workdir.exclusive(tmp_path / "w"):
        with pytest.raises(UserError, match="another process is writing to"):
            with workdir.exclusive(tmp_path / "w"):
                pass
    with workdir.exclusive(tmp_path / "w"):
        pass


def test_json_has_null_where_numbers_are_not_finite(tmp_path):
    workdir.write_json(tmp_path / "x.json", {"a": [float("nan"), 1.0], "b": float("inf")})
    assert workdir.read_json(tmp_path / "x.json") == {"a": [None, 1.0], "b": None}


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    folder = tmp_path / "run"
    with workdir.exclusive(folder):
        folder.rename(tmp_path / "moved")
        with pytest.raises(UserError, match="cannot write .*summary.json: the folder is gone; was it moved"):
            workdir.write_json(folder / "summary.json", {})
        assert not folder.exists()


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is damaged"):
        workdir.claim_folder(tmp_path, CONFIG)


def test_a_run_is_not_resumed_on_images_scaled_from_another_range(tmp_path):
    workdir.claim_facts(tmp_path, {"value_range": [0.0, 4095.0]})
    start(tmp_path)
    workdir.claim_facts(tmp_path, {"value_range": [0.0, 4095.0]})
    with pytest.raises(UserError, match=r"from the range \(0.0, 4095.0\), and the data now have none; restore"):
        workdir.claim_facts(tmp_path, {})
