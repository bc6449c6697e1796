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
and by two test examples if seeds hardly differ. A loss after few steps must stay within ``CLOSE`` of itself, because
rounding has not grown by then.
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
    FILE,
    cheap,
    compare,
    make_entry,
    measure,
    missing,
    place,
    read,
    status,
    table,
    verify,
    write,
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
EXPECTED = flags.DEFINE_string("expected", str(FILE), "The file with the entries.")


def main(_: list[str]) -> int:
    """Verify or record; return the exit status."""
    logging.set_verbosity(logging.WARNING)
    workdir.silence_orbax()
    file = Path(EXPECTED.value)
    known = read(file)
    names = [_named(name) for name in RECIPES.value]
    if RECORD.value and not (names or ALL.value):
        raise UserError("--record overwrites entries; say which by --recipes=NAME,... or --all")
    if not RECORD.value and (SEEDS.value or SET.value or NEEDS.value):
        raise UserError("--seeds, --set and --needs are what --record writes; leave them out to verify")
    names = names or (list(known) if ALL.value else cheap(known))
    if not RECORD.value and (unknown := [name for name in names if name not in known]):
        raise UserError(f"--recipes={unknown[0]}: no entry in {file}; {nearest(unknown[0], known)}")
    with contextlib.ExitStack() as stack:
        folder = Path(WORKDIR.value or stack.enter_context(tempfile.TemporaryDirectory(prefix="verify_")))
        if any(place(folder, name).exists() for name in names):
            raise UserError(f"{folder} has the runs of an earlier verification; pass another --workdir")
        if RECORD.value:
            return _record(names, known, folder.expanduser().absolute(), file)
        rows = verify(names, known, folder.expanduser().absolute(), data_dir())
    say(table(rows))
    return status(rows)


def _record(names: Sequence[str], known: dict[str, Any], folder: Path, file: Path) -> int:
    """Measure recipes and write their entries, each as soon as it is there."""
    data = data_dir()
    for name in names:
        old, begin = known.get(name, {}), time.process_time()
        seeds = [int(seed) for seed in SEEDS.value] or old.get("seeds", [0, 1, 2])
        if len(seeds) < 3:
            raise UserError(f"--seeds={','.join(map(str, seeds))}: an interval wants three or more")
        entry = {"set": dict(map(recipe.pair, SET.value)) or old.get("set", {}), "seeds": seeds}
        if needs := dict(map(recipe.split_pair, NEEDS.value)) or old.get("needs", {}):
            entry["needs"] = needs
        if absent := missing(entry, data):
            say(f"{name}: skipped, {absent}")
            continue
        say(f"{name} ...")
        with show_elapsed(name):
            found = measure(name, entry, place(folder, name), data)
        known[name] = make_entry(name, entry, found, time.process_time() - begin)
        write(file, known)
        say(table(compare(name, known[name], found, time.process_time() - begin)))
    return 0


def data_dir() -> Path | None:
    """Return the folder of data, None where none is named."""
    named = DATA_DIR.value or os.environ.get("TL_JAX_TEST_DATA", "")
    return Path(named).expanduser().absolute() if named else None


def _named(given: str) -> str:
    """Return the name of an entry for NAME, NAME.py or configs/NAME.py, each with or without :VARIANT."""
    path, colon, variant = given.partition(":")
    return Path(path).name.removesuffix(".py") + colon + variant


if __name__ == "__main__":
    command_module.run(main)
