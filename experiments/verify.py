"""Do recipes still give what they gave? Each is run again and compared with its entry in experiments/expected.json.

    python -m experiments.verify                                       the quick ones
    python -m experiments.verify --recipes=digits_resnet,docs_bert     these
    python -m experiments.verify --all --data_dir=FOLDER               every entry; some need data
    python -m experiments.verify --record --recipes=NAME               measure, and write the entry

Each figure is "as expected" or "drifted", or "untested" if no value would be a drift; a recipe may be "skipped", where
its data are absent, or have "failed". The exit status is 1 where something drifted or failed. Nothing is written but
the folder of the runs (a temporary one if none is named) and, with --record, the file. experiments/expectations.py says
what a figure may differ by.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from experiments import expectations, recipe, remeasure
from tl_jax import command
from tl_jax.errors import UserError, nearest
from tl_jax.train import storage
from tl_jax.train.log import say
from tl_jax.waiting import waiting

RECIPES = flags.DEFINE_list("recipes", [], "Names of entries, such as digits_resnet or cifar_vgg:smoke.")
ALL = flags.DEFINE_bool("all", False, "Every entry.")
RECORD = flags.DEFINE_bool("record", False, "Measure, and write the entries.")
SEEDS = flags.DEFINE_list("seeds", [], "With --record: seeds of the entry; those that it has, or 0,1,2.")
SET = flags.DEFINE_multi_string("set", [], "With --record: FIELD=VALUE of the entry.")
NEEDS = flags.DEFINE_multi_string("needs", [], "With --record: FIELD=PATH below --data_dir that the entry reads.")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the runs; a temporary one if empty.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the data that some entries need; $TL_JAX_TEST_DATA if empty.")
EXPECTED = flags.DEFINE_string("expected", str(expectations.FILE), "The file with the entries.")


def main(_: list[str]) -> int:
    """Verify or record; return the exit status."""
    logging.set_verbosity(logging.WARNING)
    storage.hush()
    file = Path(EXPECTED.value)
    known = expectations.read(file)
    names = [_named(name) for name in RECIPES.value]
    if RECORD.value and not (names or ALL.value):
        raise UserError("--record overwrites entries; say which by --recipes=NAME,... or --all")
    if not RECORD.value and (SEEDS.value or SET.value or NEEDS.value):
        raise UserError("--seeds, --set and --needs are what --record writes; leave them out to verify")
    names = names or (list(known) if ALL.value else expectations.cheap(known))
    if not RECORD.value and (unknown := [name for name in names if name not in known]):
        raise UserError(f"--recipes={unknown[0]}: no entry in {file}; {nearest(unknown[0], known)}")
    with contextlib.ExitStack() as stack:
        folder = Path(WORKDIR.value or stack.enter_context(tempfile.TemporaryDirectory(prefix="verify_")))
        if any(remeasure.place(folder, name).exists() for name in names):
            raise UserError(f"{folder} has the runs of an earlier verification; pass another --workdir")
        if RECORD.value:
            return _record(names, known, folder.expanduser().absolute(), file)
        rows = remeasure.verify(names, known, folder.expanduser().absolute(), data_dir())
    say(expectations.table(rows))
    return expectations.status(rows)


def _record(names: Sequence[str], known: dict[str, Any], folder: Path, file: Path) -> int:
    """Measure recipes and write their entries, each as soon as it is there."""
    data = data_dir()
    for name in names:
        old, begin = known.get(name, {}), time.process_time()
        seeds = [int(seed) for seed in SEEDS.value] or old.get("seeds", [0, 1, 2])
        if len(seeds) < 3:
            raise UserError(f"--seeds={','.join(map(str, seeds))}: an interval wants three or more")
        entry = {"set": dict(map(recipe.pair, SET.value)) or old.get("set", {}), "seeds": seeds}
        if needs := dict(map(recipe.split, NEEDS.value)) or old.get("needs", {}):
            entry["needs"] = needs
        if absent := remeasure.missing(entry, data):
            say(f"{name}: skipped, {absent}")
            continue
        say(f"{name} ...")
        with waiting(name):
            found = remeasure.measure(name, entry, remeasure.place(folder, name), data)
        known[name] = expectations.entry(name, entry, found, time.process_time() - begin)
        expectations.write(file, known)
        say(expectations.table(expectations.compare(name, known[name], found, time.process_time() - begin)))
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
    command.run(main)
