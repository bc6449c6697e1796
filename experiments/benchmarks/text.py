"""Fine-tuning of a text network beside transformers on PyTorch: tokens a second, and an epoch in length buckets.

    python -m experiments.benchmarks.text --bert=FOLDER --data_dir=SST2

Both fine-tune the same weights for two classes with AdamW on batches of 32 texts, in turns, each in a process of its
own. Prints and writes medians over the turns and their ratio. Of the epoch the first ``--steps`` steps are timed, the
same texts for both. Needs requirements-bench.txt.
"""

import json
from pathlib import Path

from absl import flags

from experiments.benchmarks.text_peers import BERT, DATA_DIR, LENGTHS
from experiments.benchmarks.turns import Worker, describe_machine, measure_turns, medians
from tl_jax.utils import command, disk

TURNS = flags.DEFINE_integer("turns", 5, "Turns of each.")
LEAST = flags.DEFINE_float("least", 5.0, "Seconds of a turn at least.")
STEPS = flags.DEFINE_integer("steps", 60, "Steps of the epoch that are timed; it has 216.")
RESULTS = flags.DEFINE_string("results", "experiments/results/benchmarks/text.json", "Where the numbers go.")
BATCH = 32


def main(_: list[str]) -> None:
    """Measure, print, write."""
    worker_flags = (f"--bert={BERT.value}", f"--data_dir={DATA_DIR.value}")
    names = ("tl_jax", "transformers")
    workers = {name: Worker(name, *worker_flags, module="experiments.benchmarks.text_peers") for name in names}
    rows = []
    for length in LENGTHS:
        seconds = measure_turns(workers, f"length{length}", TURNS.value, LEAST.value)
        median = medians(seconds)
        rate = {name: BATCH * length / seconds for name, seconds in median.items()}
        ratio = rate["tl_jax"] / rate["transformers"]
        rows.append({"what": f"length {length}", "seconds": seconds, "tokens_per_second": rate, "ratio": ratio})
        rates_text = ", ".join(f"{name} {value:,.0f}" for name, value in rate.items())
        print(f"length {length}: {rates_text} tokens/s, ratio {ratio:.2f}", flush=True)
    seconds = {name: [] for name in names}
    for _turn in range(max(1, TURNS.value // 2)):
        for name, worker in workers.items():
            seconds[name].append(worker.seconds("epoch", STEPS.value) * STEPS.value)
    median = medians(seconds)
    share = median["tl_jax"] / median["transformers"]
    rows.append({"what": "epoch in buckets", "steps": STEPS.value, "seconds": seconds, "share": share})
    print(
        f"{STEPS.value} steps: {median['tl_jax']:.1f} s in buckets, {median['transformers']:.1f} s padded: {share:.2f}"
    )
    path = Path(RESULTS.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_text(path, json.dumps({**describe_machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    command.run(main)
