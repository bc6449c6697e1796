"""Recipes against what is expected of them: every recipe has an entry or a reason, and what has moved is said."""

import contextlib
import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import verify
from experiments.recipe import load_config
from tl_jax.utils.errors import UserError

ROOT = Path(__file__).parents[2]
KNOWN, WITHOUT = verify.read_entries(), verify.recipes_without_entry()
STEMS = [p.stem for p in (ROOT / "configs").glob("[a-z]*.py")]
FASTEST = "cartpole_ppo:smoke"


def unaccounted(known, without):
    """Return the recipes, as they are and at smoke scale, that have neither entry nor reason."""
    return [name for stem in STEMS for name in (stem, f"{stem}:smoke") if name not in known and name not in without]


@pytest.mark.fast
def test_every_recipe_has_an_entry_or_a_reason():
    assert not unaccounted(KNOWN, WITHOUT), "python -m experiments.verify --record --recipes=NAME, or give the reason"
    assert not set(KNOWN) & set(WITHOUT) and {name.partition(":")[0] for name in (*KNOWN, *WITHOUT)} <= set(STEMS)
    assert all(len(reason.split()) > 3 for reason in WITHOUT.values())
    assert FASTEST in verify.cheap_entries(KNOWN)
    assert unaccounted({name: entry for name, entry in KNOWN.items() if name != FASTEST}, WITHOUT) == [FASTEST]


@pytest.mark.fast
def test_a_recipe_that_gets_an_entry_loses_its_reason(tmp_path):
    path = tmp_path / "expected.json"
    path.write_text(json.dumps({"without": {"a": "not yet", "b": "never"}, "recipes": {}}))
    verify.write_entries(path, {"a": ENTRY})
    assert (verify.read_entries(path), verify.recipes_without_entry(path)) == ({"a": ENTRY}, {"b": "never"})


@pytest.mark.fast
@pytest.mark.parametrize("name", KNOWN)
def test_entries_say_how_they_were_made(name):
    entry = KNOWN[name]
    load_config(name, {**entry["set"], "seeds": tuple(entry["seeds"])})
    assert len(set(entry["seeds"])) == len(entry["seeds"]) >= 3
    assert all(entry[key] for key in ("command", "figures", "examples", "seconds", "hardware", "versions", "commit"))
    for figure, row in entry["figures"].items():
        assert len(row["values"]) == len(entry["seeds"])
        half, why = verify.allowed_drift(figure, row["values"], entry["examples"])
        assert (row["within"], row["why"]) == (pytest.approx(half, rel=1e-3), why) and half > 0
        assert row["mean"] == pytest.approx(sum(row["values"]) / len(row["values"]), rel=1e-4, abs=1e-6)


@pytest.mark.fast
def test_each_recipe_is_shown_while_it_runs(monkeypatch, tmp_path):
    shown = []

    @contextlib.contextmanager
    def waiting(what):
        shown.append(what)
        yield

    monkeypatch.setattr(verify, "show_elapsed", waiting)
    monkeypatch.setattr(verify, "measure_recipe", lambda *_: shown.append("measured") or {"figures": {}, "examples": 1})
    entry = {"seconds": 1.0, "hardware": "", "figures": {}, "set": {}, "seeds": [0, 1, 2], "examples": 1}
    verify.verify_recipes(["a", "b"], {"a": entry, "b": entry}, tmp_path, None)
    assert shown == ["a, 1 of 2", "measured", "b, 2 of 2", "measured"]


ENTRY = {"figures": {"accuracy": {"mean": 0.8, "within": 0.05}}, "seconds": 1.0, "hardware": "", "set": {}, "seeds": []}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        ({"accuracy": [0.7, 0.8, 0.85]}, "as expected"),
        ({"accuracy": [0.85, 0.85, 0.85]}, "as expected"),
        ({"accuracy": [0.7, 0.7, 0.8]}, "drifted"),
        ({"accuracy": [0.9, 0.9, 0.9]}, "drifted"),
        ({"accuracy": [math.nan, 0.8, 0.8]}, "drifted"),
        ({"f1": [0.8, 0.8, 0.8]}, "drifted"),
    ],
)
def test_a_mean_outside_of_its_interval_has_drifted(found, outcome):
    rows = verify.compare_figures("x", ENTRY, {"figures": found}, 1.0)
    assert {row.outcome for row in rows} == {outcome}
    assert verify.exit_status(rows) == (outcome == "drifted")
    assert f"{len(rows)} {outcome}" in verify.format_table(rows)


