"""Train, evaluate, predict, export, or look at a recipe before it is run.

tl-jax [--config=RECIPE[:VARIANT]] [--workdir=DIR] [--mode=MODE] [--config.FIELD=VALUE ...]

RECIPE is a file, or the name of one that is shipped, such as digits_resnet. ``python run.py`` is the same command.
"""

import ast
import contextlib
import hashlib
import json
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from tl_jax.config import recipes_dir
from tl_jax.config.schema import check_known
from tl_jax.utils import command
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.waiting import show_elapsed

RECIPES = recipes_dir()
DEFAULT = RECIPES / "digits_resnet.py"
CONFIG = Path(__file__).parent / "config"
STORED = CONFIG / "stored.py"
MODES = ("train", "eval", "predict", "export", "preview", "find_lr", "play", "explain", "report")
ASKING = ("predict", "explain")  # modes that take --input
LOADING = "loading JAX and the recipe"
INCOMPLETE = 1  # exit status where predictions are written, but some files could not be read
WITH_INPUT = "A sentence, picture or folder of pictures, for --mode=predict or explain; may be given many times."


def main() -> None:
    """Run the command: what ``tl-jax`` and ``run.py`` call."""
    define()
    sys.modules["__main__"].__doc__ = __doc__  # which --help shows
    command.run(call, flags_parser=parse)


