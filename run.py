"""Train, evaluate or export.

python run.py [--config=configs/FILE.py[:VARIANT]] [--workdir=DIR] [--mode=eval|export] [--config.FIELD=VALUE ...]
"""

import hashlib
import json
import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from tl_jax.errors import UserError, nearest

HERE = Path(__file__).parent
DEFAULT = HERE / "configs" / "digits_resnet.py"

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, with :VARIANT; by default the embedded one.")
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
        check(arg)
    if not any(re.match(r"--?config(=|$)", arg) for arg in argv[1:]):
        argv = [argv[0], f"--config={DEFAULT}", *argv[1:]]
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as e:
        raise UserError(f"{e}".replace("\n", "; ")) from None
    except (AttributeError, KeyError, TypeError, IndexError, ValueError) as e:
        raise UserError(f"a flag does not fit the configuration: {e}".replace("\n", "; ")) from None
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; every option is written --name=value")
    return rest


def check(arg: str) -> None:
    """Refuse a configuration file that is not there and a field that does not exist, with the nearest right name."""
    from configs import base

    name, _, value = arg.lstrip("-").partition("=")
    if name == "config" and not Path(value.partition(":")[0]).is_file():
        have = sorted(f"configs/{path.name}" for path in HERE.glob("configs/[a-z]*.py") if path.stem != "base")
        raise UserError(f"no config file {value.partition(':')[0]!r}; {nearest(value.partition(':')[0], have)}")
    if not arg.startswith("--config."):
        return
    path = name.removeprefix("config.")
    if phase := re.fullmatch(r"phases\[\d+\]\.(.*)", path):
        if phase[1] not in base.PHASE_FIELDS:
            raise UserError(f"unknown field config.{path}; {nearest(phase[1], base.PHASE_FIELDS)}")
    elif not any(field == path or field.startswith(path + ".") for field in base.FIELDS):
        if not path.startswith("model.options."):
            raise UserError(f"unknown field config.{path}; {nearest(path, base.FIELDS)}")


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
