"""A folder belongs to one configuration, one set of weights and one process; a file in it that was edited is named."""

import json
import shutil

import numpy as np
import pytest

from tests.tasks import small
from tl_jax import training
from tl_jax.export.bundle import export
from tl_jax.learner import Learner
from tl_jax.train import freeze_audit, loop, workdir
from tl_jax.train.checkpoint import Checksums
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import CHECKSUM_KEY

pytestmark = pytest.mark.fast
CONFIG = {"optim": {"lr": 0.1}, "data": {"dir": "here"}, "seeds": (1, 2)}


def start(folder):
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')


def test_the_same_configuration_may_go_on_and_another_is_named(tmp_path):
    workdir.claim_folder(tmp_path, CONFIG)
    start(tmp_path)
    workdir.claim_folder(tmp_path, CONFIG | {"data": {"dir": "moved"}})
    with pytest.raises(UserError, match=r"another config.optim.lr \(0.1 there, 0.2 here\); pass another workdir"):
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
        with pytest.raises(UserError, match="summary.json: cannot be written, the folder is gone; was it moved"):
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
    with pytest.raises(UserError, match=r"from the range \(0.0, 4095.0\), but the data now have none; restore"):
        workdir.claim_facts(tmp_path, {})


@pytest.fixture(scope="module")
def config():
    return small.config(("epochs", 1.0), ("data.per_class", 2))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("run")
    training.train(config, folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A run to be spoilt."""
    return shutil.copytree(finished, tmp_path / "run")


def change(path, **fields):
    """Change fields of a file as somebody does who deletes its hash, too."""
    content = {**json.loads(path.read_text()), **fields}
    content.pop(CHECKSUM_KEY, None)
    path.write_text(json.dumps(content))


FACTS = {
    "classes": [5, [5], "ab", {"0": "a"}, None, ["\udc80"]],
    "examples": [[], {"train": 5}, {"train": -1, "validation": 1, "test": 1}, {"train": "5"}, None],
    "data_sha256": [5, {"train": 5}, ["a"]],
    "input_shape": ["8", [8], [8, 8, 8], [0, 8], [10**9, 8], [8.5, 8], {}],
    "value_range": ["ab", [1], [0, "1"], {"low": 0}],
    "input": [5, {"shape": [10**9, 1]}, []],
    "reading": [5, {}, {"pairs": 5}, {"pairs": True, "splitter": {"evil": []}}, {"pairs": True, "splitter": 5}],
    "data": [5, None, ["digits"]],
    "tested": [5, None],
    "weights_sha256": [5, ["a"]],
}
SUMMARY = {
    "tested_step": ["2", -1, [2], 1.5, True],
    "calibration": [5, {"temperature": "1"}, {"temperature": 0}, {"temperature": float("nan")}],
    "threshold": ["0.5", [0.5], float("inf")],
    "wise_ft": [0.5, {}, {"share": 2}, {"share": None}, {"share": "1"}],
    "metrics": [5, {"accuracy": "0.5"}, []],
    "facts": [5, {"weights": 5}, {"examples": 5}],
    "score": [5],
}


@pytest.mark.parametrize(
    "file,field,value",
    [("facts.json", name, value) for name, values in FACTS.items() for value in values]
    + [("summary.json", name, value) for name, values in SUMMARY.items() for value in values],
)
def test_each_field_has_a_type_and_a_range(copy, file, field, value):
    change(copy / file, **{field: value})
    with pytest.raises(UserError, match=rf"{file}.*{field}.*; restore the file, or train again with a new workdir"):
        workdir.read_facts(copy), workdir.read_summary(copy)


def test_every_call_checks_them(copy, config):
    change(copy / "facts.json", classes=5)
    calls = [
        lambda: Learner(config, copy).show_predictions([str(copy)]), lambda: training.test(config, copy),
        lambda: export(config, copy), lambda: workdir.stored_facts(copy),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(UserError, match="facts.json: classes is 5, not a list"):
            call()


def test_those_of_a_run_are_read(finished):
    facts, summary = workdir.read_facts(finished), workdir.read_summary(finished)
    assert len(facts["classes"]) == 10 and facts["input_shape"] == [8, 8]
    assert summary["tested_step"] == 2 and set(summary["metrics"]) == {"accuracy", "loss"}


@pytest.mark.parametrize("content", ['{"2": 5}', '{"2": ["a"]}', '{"2": {"a": 5}}', "[]", "{"])
def test_hashes_of_checkpoints(copy, content):
    (copy / "checkpoints.json").write_text(content)
    with pytest.raises(UserError, match=r"checkpoints\.json"):
        Checksums(copy / "checkpoints").fault(2)


@pytest.mark.parametrize("content", ["{", "[]", "5", '{"accuracy": "a"}', "{}", '{"accuracy": null}', "\xff"])
def test_metrics_of_a_checkpoint(copy, config, content):
    (copy / "checkpoints.json").unlink()
    (copy / "checkpoints" / "2" / "metrics" / "metrics").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"checkpoints/2: .*metrics/metrics (is damaged|has no accuracy).*; restore"):
        Learner(config, copy).show_predictions([str(copy)])


@pytest.mark.parametrize(
    "content",
    ["5.0", "[]", '{"item_handlers": 5}', '{"commit_timestamp_nsecs": 1e308}'],  # later than any clock
)
def test_what_orbax_writes_beside_a_checkpoint(copy, config, content):
    (copy / "checkpoints.json").unlink()
    (copy / "checkpoints" / "2" / "_CHECKPOINT_METADATA").write_text(content)
    with pytest.raises(UserError, match=r"checkpoints: the checkpoints cannot be opened .*; restore the file"):
        Learner(config, copy).show_predictions([str(copy)])


def test_what_orbax_says_nothing_of(copy, config):
    """Of a list whose places are not counted from 0 orbax raises an AssertionError without a word."""
    (copy / "checkpoints.json").unlink()
    path = copy / "checkpoints" / "2" / "opt_state" / "_METADATA"
    content = json.loads(path.read_text())
    keys = [key for entry in content["tree_metadata"].values() for key in entry["key_metadata"]]
    changed = [key.update(key="9") for key in keys if key["key"] == "0"]
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"checkpoints/2: .*opt_state cannot be read \(AssertionError: AssertionError\)"
    ):
        Learner(config, copy).show_predictions([str(copy)])
    assert changed


@pytest.mark.parametrize("file,changes", [("facts.json", {"spec": [5]}), ("summary.json", {"facts": {"spec": [5]}})])
def test_the_page_of_a_run_says_which_file_is_wrong(copy, config, file, changes):
    change(copy / file, **changes)
    if file == "summary.json":
        (copy / "facts.json").unlink()
    assert (
        f"{file}: " in Learner(config, copy).report().read_text()
        and "spec is a list, not an object" in (copy / "report.html").read_text()
    )


@pytest.mark.parametrize("value", ["1e308", "1e999", "NaN", '"a"', "[]", "9" * 400])
def test_the_page_of_a_run_shows_what_has_a_place_on_an_axis(copy, config, value):
    rows = [{"step": step, "split": split, "loss": -1e308} for split in ("train", "validation") for step in (1, 2)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (copy / "metrics.jsonl").write_text(text + text.replace("-1e+308", value))
    assert Learner(config, copy).report().is_file()


def test_the_proof_of_freezing(tmp_path):
    for content in ('{"train": 5}', '{"train": {"sha256": 5}}', "[]"):
        (tmp_path / "freeze.json").write_text(content)
        with pytest.raises(UserError, match=r"freeze\.json"):
            freeze_audit.FreezeAudit(tmp_path)


@pytest.mark.parametrize("row", ["{", "[]", "5", '{"split": "validation", "phase": "train", "step": 1, "loss": "a"}'])
def test_rows_of_metrics(tmp_path, row):
    good = json.dumps({"split": "validation", "phase": "train", "step": 1, "loss": 0.5})
    (tmp_path / "metrics.jsonl").write_text(f"{good}\n{row}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        loop.validation_scores(tmp_path, "train", "loss")


def test_a_checkpoint_with_values_that_are_not_finite_is_refused(copy, config, monkeypatch):
    from tl_jax.train.checkpoint import Checkpoints

    whole = Checkpoints.restore

    def restore(self, *arguments, **how):
        state = whole(self, *arguments, **how)
        state.variables["params"]["head"]["bias"] = np.float32([np.nan] * 10)
        return state

    monkeypatch.setattr(Checkpoints, "restore", restore)
    with pytest.raises(UserError, match="checkpoints/2: params/head/bias has values that are not finite; restore"):
        Learner(config, copy).show_predictions([str(copy)])
