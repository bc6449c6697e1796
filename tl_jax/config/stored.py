"""Load the configuration of an earlier run from its folder: ``--config=configs/stored.py:RUN_FOLDER``.

    python run.py --config=configs/stored.py:RUN_FOLDER --workdir=DIR --config.seed=1

``--mode=eval --workdir=RUN_FOLDER`` and the other modes but train use it by default.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from tl_jax.config import renames, schema
from tl_jax.train import workdir
from tl_jax.train.task import TASKS
from tl_jax.utils import plugins
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import read_json


def get_config(folder: str = ""):
    """Return the configuration in ``folder/config.json``."""
    path = Path(folder).expanduser() / "config.json"
    if not path.is_file():
        raise UserError(f"no {path}; pass --config=configs/stored.py:RUN_FOLDER")
    modules: Sequence[str] = ()
    with contextlib.suppress(UserError):  # reported where the facts are needed
        modules = workdir.stored_facts(path.parent).get("modules") or ()
    plugins.check_imported(modules, path.parent)
    action = "pass --config=RECIPE with the fields of that run"
    content = renames.rename_fields(_lists_to_tuples(read_json(path, action)))
    task = content.get("task", schema.DEFAULT_TASK)
    if not isinstance(task, str) or task not in TASKS:
        raise UserError(f"{path}: unknown task {task!r}; {action}")
    config, known, others = schema.get_config(task), TASKS[task].fields(), schema.all_fields()
    values = schema.flatten_config(content, others)
    for field in [field for field in values if field not in known]:
        # Older files have the fields of all tasks; and penalties may come from modules that are not imported.
        if field not in others and not (field.startswith("regularize.") and values[field] == 0):
            raise UserError(f"{path}: unknown field {field}, perhaps of another version; {action}")
        del values[field]
    try:
        with config.unlocked():  # model.options holds any argument of the model class
            config.update(ConfigDict(traverse_util.unflatten_dict(values, sep=".")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); {action}") from None
    return config


def _lists_to_tuples(content: Any) -> Any:
    """Convert the lists of JSON to the tuples of configurations."""
    if isinstance(content, dict):
        return {key: _lists_to_tuples(value) for key, value in content.items()}
    return tuple(map(_lists_to_tuples, content)) if isinstance(content, list) else content
