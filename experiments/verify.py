"""Check that recipes still give the results in experiments/expected.json: run them again and compare.

    python -m experiments.verify                                       the quick ones
    python -m experiments.verify --recipes=digits_resnet,docs_bert     these
    python -m experiments.verify --all --data_dir=FOLDER               every entry; some need data
    python -m experiments.verify --record --recipes=NAME               measure, and write the entry

Each figure is "as expected" or "drifted", or "untested" if no value would be a drift. A recipe is "skipped" if its data
are absent, and may have "failed". The exit status is 1 if something drifted or failed. Nothing is written but the
folder of the runs (a temporary one if none is named) and, with --record, the file.

A figure is the mean of a metric over the seeds of its entry. The same commit gives the same figures on the same
hardware with the same libraries. Elsewhere sums round differently, and training amplifies this until a run differs as
much as one with another seed. So the mean may move by the 95 % prediction interval of the mean of as many new seeds,
and by two test examples if seeds hardly differ. A loss after few steps must stay within ``LOSS_TOLERANCE`` of itself,
because rounding has not grown by then.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from experiments import recipe
from experiments.expectations import (
    EXPECTED_FILE,
    cheap_entries,
    compare_figures,
    exit_status,
    format_table,
    make_entry,
    measure_recipe,
    missing_data,
    read_entries,
    run_folder,
    verify_recipes,
    write_entries,
)
from tl_jax.train import workdir
from tl_jax.train.logging import say
from tl_jax.utils import command as command_module
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.waiting import show_elapsed

RECIPES = flags.DEFINE_list("recipes", [], "Names of entries, such as digits_resnet or cifar_vgg:smoke.")
ALL = flags.DEFINE_bool("all", False, "Every entry.")
RECORD = flags.DEFINE_bool("record", False, "Measure, and write the entries.")
SEEDS = flags.DEFINE_list("seeds", [], "With --record: seeds of the entry; those that it has, or 0,1,2.")
SET = flags.DEFINE_multi_string("set", [], "With --record: FIELD=VALUE of the entry.")
NEEDS = flags.DEFINE_multi_string("needs", [], "With --record: FIELD=PATH below --data_dir that the entry reads.")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the runs; a temporary one if empty.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the data that some entries need; $TL_JAX_TEST_DATA if empty.")
EXPECTED = flags.DEFINE_string("expected", str(EXPECTED_FILE), "The file with the entries.")


def main(_: list[str]) -> int:
    """Verify or record; return the exit status."""
    logging.set_verbosity(logging.WARNING)
    workdir.silence_orbax()
    file = Path(EXPECTED.value)
    entries = read_entries(file)
    names = [_entry_name(name) for name in RECIPES.value]
    if RECORD.value and not (names or ALL.value):
        raise UserError("--record overwrites entries; say which by --recipes=NAME,... or --all")
    if not RECORD.value and (SEEDS.value or SET.value or NEEDS.value):
        raise UserError("--seeds, --set and --needs are what --record writes; leave them out to verify")
    names = names or (list(entries) if ALL.value else cheap_entries(entries))
    if not RECORD.value and (unknown := [name for name in names if name not in entries]):
        raise UserError(f"--recipes={unknown[0]}: no entry in {file}; {nearest(unknown[0], entries)}")
    with contextlib.ExitStack() as stack:
        folder = Path(WORKDIR.value or stack.enter_context(tempfile.TemporaryDirectory(prefix="verify_")))
        if any(run_folder(folder, name).exists() for name in names):
            raise UserError(f"{folder} has the runs of an earlier verification; pass another --workdir")
        if RECORD.value:
            return _record_entries(names, entries, folder.expanduser().absolute(), file)
        rows = verify_recipes(names, entries, folder.expanduser().absolute(), data_dir())
    say(format_table(rows))
    return exit_status(rows)


def _record_entries(names: Sequence[str], entries: dict[str, Any], folder: Path, file: Path) -> int:
    """Measure recipes and write their entries, each as soon as it is there."""
    data = data_dir()
    for name in names:
        entry_before, start = entries.get(name, {}), time.process_time()
        seeds = [int(seed) for seed in SEEDS.value] or entry_before.get("seeds", [0, 1, 2])
        if len(seeds) < 3:
            raise UserError(f"--seeds={','.join(map(str, seeds))}: an interval wants three or more")
        entry = {"set": dict(map(recipe.parse_pair, SET.value)) or entry_before.get("set", {}), "seeds": seeds}
        if needs := dict(map(recipe.split_pair, NEEDS.value)) or entry_before.get("needs", {}):
            entry["needs"] = needs
        if problem := missing_data(entry, data):
            say(f"{name}: skipped, {problem}")
            continue
        say(f"{name} ...")
        with show_elapsed(name):
            results = measure_recipe(name, entry, run_folder(folder, name), data)
        entries[name] = make_entry(name, entry, results, time.process_time() - start)
        write_entries(file, entries)
        say(format_table(compare_figures(name, entries[name], results, time.process_time() - start)))
    return 0


def data_dir() -> Path | None:
    """Return the folder of data, None where none is named."""
    path = DATA_DIR.value or os.environ.get("TL_JAX_TEST_DATA", "")
    return Path(path).expanduser().absolute() if path else None


def _entry_name(name: str) -> str:
    """Return the name of an entry for NAME, NAME.py or configs/NAME.py, each with or without :VARIANT."""
    path, separator, variant = name.partition(":")
    return Path(path).name.removesuffix(".py") + separator + variant


if __name__ == "__main__":
    command_module.run(main)
