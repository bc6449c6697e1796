"""Train, evaluate, predict, export, or look at a recipe before it is run.

python run.py [--config=configs/FILE.py[:VARIANT]] [--workdir=DIR] [--mode=MODE] [--config.FIELD=VALUE ...]
"""

import functools
import hashlib
import json
import re
import traceback
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from tl_jax import command
from tl_jax.config import check_known
from tl_jax.errors import UserError, nearest

HERE = Path(__file__).parent
DEFAULT = HERE / "configs" / "digits_resnet.py"
SHARED = ("base", "check", "fields", "kinds", "mechanisms")  # in configs/, but no recipes
STORED = HERE / "configs" / "stored.py"

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, with :VARIANT; by default the embedded one.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/NAME-HASH of the configuration.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "predict", "export", "preview", "find_lr", "play"],
    "train; test a run again; say what it makes of --input; write it for others to load; draw what augmentation does; "
    "look for a learning rate; draw an episode of a policy.",
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Several processes train together; see docs/tpu.md. SLURM, a TPU slice or JAX_* say which."
)
INPUT = flags.DEFINE_multi_string(
    "input", [], "A sentence to predict, with --mode=predict, which may be given many times; or a folder with faces."
)


def main(_: list[str]) -> None:
    """Make one call into ``tl_jax.api``."""
    from tl_jax import api
    from tl_jax.train import hosts
    from tl_jax.train.workdir import finite

    if DISTRIBUTED.value:
        hosts.join()
    logging.set_verbosity(logging.WARNING)  # orbax tells a page about each checkpoint at the level INFO
    config = CONFIG.value
    workdir = Path(WORKDIR.value or default_workdir(config))
    if INPUT.value and MODE.value != "predict":
        raise UserError("--input has an effect with --mode=predict only")
    calls = {"train": api.run, "eval": api.evaluate, "predict": functools.partial(api.predict, inputs=INPUT.value)}
    result = (calls.get(MODE.value) or getattr(api, MODE.value))(config, workdir)
    if MODE.value == "eval":
        print(json.dumps(finite(result), indent=2))


def default_workdir(config) -> str:
    """Return ``runs/NAME-HASH``: the same configuration finds its folder again, another one gets its own."""
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return f"runs/{config.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def parse(argv: list[str]) -> list[str]:
    """Parse the flags, turning what the libraries raise about them into one line."""
    argv = with_recipe(argv)
    for arg in argv[1:]:
        check(arg)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as e:
        raise UserError(f"{e}".replace("\n", "; ")) from None
    except IndexError:
        raise UserError("a flag sets a phase that the recipe does not have; they are counted from phases[0]") from None
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        frames = [f for f in traceback.extract_tb(e.__traceback__) if Path(f.filename).parent.name == "configs"]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "a flag does not fit the configuration"
        raise UserError(f"{where}: {e}".replace("\n", "; ")) from None
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; every option is written --name=value")
    return rest


def with_recipe(argv: list[str]) -> list[str]:
    """Return the arguments with one ``--config=FILE`` among them, FILE as seen from here or from this script.

    Without the flag it is the embedded default, or, to evaluate, predict, export or play, that of the run itself.
    """
    out, values, rest = [argv[0]], {}, iter(argv[1:])
    for arg in rest:
        name, equals, value = arg.lstrip("-").partition("=")
        if name in ("config", "workdir", "mode") and not equals:  # the value is the next argument
            value = next(rest, None)
            if value is None:
                raise UserError(f"--{name} has no value; write --{name}=VALUE")
        if name in ("config", "workdir", "mode"):
            values[name] = value
        else:
            out.append(arg)
    folder = values.get("workdir", "")
    if "config" not in values:
        own = values.get("mode") in ("eval", "predict", "export", "play") and (Path(folder) / "config.json").is_file()
        values["config"] = f"{STORED}:{folder}" if own else str(DEFAULT)
    elif not Path(values["config"].partition(":")[0]).is_file():
        values["config"] = str(HERE / values["config"])
    # The recipe must come before the fields that are set in it.
    return [out[0], *(f"--{name}={value}" for name, value in sorted(values.items())), *out[1:]]


def check(arg: str) -> None:
    """Refuse a configuration file that is not there and a field that does not exist, with the nearest right name."""
    from configs import base

    name, _, value = arg.lstrip("-").partition("=")
    if name == "config" and not (file := Path(value.partition(":")[0])).is_file():
        have = [path.name for path in HERE.glob("configs/[a-z]*.py") if path.stem not in SHARED]
        raise UserError(f"no config file {file}; {nearest(file.name, have)} (in {HERE / 'configs'})")
    if not arg.startswith("--config."):
        return
    path = name.removeprefix("config.")
    if phase := re.fullmatch(r"(phases\[\d+\]\.)(.*)", path):
        check_known(phase[2], base.PHASE_FIELDS, f"config.{phase[1]}")
    elif not any(field.startswith(path + ".") for field in base.FIELDS):
        check_known(path, base.FIELDS)


if __name__ == "__main__":
    command.run(main, flags_parser=parse)
