"""The command line: each mistake ends in one line that names the offender and the next action."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tl_jax.report import plots

ROOT = Path(__file__).parents[1]
SMOKE = "--config=configs/cifar_resnet.py:smoke"


def run(*args, env=None, timeout=300):
    """Run ``python run.py ARGS`` in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | (env or {})
    command = [sys.executable, "run.py", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.mark.fast
@pytest.mark.parametrize(
    "args,expected",
    [
        (["--config.optim.lrr=1"], "unknown field config.optim.lrr; did you mean 'optim.lr'?"),
        (["--config.optim.lr=abc"], "could not convert string to float: 'abc'"),
        (["--config.optim.name=adm"], "config.optim.name='adm' is unknown; did you mean 'adam'?"),
        (["--config=configs/cifr_resnet.py"], "did you mean 'cifar_resnet.py'?"),
        (["--config=configs/cifar_resnet.py:artcle"], "no variant 'artcle'; did you mean 'article'?"),
        (["--confg.seed=1"], "Unknown command line flag 'confg.seed'"),
        (["seed=1"], "unexpected argument 'seed=1'"),
        (["--config=configs/cifar_resnet.py", "--config.init.path=absent.h5"], "no weights file at absent.h5"),
        ([SMOKE, "--config.model.num_classes=7"], "config.model.num_classes=7, but gratings has 10 classes"),
        ([SMOKE, "--mode=eval"], "no checkpoints in"),
        (["--mode=report"], "no results in"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line(args, expected, tmp_path):
    done = run(*args, f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.fast
def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = run(SMOKE, f"--workdir={tmp_path / 'file' / 'w'}")
    assert done.returncode == 2 and "cannot be written" in done.stderr and "pass another workdir" in done.stderr


@pytest.mark.fast
def test_a_batch_that_the_devices_cannot_share(tmp_path):
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    done = run(SMOKE, f"--workdir={tmp_path / 'w'}", env=env)
    assert done.returncode == 2
    assert "config.batch_size=16 is not divisible by the 3 devices; use 15" in done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A smoke run of the tiny ResNet that went through."""
    workdir = tmp_path_factory.mktemp("smoke") / "w"
    return workdir, run(SMOKE, f"--workdir={workdir}")


@pytest.mark.slow
def test_smoke_writes_everything(finished):
    workdir, done = finished
    assert done.returncode == 0, done.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["config_name"] == "cifar_resnet_smoke" and summary["seed"] == 0 and summary["steps"] == 8
    assert summary["examples_evaluated"] == 64 and 0 <= summary["metrics"]["accuracy"] <= 1
    assert set(summary["seconds"]) == {"data", "features", "compile", "train", "eval", "total"}
    assert summary["parameters"] == {"trainable": 22_122, "frozen": 0}
    assert "jax" in summary["versions"]
    assert json.loads((workdir / "config.json").read_text())["model"]["name"] == "resnet50_tiny"
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 8
    assert list((workdir / "tensorboard").iterdir())
    assert "BatchNorm: 20 of 20 layers keep their statistics" in done.stdout
    assert "650 trainable, 21,472 frozen" in done.stdout
    assert summary["smoke"] and done.stdout.splitlines()[-1] == plots.SMOKE_NOTE
    assert (
        "Smoke run: it checks that every part works, and its metrics mean nothing"
        in (workdir / "report.html").read_text()
    )


@pytest.mark.slow
def test_a_finished_run_is_returned_and_can_be_evaluated_and_exported(finished):
    from tl_jax import pretrained

    workdir, _ = finished
    summary = json.loads((workdir / "summary.json").read_text())
    again = run(SMOKE, f"--workdir={workdir}")
    assert again.returncode == 0 and "is finished" in again.stdout
    evaluated = json.loads(run(SMOKE, f"--workdir={workdir}", "--mode=eval").stdout)
    assert evaluated["metrics"] == summary["metrics"] and evaluated["examples_evaluated"] == 64
    assert evaluated["smoke"]
    (workdir / "report.html").unlink()
    assert run(f"--workdir={workdir}", "--mode=report").stdout == f"report: {workdir / 'report.html'}\n"
    assert run(SMOKE, f"--workdir={workdir}", "--mode=export").returncode == 0
    assert "A smoke test: these metrics are not meaningful." in (workdir / "export" / "README.md").read_text()
    loaded = pretrained.load("resnet50_tiny", "tl_jax", workdir / "export" / "model.safetensors")
    assert loaded.spec.num_classes == 10 and loaded.spec.scaling == "caffe" and not loaded.new_head


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line_and_the_run_goes_on(tmp_path):
    args = ("--config=configs/digits_resnet.py:smoke", "--config.arms=()", "--config.seeds=()", "--config.input.size=8")
    command = [
        sys.executable,
        "run.py",
        *args,
        "--config.epochs=400",
        "--config.save_every=10",
        f"--workdir={tmp_path / 'w'}",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not list((tmp_path / "w").glob("checkpoints/[0-9]*")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        message = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert message.splitlines()[-1] == "stopped; run the same command to resume"
    assert "Traceback" not in message


@pytest.mark.slow
def test_another_configuration_is_refused_and_named(finished):
    done = run(SMOKE, f"--workdir={finished[0]}", "--config.optim.lr=0.5")
    assert done.returncode == 2
    assert "belongs to a run with another config.optim.lr (0.001 there, 0.5 here)" in done.stderr


@pytest.mark.slow
def test_two_devices_give_the_result_of_one(finished, tmp_path):
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    assert run(SMOKE, f"--workdir={tmp_path / 'w'}", env=env).returncode == 0

    def losses(workdir):
        return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]

    assert losses(tmp_path / "w") == pytest.approx(losses(finished[0]), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cifar_vgg", "cifar_inception", "flowers_mobilenet", "sst2_bert", "ner_bert"])
def test_every_family_has_a_recipe_that_runs(recipe, tmp_path):
    done = run(f"--config=configs/{recipe}.py:smoke", f"--workdir={tmp_path / 'w'}", timeout=600)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert summary["config_name"] == f"{recipe}_smoke" and summary["steps"] == 8
    assert 0 <= summary["metrics"]["accuracy"] <= 1 and summary["parameters"]["trainable"]
