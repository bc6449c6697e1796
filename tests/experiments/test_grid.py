"""Grids of runs: each row once, whatever fails or dies; mistakes before anything runs."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import grid, recipe
from tests.experiments import calls
from tl_jax.utils.errors import UserError

ROOT = Path(__file__).parents[2]
NAMES = [str(at) for at in range(6)]


def launch(function, folder, launcher="serial", **options):
    kept = []
    work = [(str(folder), at) for at in range(6)]
    failed = grid.launch(launcher, function, work, lambda at, row: kept.append((at, row["square"])), NAMES, **options)
    return sorted(kept), failed


ALL = [(at, at * at) for at in range(6)]


@pytest.mark.fast
def test_each_call_is_made_and_kept_once(tmp_path):
    assert launch(calls.count, tmp_path) == (ALL, {})
    assert all(len((tmp_path / f"call{at}").read_text().splitlines()) == 1 for at in range(6))


@pytest.mark.fast
def test_what_fails_is_tried_again(tmp_path, capsys):
    assert launch(calls.fails_at_first, tmp_path) == (ALL, {})
    said = capsys.readouterr().out
    assert said.count("failed (1 of 3): ValueError: number") == 3 and "[6/6]" in said


@pytest.mark.fast
def test_what_keeps_failing_is_named_and_the_rest_is_kept(tmp_path):
    kept, failed = launch(calls.always_fails, tmp_path, tries=2)
    assert kept == [] and failed == dict.fromkeys(range(6), "ValueError: is wrong")


@pytest.mark.fast
def test_a_process_that_dies_costs_no_row(tmp_path):
    kept, failed = launch(calls.dies_at_first, tmp_path, "processes", workers=2)
    assert (kept, failed) == (ALL, {})
    pids = {(tmp_path / f"call{at}").read_text().splitlines()[-1] for at in range(6)}
    assert len(pids) == 6  # a process for each


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray: pip install '.[sweeps]'")
def test_a_worker_of_ray_that_dies_costs_no_row(tmp_path):
    assert launch(calls.dies_at_first, tmp_path, "ray") == (ALL, {})


def run(workdir, *args):
    command = [sys.executable, "-m", "experiments.grid", "--config=configs/digits_resnet.py:smoke", "--set=arms=()",
               "--set=seeds=()", "--set=input.size=8", "--vary=optim.lr=1e-3,3e-3", "--vary=seed=0,1"]  # fmt: skip
    return subprocess.run([*command, f"--workdir={workdir}", *args], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_a_grid_of_a_recipe_is_run_once(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "grid.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["optim.lr"], row["seed"]) for row in rows] == [(r, s) for r in ("0.001", "0.003") for s in ("0", "1")]
    assert (
        all(0 <= float(row["accuracy"]) <= 1 for row in rows)
        and (tmp_path / "lr=0.001,seed=1" / "summary.json").is_file()
    )
    again = run(tmp_path)
    assert "4 runs, 4 of them done before" in again.stdout and again.returncode == 0
    other = run(tmp_path, "--set=batch_size=8")
    assert other.returncode == 2 and "was made with another" in other.stderr


@pytest.mark.fast
@pytest.mark.parametrize(
    "text, values",
    [
        ("1e-3,3e-3", [0.001, 0.003]),
        ("adam,sgd", ["adam", "sgd"]),
        ("True,False", [True, False]),
        ("(),(1,)", [(), (1,)]),
    ],
)
def test_values_are_literals_or_words(text, values):
    assert recipe.parse_values(text) == values


@pytest.mark.fast
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: recipe.parse_values("1,1.0"), "has a value twice"),
        (lambda: recipe.split_pair("optim.lr"), "is not FIELD=VALUE"),
        (lambda: recipe.load_config("configs/digits_resnet.py", {"optim.lrr": 1.0}), "did you mean 'optim.lr'"),
        (lambda: recipe.load_config("configs/digits.py", {}), "is no recipe in configs/"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
