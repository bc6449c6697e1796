"""The configuration of an earlier run, from its folder: ``--config=configs/stored.py:RUN_FOLDER``.

    python run.py --config=configs/stored.py:RUN_FOLDER --workdir=DIR --config.seed=1

``run.py --mode=eval --workdir=RUN_FOLDER`` and ``--mode=export`` use it by themselves.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs import base
from tl_jax.errors import UserError


def get_config(folder: str = ""):
    """Return the configuration that ``folder/config.json`` holds."""
    path = Path(folder).expanduser() / "config.json"
    if not path.is_file():
        raise UserError(f"no {path}; write --config=configs/stored.py:RUN_FOLDER")
    config = base.get_config()
    try:
        with config.unlocked():
            config.update(ConfigDict(json.loads(path.read_text(encoding="utf-8"), object_hook=_tuples)))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); pass --config=RECIPE with the fields of that run") from None
    return config


def _tuples(content: dict) -> dict:
    """JSON has lists only; configurations are made of tuples."""

    def turn(value):
        return tuple(turn(v) for v in value) if isinstance(value, list) else value

    return {key: turn(value) for key, value in content.items()}
