"""Export of a trained network as a bundle: weights, StableHLO program, files for other libraries, and model card.

The weights are written in full, and as a delta relative to the published ones.
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
    """Write all files of the bundle except the weights, from the weights in ``workdir/export``.

    Args:
        task: task of the run.
        workdir: folder of the run, with result files and the weights written by ``export``.
        step: step of the weights.
    """
    folder = workdir / "export"
    # Left by an earlier export of this run.
    for stale in (
        formats.BUNDLE_FILE,
        PROGRAM_FILE,
        frameworks.KERAS_FILE,
        frameworks.TORCHVISION_FILE,
        frameworks.TIMM_FILE,
    ):
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
        files[DELTA_FILE] = "the changes of training, for pretrained.load(..., delta=FILE) with the source weights"
    bundle = formats.write_bundle_json(folder, facts, files)
    loaders = {**contents.loaders, **model_card.jax_loader(PROGRAM_FILE, io)}
    if facts["classes"] and contents.program.output == "probabilities":
        loaders = {
            heading: loader._replace(code=loader.code + model_card.CLASS_NAMES_CODE)
            for heading, loader in loaders.items()
        }
    import_notes = (f"The network is in the module `{name}`; import it first." for name in facts.get("modules", ()))
    model_card.write_card(folder, bundle, loaders, (*contents.notes, *import_notes))
    say(f"wrote the bundle {folder}; {folder / model_card.CARD_FILE} describes how to load it")


# Fields of the configuration, facts and summary with local paths, which are private.
PATH_FIELDS = (
    "data.dir", "init.path", "cache.dir", "faces.known", "faces.pairs", "faces.test_file", "weights", "facts.weights",
)  # fmt: skip


def write_run_files(workdir: Path, folder: Path) -> None:
    """Write the files of a run that ``load_learner`` needs, without local paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        content = read_json(workdir / name)
        for field in PATH_FIELDS:
            _hide_path(content, field)
        write_json(folder / name, content)


def _hide_path(content: dict[str, Any], field: str) -> None:
    """Replace the path in ``field``, such as "data.dir", by its last component."""
    group, _, name = field.rpartition(".")
    holder = content.get(group) if group else content
    if not isinstance(holder, dict):
        return
    value = holder.get(name)
    if isinstance(value, str) and ("/" in value or "\\" in value) and not is_hub_name(value):
        holder[name] = f".../{Path(value).name}"


def is_hub_name(value: str) -> bool:
    """Return whether a value is a repository "owner/name", and not a local folder."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", value) is not None and value[0] != "." and not Path(value).exists()


def export(config: recipe.Config, folder: str | Path, dtype: str = "float32") -> Path:
    """Write a run into ``export/`` as a bundle, see ``write_bundle``, and return the path of its weights.

    The weights of a text network are a folder in transformers' format.

    For an image network, ``pretrained.load(source="tl_jax")`` reads ``export/model.safetensors``; for a policy,
    ``init.path`` accepts it. A face network outputs embeddings before normalization; a detector's file has the network
    below the head, for fine-tuning.

    ``export/delta.safetensors`` has only the changes, for ``pretrained.load(..., delta=FILE)`` on top of the weights
    from which the run started. Adapters are merged in the former and kept separate in the latter. ``dtype`` is that of
    the former; "float16" halves it.
    """
    stablehlo.check_serialization()  # first, to avoid an incomplete bundle
    folder = Path(folder).expanduser()
    source = read_facts(folder).get("weights", "random")
    has_source = source == "random" or Path(source).exists()
    if not has_source:
        say(f"no delta is written: the weights from which the run started are missing ({source})")
    task, start, state = restore(config, folder, data=False, weights=has_source)
    path = task.export_weights(folder, start if has_source else None, state, dtype)
    write_bundle(task, folder, int(state.step))
    return path