@pytest.mark.fast
def test_a_figure_that_no_value_could_contradict_is_called_untested():
    entry = {**ENTRY, "figures": {"a accuracy": {"mean": 0.3, "within": 0.8}, "loss": {"mean": 0.3, "within": 0.8}}}
    rows = verify.compare_figures("x", entry, {"figures": {"a accuracy": [0.9], "loss": [0.9]}}, 1.0)
    assert [row.outcome for row in rows] == ["untested", "as expected"] and "1 untested" in verify.format_table(rows)
    assert verify.can_drift("a over b, accuracy", 0.3, 0.8) and not verify.can_drift("a f1", 0.5, 0.5)


@pytest.mark.fast
@pytest.mark.parametrize("name", KNOWN)
def test_every_entry_has_a_figure_that_can_drift(name):
    figures = KNOWN[name]["figures"]
    assert any(verify.can_drift(figure, row["mean"], row["within"]) for figure, row in figures.items())


@pytest.mark.fast
def test_intervals():
    half, why = verify.allowed_drift("accuracy", [0.7, 0.8, 0.9], 1000)
    assert half == pytest.approx(4.3027 * 0.1 * (2 / 3) ** 0.5, rel=1e-4) and why == "95 % prediction interval, 3 seeds"
    assert verify.allowed_drift("accuracy", [0.8, 0.8, 0.8], 100)[0] == pytest.approx(0.02)
    assert verify.allowed_drift("episode_return", [500.0, 500.0, 500.0], 50)[0] == pytest.approx(20.0)
    assert verify.allowed_drift("pretrained loss", [2.0, 2.0, 2.6], 100)[0] == pytest.approx(0.022)
    with pytest.raises(UserError, match="x: accuracy could not be measured in every seed"):
        verify.make_entry("x", ENTRY, {"figures": {"accuracy": [0.5, math.nan]}, "examples": 9}, 1.0)


@pytest.mark.fast
def test_a_recipe_without_its_data_is_skipped_and_one_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    def measure(name, *_):
        if name == "bad":
            raise ValueError("no\ngood")
        return {"figures": {"accuracy": [0.8]}}

    monkeypatch.setattr(verify, "measure_recipe", measure)
    known = {"data": {**ENTRY, "needs": {"data.dir": "absent"}}, "bad": ENTRY, "good": ENTRY}
    rows = verify.verify_recipes(list(known), known, tmp_path, tmp_path)
    assert [(row.outcome, row.reason) for row in rows] == [
        ("skipped", f"no absent in {tmp_path}"), ("failed", "ValueError: no"), ("as expected", "")
    ]  # fmt: skip
    assert verify.exit_status(rows) == 1 and verify.exit_status(rows[::2]) == 0
    nowhere = verify.verify_recipes(["data"], known, tmp_path, None)
    assert nowhere[0].reason == "needs data; pass --data_dir=FOLDER with absent"


def command(*arguments):
    words = [sys.executable, "-m", "experiments.verify", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipes=digits_resnt"], "--recipes=digits_resnt: no entry in"),
        (["--record"], "--record overwrites entries; say which"),
        (["--seeds=0,1,2"], "are what --record writes"),
        (["--record", "--recipes=digits_resnet", "--seeds=0,1"], "an interval wants three or more"),
        (["--record", "--recipes=digits"], "is no recipe in configs/"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, tmp_path):
    done = command(*arguments, f"--workdir={tmp_path}")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_recipe_gives_what_it_gave(tmp_path):
    rows = verify.verify_recipes([FASTEST], KNOWN, tmp_path, None)
    assert {row.outcome for row in rows} == {"as expected"}, verify.format_table(rows)


@pytest.mark.slow
def test_an_altered_expectation_is_a_drift_and_exit_status_1(tmp_path):
    altered = {FASTEST: copy.deepcopy(KNOWN[FASTEST])}
    for row in altered[FASTEST]["figures"].values():
        row["mean"] += 2 * row["within"]
    file = tmp_path / "expected.json"
    file.write_text(json.dumps({"without": {}, "recipes": altered}))
    before = file.read_text()
    done = command(
        f"--recipes=configs/{FASTEST.replace(':', '.py:')}", f"--expected={file}", f"--workdir={tmp_path / 'w'}"
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "drifted" in done.stdout and f"0 as expected, {len(KNOWN[FASTEST]['figures'])} drifted" in done.stdout
    assert file.read_text() == before
    again = command(f"--recipes={FASTEST}", f"--workdir={tmp_path / 'w'}")
    assert again.returncode == 2 and "earlier verification" in again.stderr
