"""Faults that disks, machines and people make, put into real runs; what each printed, and what it came to.

    python -m experiments.faults                          all of them (some need root, to mount)
    python -m experiments.faults --only="full disk,kills" --results=FILE

Some spoil a run while it trains, mend it, and give the same command again, which must end with the bits of an
undisturbed run. Others flip single bits in the files of a run or a bundle: each is noticed in a line that names the
file, or changes nothing. Others fill the disk in each mode, or kill runs of each task. Writes tables in Markdown.
"""

import tempfile
from pathlib import Path

from absl import flags, logging

from experiments import faults_disk, faults_flips, faults_kills, faults_training
from experiments.faults_training import Section
from experiments.record import commit
from tl_jax.report import html
from tl_jax.train import workdir
from tl_jax.utils import command, disk
from tl_jax.utils.errors import UserError

ONLY = flags.DEFINE_list("only", [], "Names of faults; all if empty.")
RESULTS = flags.DEFINE_string("results", "experiments/results/faults.md", "Where the tables go.")
SEED = flags.DEFINE_integer("seed", 0, "Of which bits flip, and when runs are killed.")
FLIPS = flags.DEFINE_integer("flips", 300, "Bits to flip, one at a time.", lower_bound=1)
KILLS = flags.DEFINE_integer("kills", 30, "Times to kill a run, over all tasks.", lower_bound=1)
MODES = {
    "bit flips": lambda home: faults_flips.flips_section(home, FLIPS.value, SEED.value),
    "full disk in each mode": lambda home: faults_disk.disk_section(home),
    "kills": lambda home: faults_kills.kills_section(home, KILLS.value, SEED.value),
}


def main(_: list[str]) -> None:
    """Put in each fault, compare, write."""
    logging.set_verbosity(logging.ERROR)
    workdir.silence_orbax()
    names = [*faults_training.FAULTS, *MODES]
    if unknown := sorted(set(ONLY.value) - set(names)):
        raise UserError(f"--only: no fault is called {unknown[0]!r}; there are {', '.join(names)}")
    names = ONLY.value or names
    sections = []
    with tempfile.TemporaryDirectory(prefix="faults_") as folder:
        if training := [name for name in names if name in faults_training.FAULTS]:
            sections.append(faults_training.training_section(training, Path(folder)))
        for name in [name for name in names if name in MODES]:
            home = Path(folder) / name.replace(" ", "_")
            home.mkdir()
            sections.append(MODES[name](home))
    file = Path(RESULTS.value)
    disk.write_text(file, to_document(sections, file.read_text() if file.is_file() else ""))
    if failures := [line for section in sections for line in section.bad]:
        raise UserError(f"{len(failures)} faults ended badly: {'; '.join(failures[:5])}")


def to_document(sections: list[Section], old_document: str) -> str:
    """Return what was found, in Markdown; what ``old_document`` has of other kinds of faults is kept."""
    texts = {}
    for chapter in old_document.split("\n## ")[1:]:
        title, _, text = chapter.partition("\n")
        texts[title] = text.strip()
    for section in sections:
        tables = [html.to_markdown(table) for table in section.tables]
        origin = f"Made by `python -m experiments.faults` at commit {commit()}."
        texts[section.title] = "\n".join([*([f"{section.text}\n"] if section.text else []), *tables, origin])
    return "\n".join(["# Injected faults\n", *(f"## {title}\n\n{text}\n" for title, text in texts.items())])


if __name__ == "__main__":
    command.run(main)
