"""Export of a trained network as a bundle for others: weights, StableHLO program, files for other libraries, card.

The weights are written in full, and as a delta against the published ones.
"""

import re
from pathlib import Path
from typing import Any

from tl_jax.config import recipe
from tl_jax.export import frameworks, model_card, stablehlo
from tl_jax.export.stablehlo import PROGRAM_FILE
from tl_jax.pretrained import formats
from tl_jax.pretrained.delta import DELTA_FILE
from tl_jax.restore import RUN_FILES, RUN_FOLDER, restore
from tl_jax.train.logging import say
from tl_jax.train.task import Task
from tl_jax.train.workdir import read_facts, read_json, write_json


def write_bundle(task: Task, workdir: Path, step: int) -> None:
    """Write all files of the bundle but the weights, from the weights in ``workdir/export``.

    Args:
        task: of the run.
        workdir: its folder, with result files and the weights that ``export`` wrote.
        step: of the weights.
    """
    folder = workdir / "export"
    # Of an earlier export of this run.
    for stale in (formats.BUNDLE_FILE, PROGRAM_FILE, frameworks.KERAS_FILE, frameworks.TORCHVISION_FILE):
        (folder / stale).unlink(missing_ok=True)
    contents = task.bundle_contents(folder, step)
    shape = stablehlo.write_program(folder / PROGRAM_FILE, contents.program)
    io = {
        "inputs": {name: {"shape": list(s), "dtype": dtype} for name, (s, dtype) in contents.program.inputs.items()},
        "limits": list(contents.program.limits),
        "output": {"name": contents.program.output, "shape": list(shape), "dtype": "float32"},
        "platforms": list(stablehlo.PLATFORMS),
    }
    facts = {**model_card.describe_run(task.config, workdir, step, contents.licence), **contents.facts, "program": io}
    write_run_files(workdir, folder / RUN_FOLDER)
    files = {
        **contents.files,
        **{f"{RUN_FOLDER}/{name}": what for name, what in RUN_FILES.items()},
        PROGRAM_FILE: f"program for {', '.join(stablehlo.PLATFORMS)}: {contents.program.output}",
    }
    if (folder / DELTA_FILE).is_file():
        files[DELTA_FILE] = "only what changed, for pretrained.load(..., delta=FILE) on the weights it started from"
    bundle = formats.write_bundle_json(folder, facts, files)
    loaders = {**contents.loaders, **model_card.jax_loader(PROGRAM_FILE, io)}
    if facts["classes"] and contents.program.output == "probabilities":
        loaders = {
            heading: loader._replace(code=loader.code + model_card.CLASS_NAMES_CODE)
            for heading, loader in loaders.items()
        }
    import_notes = (
        f"The network is one of the module `{name}`: import that first." for name in facts.get("modules", ())
    )
    model_card.write_card(folder, bundle, loaders, (*contents.notes, *import_notes))
    say(f"wrote the bundle {folder}; {folder / model_card.CARD_FILE} says how others load it")


# Fields that hold paths of this machine, which are nobody's business: of the configuration, the facts and the summary.
PATH_FIELDS = (
    "data.dir", "init.path", "cache.dir", "faces.known", "faces.pairs", "faces.test_file", "weights", "facts.weights",
)  # fmt: skip


def write_run_files(workdir: Path, folder: Path) -> None:
    """Write what ``load_learner`` needs to know of a run: its files, without the folders of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        content = read_json(workdir / name)
        for field in PATH_FIELDS:
            _hide_path(content, field)
        write_json(folder / name, content)


def _hide_path(content: dict[str, Any], field: str) -> None:
    """Replace a path by its last part, where ``field``, such as "data.dir", holds one."""
    group, _, name = field.rpartition(".")
    holder = content.get(group) if group else content
    if not isinstance(holder, dict):
        return
    value = holder.get(name)
    if isinstance(value, str) and ("/" in value or "\\" in value) and not is_hub_name(value):
        holder[name] = f".../{Path(value).name}"


def is_hub_name(value: str) -> bool:
    """Whether a value is "owner/name" of a repository, and no folder here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", value) is not None and value[0] != "." and not Path(value).exists()


def export(config: recipe.Config, folder: str | Path, dtype: str = "float32") -> Path:
    """Write a run into ``export/`` as a bundle that others load, see ``write_bundle``, and return its weights.

    Those of a text network are the folder that transformers opens.

    Of an image network ``export/model.safetensors`` is what ``pretrained.load(source="tl_jax")`` reads, of a policy
    what ``init.path`` takes. That of faces puts out embeddings, whose length is not yet 1, that of a detector is the
    network below the head, to be started from.

    Beside it comes ``export/delta.safetensors``: only what changed, for ``pretrained.load(..., delta=FILE)`` on top of
    the weights that the run started from. Adapters are merged into plain kernels in the first and kept in the second.
    ``dtype`` is that of the values in the first: "float16" halves it.
    """
    stablehlo.check_serialization()  # before the weights, which alone would be half a bundle
    folder = Path(folder).expanduser()
    source = read_facts(folder).get("weights", "random")
    has_source = source == "random" or Path(source).exists()
    if not has_source:
        say(f"no delta is written: the weights that the run started from are gone ({source})")
    task, start, state = restore(config, folder, data=False, weights=has_source)
    path = task.export_weights(folder, start if has_source else None, state, dtype)
    write_bundle(task, folder, int(state.step))
    return path
