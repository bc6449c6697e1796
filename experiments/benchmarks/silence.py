"""Benchmark of command output on a terminal: seconds until the first output, and the longest pause.

    python -m experiments.benchmarks.silence
    python -m experiments.benchmarks.silence --only=eval,predict

Each command has one core and empty caches. Writes and prints a table in JSON.
"""

import contextlib
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments.benchmarks.turns import ROOT, describe_machine
from tl_jax.report import html
from tl_jax.utils import command, disk
from tl_jax.utils.errors import UserError

ONLY = flags.DEFINE_list("only", [], "Commands to measure; empty for all.")
TRANSCRIPTS = flags.DEFINE_string("transcripts", "", "Folder for the output of each, with times; none if empty.")
RESULTS = flags.DEFINE_string("results", "experiments/results/benchmarks/silence.json", "Output file.")
PIECE = 1 << 16  # bytes read at once
KEYS = ("first", "longest", "whole")  # of a ``Silence`` in the results file

DIGITS = ("run.py", "--config=configs/digits_resnet.py", "--config.seeds=()", "--config.arms=()")
RUN, POLICY = "--workdir={}/run", "--workdir={}/policy"
COMMANDS = {
    "default": ("run.py", "--workdir={}/default"),
    "train": (*DIGITS, RUN),
    "train again": (*DIGITS, RUN),
    "eval": ("run.py", "--mode=eval", RUN),
    "predict": ("run.py", "--mode=predict", RUN, "--input={}/image.png"),
    "explain": ("run.py", "--mode=explain", RUN, "--input={}/image.png"),
    "export": ("run.py", "--mode=export", RUN),
    "report": ("run.py", "--mode=report", RUN),
    "preview": (*DIGITS, "--mode=preview", "--workdir={}/preview"),
    "find_lr": (*DIGITS, "--mode=find_lr", "--workdir={}/find_lr"),
    "train a policy": ("run.py", "--config=configs/cartpole_ppo.py:smoke", POLICY),
    "play": ("run.py", "--mode=play", POLICY),
    "train a text network": ("run.py", "--config=configs/docs_bert.py:smoke", "--workdir={}/text"),
    "verify": ("-m", "experiments.verify", "--recipes=docs_bert:smoke"),
}
OF_A_RUN = ("train again", "eval", "predict", "explain", "export", "report")
FIRST = {"play": "train a policy"} | dict.fromkeys(OF_A_RUN, "train")  # what each needs


class Silence(NamedTuple):
    """Seconds until the first output, the longest without any, and of the command in all."""

    first: float
    longest: float
    total: float


def main(_: list[str]) -> None:
    """Run the commands, tell, write."""
    if unknown := sorted(set(ONLY.value) - set(COMMANDS)):
        raise UserError(f"--only: no command is called {unknown[0]!r}; there are {', '.join(COMMANDS)}")
    with contextlib.suppress(AttributeError):  # only Linux knows it
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    names = dict.fromkeys(
        name
        for command_name in ONLY.value or COMMANDS
        for name in (FIRST.get(command_name, command_name), command_name)
    )
    silences = {}
    with tempfile.TemporaryDirectory() as folder:
        _image(Path(folder))
        for name in names:
            silences[name] = watch(
                [argument.format(folder) for argument in COMMANDS[name]], Path(folder) / f"cache {name}", name
            )
            print(f"{name}: first {silences[name].first:.1f} s, longest {silences[name].longest:.1f} s", flush=True)
    rows = [(name, *(f"{value:.1f}" for value in silence)) for name, silence in silences.items()]
    print(html.to_markdown(html.Table(("command", "first output, s", "longest silence, s", "in all, s"), rows)))
    if not ONLY.value:
        numbers = {name: dict(zip(KEYS, silence, strict=True)) for name, silence in silences.items()}
        disk.write_text(
            Path(RESULTS.value), json.dumps({**describe_machine(), "cores": 1, "commands": numbers}, indent=1) + "\n"
        )


def watch(arguments: list[str], cache: Path, name: str) -> Silence:
    """Run a Python program on a terminal and measure its silences."""
    main_end, child_end = pty.openpty()
    fcntl.ioctl(child_end, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    environment = {**os.environ, "TL_JAX_CACHE": str(cache)}
    start, texts, times_heard = time.perf_counter(), [], []
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdin=child_end, stdout=child_end, stderr=child_end
    ) as process:
        os.close(child_end)
        with contextlib.suppress(OSError):  # Linux' way to say that the other side has closed
            while select.select([main_end], [], [])[0] and (piece := os.read(main_end, PIECE)):
                times_heard.append(time.perf_counter() - start)
                texts.append(piece.decode(errors="replace"))
    os.close(main_end)
    total = time.perf_counter() - start
    if TRANSCRIPTS.value:
        lines = (f"{at:7.2f} {piece!r}\n" for at, piece in zip(times_heard, texts, strict=True))
        Path(TRANSCRIPTS.value).mkdir(parents=True, exist_ok=True)
        disk.write_text(Path(TRANSCRIPTS.value) / f"{name.replace(' ', '_')}.txt", "".join(lines))
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{''.join(texts)[-2000:]}")
    times = [0.0, *times_heard, total]
    return Silence(times[1], max(b - a for a, b in zip(times, times[1:], strict=False)), total)


def _image(folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32), "gray").save(folder / "image.png")


if __name__ == "__main__":
    command.run(main)