def define(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the flags, as key flags of the program whichever it is, so that --help lists them."""
    config_flags.DEFINE_config_file(
        "config", None, "Recipe, with :VARIANT; by default the embedded one.", flag_values=values
    )
    flags.DEFINE_string(
        "workdir", None, "Folder of the run; by default runs/NAME-HASH of the configuration.", flag_values=values
    )
    flags.DEFINE_enum(
        "mode",
        "train",
        MODES,
        "train; test a run again; say what it makes of --input; write it for others to load; draw what training "
        "sees; look for a learning rate; draw an episode of a policy; draw where in the pictures of --input it looks; "
        "write the page of its results again.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "distributed",
        False,
        "Several processes train together; see docs/tpu.md. SLURM, a TPU slice or JAX_* say which.",
        flag_values=values,
    )
    flags.DEFINE_multi_string("input", [], WITH_INPUT, flag_values=values)
    for name in ("config", "workdir", "mode", "distributed", "input"):
        values.register_key_flag_for_module(sys.argv[0], values[name])


def call(_: list[str]) -> int:
    """Make one call into ``tl_jax.api``, as the flags say, and return the exit status."""
    with show_elapsed(LOADING):
        from tl_jax import api
        from tl_jax import api as api_module
        from tl_jax.train import sharding
        from tl_jax.train import workdir as workdir_module
        from tl_jax.train.workdir import finite

    given = flags.FLAGS
    if given.distributed:
        sharding.join_processes()
    logging.set_verbosity(logging.WARNING)  # orbax tells a page about each checkpoint at the level INFO
    workdir_module.silence_orbax()
    config = given.config
    workdir = Path(given.workdir or default_workdir(config))
    if given.input and given.mode not in ASKING:
        raise UserError(f"--input has an effect with --mode={' and '.join(ASKING)} only")
    called = getattr(api, {"train": "run", "eval": "evaluate"}.get(given.mode, given.mode))
    with contextlib.nullcontext() if given.mode == "train" else show_elapsed(f"--mode={given.mode} of {workdir}"):
        result = called(config, workdir, **({"inputs": given.input} if given.mode in ASKING else {}))
    if given.mode == "eval":
        print(json.dumps(finite(result), indent=2))
        api_module.at_the_end(workdir, sys.stderr)  # what goes to stdout is JSON
    return INCOMPLETE if given.mode == "predict" and any("error" in row for row in result) else 0


def default_workdir(config) -> str:
    """Return ``runs/NAME-HASH``: the same configuration finds its folder again, another one gets its own."""
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return f"runs/{config.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def parse(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parse the flags into ``values``, turning what the libraries raise about them into one line."""
    argv = with_recipe(argv)
    given = sys.argv
    try:
        with show_elapsed(LOADING), _old_names_in_a_line():  # a recipe imports most of what training needs
            argv = [_under_todays_name(arg) for arg in argv]
            in_phases = [arg for arg in argv if arg.lstrip("-").startswith("config.phases[")]
            rest_of_argv = [arg for arg in argv if arg not in in_phases]
            for arg in argv[1:]:
                check(arg)
            sys.argv = rest_of_argv  # where the flag of the recipe looks for the fields that are set
            rest = values(rest_of_argv)
            for arg in in_phases:
                set_in_phase(values["config"].value, arg)
    except flags.Error as e:
        raise UserError(f"{e}".replace("\n", "; ")) from None
    except ImportError as e:
        if e.name not in ("configs", "configs.base", "configs.fields", "configs.mechanisms"):
            raise
        raise UserError(
            f"{e}: what recipes start from is `from tl_jax.config import recipe` now, fields are in "
            "tl_jax.config.fields, methods in tl_jax.transfer.methods; change the import in the recipe"
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        frames = [f for f in traceback.extract_tb(e.__traceback__) if Path(f.filename).parent in (RECIPES, CONFIG)]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "a flag does not fit the configuration"
        raise UserError(f"{where}: {e}".replace("\n", "; ")) from None
    finally:
        sys.argv = given
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; every option is written --name=value")
    return rest


@contextlib.contextmanager
def _old_names_in_a_line() -> Iterator[None]:
    """Say in one line which fields were used under old names; other warnings are shown as ever, afterwards."""
    from tl_jax.config.renames import RenamedField

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RenamedField)
        yield
    names: dict[str, str] = {}
    for warning in caught:
        if isinstance(warning.message, RenamedField):
            names |= warning.message.names
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    if names:
        print(f"WARNING: {RenamedField(names)}", file=sys.stderr)


def _under_todays_name(arg: str) -> str:
    """Return a flag ``--config.FIELD`` or ``--config.FIELD=VALUE`` under the field's name of today."""
    from tl_jax.config import renames

    name, equals, value = arg.partition("=")
    _, prefix, path = name.partition("--config.")
    return f"{prefix}{renames.current_name(path)}{equals}{value}" if prefix else arg


def set_in_phase(config: Any, arg: str) -> None:
    """Set what ``--config.phases[I].FIELD=VALUE`` says; the library's own flags know only the fields that are there."""
    from tl_jax.config import recipe

    name, equals, value = arg.lstrip("-").partition("=")
    index, field = recipe.PHASE_FIELD_NAME.fullmatch(name.removeprefix("config.")).groups()  # pyright: ignore
    default = recipe.PHASE_FIELDS[field].default
    if not equals:
        raise UserError(f"--{name} has no value; write --{name}=VALUE")
    try:
        parsed = value if isinstance(default, str) else ast.literal_eval(value)
    except (ValueError, SyntaxError):
        kind = "tuple" if isinstance(default, tuple) else "number"
        raise UserError(f"{name}={value!r} is no {kind} ({recipe.PHASE_FIELDS[field].doc})") from None
    recipe.set_in_phase(config, int(index), field, parsed)


def with_recipe(argv: list[str]) -> list[str]:
    """Return the arguments with one ``--config=FILE`` among them: a file as seen from here, or one that is shipped.

    Without the flag it is the embedded default, or, for every mode but train, that of the run itself.
    """
    out, values, rest = [argv[0]], {}, iter(argv[1:])
    for arg in rest:
        name, equals, value = arg.lstrip("-").partition("=")
        if name in ("config", "workdir", "mode") and not equals:  # the value is the next argument
            value = next(rest, None)
            if value is None:
                raise UserError(f"--{name} has no value; write --{name}=VALUE")
        if name in ("config", "workdir", "mode"):
            values[name] = str(Path(value).expanduser()) if name == "workdir" else value
        else:
            out.append(arg)
    folder = values.get("workdir", "")
    if "config" not in values:
        own = values.get("mode", "train") != "train" and (Path(folder) / "config.json").is_file()
        values["config"] = f"{STORED}:{folder}" if own else str(DEFAULT)
    else:
        values["config"] = recipe(values["config"])
    # The recipe must come before the fields that are set in it.
    return [out[0], *(f"--{name}={value}" for name, value in sorted(values.items())), *out[1:]]


def recipe(given: str) -> str:
    """Return ``FILE:VARIANT``: a file that is there, or the recipe shipped as NAME, NAME.py or configs/NAME.py."""
    file, colon, variant = given.partition(":")
    if not Path(file).is_file():
        name = Path(file).name if Path(file).parent.name in ("", "configs") else file
        file = str((CONFIG if name == STORED.name else RECIPES) / (name if name.endswith(".py") else f"{name}.py"))
    return file + colon + variant


def check(arg: str) -> None:
    """Refuse a configuration file that is not there and a field that does not exist, with the nearest right name."""
    from tl_jax.config import recipe

    name, _, value = arg.lstrip("-").partition("=")
    if name == "config" and not (file := Path(value.partition(":")[0])).is_file():
        have = [path.name for path in RECIPES.glob("[a-z]*.py")]
        raise UserError(f"no config file {file}; {nearest(file.name, have)} (in {RECIPES})")
    if not arg.startswith("--config."):
        return
    path = name.removeprefix("config.")
    if phase := re.fullmatch(r"(phases\[\d+\]\.)(.*)", path):
        check_known(phase[2], recipe.PHASE_FIELDS, f"config.{phase[1]}")
    elif not any(field.startswith(path + ".") for field in recipe.FIELDS):
        check_known(path, recipe.FIELDS)
