"""Train, evaluate or export.

python run.py [--config=configs/FILE.py[:VARIANT]] [--workdir=DIR] [--mode=eval|export] [--config.FIELD=VALUE ...]
"""

import hashlib
import json
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from tl_jax.errors import UserError

DEFAULT = "configs/digits_resnet.py"

CONFIG = config_flags.DEFINE_config_file("config", str(Path(__file__).parent / DEFAULT), "Recipe, with :VARIANT.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/NAME-HASH of the configuration.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "export"], "What to do.")


def main(_: list[str]) -> None:
    """Make one call into ``tl_jax.api``."""
    from tl_jax import api

    logging.set_verbosity(logging.WARNING)  # orbax tells a page about each checkpoint at the level INFO
    config = CONFIG.value
    workdir = Path(WORKDIR.value or default_workdir(config))
    call = {"train": api.run, "eval": api.evaluate, "export": api.export}[MODE.value]
    result = call(config, workdir)
    if MODE.value == "eval":
        print(json.dumps(result, indent=2))


def default_workdir(config) -> str:
    """Return ``runs/NAME-HASH``: the same configuration finds its folder again, another one gets its own."""
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return f"runs/{config.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def parse(argv: list[str]) -> list[str]:
    """Parse the flags, turning what the libraries raise about them into one line."""
    for arg in argv[1:]:
        name, _, value = arg.lstrip("-").partition("=")
        if name == "config" and not Path(value.partition(":")[0]).is_file():
            have = ", ".join(sorted(f"configs/{p.name}" for p in Path(__file__).parent.glob("configs/*_*.py")))
            raise UserError(f"no config file {value.partition(':')[0]!r}; there are {have}")
    try:
        return flags.FLAGS(argv)
    except flags.Error as e:
        raise UserError(f"{e}".replace("\n", "; ")) from None
    except (AttributeError, KeyError, TypeError, IndexError, ValueError) as e:
        raise UserError(f"unknown field or value in the flags: {e}".replace("\n", "; ")) from None


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
