"""Benchmark of predictions for a folder of many small images, some damaged, against a plain loop over the files.

    python -m experiments.benchmarks.predictions

The network is the small embedded one with a head for ten digits. The plain loop opens each file, adds it to a batch and
calls the same compiled network. Both run in their own processes, in turns. Writes and prints JSON.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from experiments.benchmarks.turns import ROOT, describe_machine
from tl_jax.utils import command, disk

IMAGES = flags.DEFINE_integer("images", 20_000, "Number of images.", lower_bound=10)
DAMAGED = flags.DEFINE_integer("damaged", 5, "Number of truncated images among them.", lower_bound=0)
TURNS = flags.DEFINE_integer("turns", 3, "Turns per method.", lower_bound=1)
RESULTS = flags.DEFINE_string("results", "experiments/results/benchmarks/predictions.json", "Output file.")
PLAIN_LOOP = flags.DEFINE_string("plain_loop", "", "Folder of images and run, to run only the plain loop; internal.")
SIDE, BATCH = 32, 256


def main(_: list[str]) -> None:
    """Measure both, and write what was found."""
    if PLAIN_LOOP.value:
        return plain_loop(*map(Path, PLAIN_LOOP.value.split(",")))
    with tempfile.TemporaryDirectory() as top:
        run, images, table = Path(top) / "run", Path(top) / "images", Path(top) / "predictions.csv"
        write_images(images)
        digits = ("--config=configs/digits_resnet.py:smoke", "--config.seeds=()", "--config.arms=()")
        call("run.py", *digits, f"--workdir={run}", status=0)
        ours = ("run.py", "--mode=predict", f"--workdir={run}", f"--input={images}", f"--output={table}", "--top=3")
        plain = ("-m", "experiments.benchmarks.predictions", f"--plain_loop={images},{run}")
        calls: dict[str, list[tuple[float, float]]] = {"ours": [], "plain loop": []}
        for _turn in range(int(TURNS.value)):
            calls["ours"].append(call(*ours, status=1 if DAMAGED.value else 0))
            calls["plain loop"].append(call(*plain, status=0))
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        damaged = sum(bool(row["error"]) for row in rows)
        if (len(rows), damaged) != (IMAGES.value, DAMAGED.value):
            raise RuntimeError(f"{len(rows)} rows, {damaged} with an error")
    found = {
        **describe_machine(), "images": IMAGES.value, "damaged": DAMAGED.value,
        "seconds": {name: [round(seconds, 1) for seconds, _ in values] for name, values in calls.items()},
        "images_per_second": {
            name: round(IMAGES.value / statistics.median(seconds for seconds, _ in values))
            for name, values in calls.items()
        },
        "peak_memory_gb": {name: round(max(peak for _, peak in values), 2) for name, values in calls.items()},
    }  # fmt: skip
    disk.write_text(Path(RESULTS.value), json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def write_images(folder: Path) -> None:
    """Write the files, in subfolders of a thousand; the damaged ones lie apart."""
    rng = np.random.default_rng(0)
    damaged = set(np.linspace(0, IMAGES.value - 1, DAMAGED.value).astype(int).tolist()) if DAMAGED.value else set()
    for i in range(int(IMAGES.value)):
        path = folder / f"{i // 1000:03}" / f"{i:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)).save(path, compress_level=1)
        if i in damaged:
            disk.write_bytes(path, path.read_bytes()[:100])


def call(*arguments: str, status: int) -> tuple[float, float]:
    """Return the seconds and the gigabytes of memory that a Python program takes which ends with a status."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=output, stderr=output)
        _, ended, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
        if process.returncode != status:
            output.seek(0)
            raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{output.read()[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def plain_loop(images: Path, run: Path) -> None:
    """Predict each file that can be opened, as a script of twenty lines would."""
    import jax

    from tl_jax.config import stored
    from tl_jax.restore import restore

    task, _, state = restore(stored.get_config(str(run)), run, data=False)
    outputs: Any = task.outputs
    predict, pixels, paths, lines = jax.jit(outputs), [], [], []
    height, width = vars(task)["predictor"].shape

    def flush() -> None:
        batch = np.stack(pixels + [pixels[-1]] * (BATCH - len(pixels)))
        for path, row in zip(paths, np.asarray(predict(state.variables, {"inputs": batch})), strict=False):
            top = np.argsort(-row)[:3]
            lines.append(",".join([str(path), *(f"{task.classes[k]},{row[k]}" for k in top)]))
        pixels.clear()
        paths.clear()

    for path in sorted(images.rglob("*.png")):
        try:
            image = np.asarray(Image.open(path).convert("RGB").resize((width, height)))
        except OSError:
            continue
        pixels.append(image)
        paths.append(path)
        if len(pixels) == BATCH:
            flush()
    if pixels:
        flush()
    disk.write_text(images.parent / "plain.csv", "\n".join(lines))


if __name__ == "__main__":
    command.run(main)
