"""Two processes that train one network: the results of one, files written once, and a killed one costs nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.test_kill import reached, rows, summary
from tl_jax.train import sharding
from tl_jax.utils.errors import UserError

ROOT = Path(__file__).parents[1]
ARGS = (
    "--config=configs/digits_resnet.py", "--config.seeds=()", "--config.arms=()", "--config.data.validation=0.05",
    "--config.phases=({'name': 'head', 'epochs': 6.0, 'recipe': 'head'}, {'name': 'all', 'epochs': 60.0})",
    "--config.epochs=10", "--config.input.size=8", "--config.batch_size=16", "--config.optim.ema=0.9",
    "--config.log_every=3", "--config.save_every=2",
)  # fmt: skip


def environment(devices):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=1"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def start(workdir, out, *args):
    """Start two processes with a device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "run.py", "--distributed", *ARGS, *args, f"--workdir={workdir}"]
    return [
        subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=out,
            env=environment(1) | dict(zip(sharding.ENV_VARIABLES, (address, "2", str(i)), strict=True)),
        )
        for i in range(2)
    ]  # fmt: skip


def ended(processes, seconds=300):
    """Return the exit codes of all, of those that do not end in time after a SIGKILL, as a cluster's manager sends."""
    stop = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < stop:
        time.sleep(0.1)
    for process in processes:
        process.kill()
    return [process.wait() for process in processes]


@pytest.mark.slow
def test_two_processes_train_evaluate_save_and_lose_nothing(tmp_path):
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "out"
    with out.open("w") as file:
        single = [sys.executable, "run.py", *ARGS, f"--workdir={one}"]
        assert subprocess.run(single, cwd=ROOT, env=environment(2), stdout=file, stderr=file).returncode == 0
        processes = start(two, file)
        while all(process.poll() is None for process in processes) and not reached(two, 15):
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGKILL)
        ended(processes, 20)
        assert not (two / "summary.json").exists(), "finished before it was killed"
        processes = start(two, file)
        while all(process.poll() is None for process in processes) and not reached(two, 27):
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)  # of one: both stop, at the same step
        codes = ended(processes)
        assert codes == [75, 75], out.read_text()[-3000:]
        assert ended(start(two, file, "--config.parallel.state=sharded")) == [0, 0], out.read_text()[-3000:]
    said = out.read_text()
    assert said.count("resuming from step") == 2 and said.count("preempted: stopped after step") == 2
    for mine, theirs in zip(rows(two), rows(one), strict=True):
        assert (mine["step"], mine["split"]) == (theirs["step"], theirs["split"])
        np.testing.assert_allclose(mine["loss"], theirs["loss"], rtol=1e-4)
    assert summary(two)["examples_evaluated"] == summary(one)["examples_evaluated"]
    assert summary(two)["parameters"] == summary(one)["parameters"]
    assert len(list((two / "tensorboard").iterdir())) == 3  # one writer at each start


@pytest.mark.fast
def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(
        UserError, match="JAX_NUM_PROCESSES: JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID must be set too; set all"
    ):
        sharding.join_processes()


@pytest.mark.fast
def test_nothing_that_says_which_processes_there_are(tmp_path):
    command = [sys.executable, "run.py", "--distributed", "--config=configs/cifar_resnet.py:smoke"]
    clean = {name: value for name, value in os.environ.items() if name not in sharding.ENV_VARIABLES}
    done = subprocess.run([*command, f"--workdir={tmp_path}"], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: --distributed: ") and "JAX_COORDINATOR_ADDRESS" in done.stderr
    assert json.dumps(list(tmp_path.iterdir())) == "[]"
