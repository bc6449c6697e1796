"""The command ``tl-jax``, and ``python run.py``: parses the flags and calls one method of a ``Learner``.

The help texts are in tl_jax/command_help.py.
"""

import ast
import contextlib
import functools
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

from tl_jax import command_help
from tl_jax.config import recipes_dir
from tl_jax.utils import command
from tl_jax.utils.command import show_elapsed
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.extras import MissingExtra, require_extra

RECIPES_DIR = recipes_dir()
DEFAULT_RECIPE = RECIPES_DIR / "digits_resnet.py"
PACKAGE = Path(__file__).parent
CONFIG_DIR = PACKAGE / "config"
STORED_RECIPE = CONFIG_DIR / "stored.py"
MODES = ("train", "eval", "predict", "export", "preview", "find_lr", "play", "explain", "report")
INPUT_MODES = ("predict", "explain")  # modes that take --input
ASKING_MODES = (*INPUT_MODES, "play")  # modes that run a trained network, or an export
BUNDLE_FILE, BUNDLE_RUN = "bundle.json", "run"  # of an export: its description, and the folder of the run's files
LOADING = "loading JAX and the recipe"
INCOMPLETE = 1  # exit status if some inputs of --mode=predict could not be read


def main() -> None:
    """Run the command line."""
    if command_help.shows_help(sys.argv):
        command.show(command_help.short_help())
        return
    define_flags()
    command.run(run_mode, flags_parser=parse_flags)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the flags."""
    config_flags.DEFINE_config_file("config", None, "Recipe[:VARIANT]; default digits_resnet.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder of the run; default runs/NAME-HASH.", flag_values=values)
    flags.DEFINE_enum("mode", "train", MODES, "Action; see the modes above.", flag_values=values)
    flags.DEFINE_bool(
        "distributed",
        False,
        "Train with several processes, described by SLURM, a TPU slice or JAX_* variables; see docs/pages/devices.md.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "input",
        [],
        "Input of --mode=predict and explain: an image, a folder of images, a sentence, a file of texts, or a table "
        "with a column file. Repeatable.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "data",
        None,
        "Another labelled data set with the classes of the run; --mode=eval evaluates all its examples and writes "
        "evaluations/NAME.json.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output", None, "Table of --mode=predict, .csv or .jsonl, with one row per input.", flag_values=values
    )
    flags.DEFINE_integer(
        "top", None, "Write only the N most likely classes to --output.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_bool(
        "embeddings", False, "Write the features of each input to a file next to --output.", flag_values=values
    )
    flags.DEFINE_multi_string(  # read and removed by ``command.run`` before
        "import", [], "Module that registers your own networks, tasks, .... Repeatable.", flag_values=values
    )


def run_mode(_: list[str]) -> int:
    """Call the method of the ``Learner`` that the flags select, and return the exit status."""
    with show_elapsed(LOADING):
        if flags.FLAGS.mode == "train":
            import_tensorboard()
        from tl_jax.config.schema import default_workdir
        from tl_jax.learner import open_learner
        from tl_jax.train import sharding
        from tl_jax.train.workdir import silence_orbax

    args = flags.FLAGS
    if args.distributed:
        sharding.join_processes()
    logging.set_verbosity(logging.WARNING)  # orbax logs a page per checkpoint at level INFO
    silence_orbax()
    workdir = Path(args.workdir or default_workdir(args.config))
    _check_flags(args, workdir)
    with contextlib.nullcontext() if args.mode == "train" else show_elapsed(f"--mode={args.mode} of {workdir}"):
        learner = open_learner(args.config, workdir)
        if args.mode == "predict":
            return _predict(learner, args)
        if args.mode == "eval":
            _evaluate(learner, args.data)
        elif args.mode == "explain":
            learner.explain(args.input)
        else:
            getattr(learner, "fit" if args.mode == "train" else args.mode)()
    return 0


def _check_flags(args: Any, workdir: Path) -> None:
    """Refuse flags that the mode does not use, and modes that an export lacks."""
    if args.input and args.mode not in INPUT_MODES:
        raise UserError(f"--input has an effect with --mode={' and '.join(INPUT_MODES)} only")
    if args.data and args.mode != "eval":
        raise UserError("--data has an effect with --mode=eval only; training takes --config.data.dir")
    if args.output and args.mode != "predict":
        raise UserError("--output has an effect with --mode=predict only")
    if (args.top or args.embeddings) and not args.output:
        raise UserError("--top and --embeddings apply to --output; pass --output=FILE.csv")
    if (workdir / BUNDLE_FILE).is_file() and not (args.mode in ASKING_MODES or args.data):
        raise UserError(
            f"{workdir} is an export, which has --mode={', '.join(ASKING_MODES)}, and eval with --data; for other "
            "modes pass the --workdir of its run"
        )


def _predict(learner: Any, args: Any) -> int:
    """Show the predictions, or write them to ``--output``; return ``INCOMPLETE`` if an input is damaged, else 0."""
    if args.output:
        damaged = learner.write_predictions(args.input, args.output, args.top, args.embeddings).damaged
    else:
        damaged = any("error" in row for row in learner.show_predictions(args.input))
    return INCOMPLETE if damaged else 0


def _evaluate(learner: Any, data: str | None) -> None:
    """Print the metrics of the run, or of another labelled data set and of the run, as JSON."""
    from tl_jax.final_report import write_final_report
    from tl_jax.train.workdir import finite

    if not data:
        print(json.dumps(finite(learner.test()), indent=2))
        print(write_final_report(learner.workdir), file=sys.stderr)  # stdout is JSON
        return
    metrics, own = learner.evaluate(data), learner.summary
    shown = {"metrics": dict(metrics), "examples_evaluated": metrics.examples, "intervals95": metrics.intervals}
    shown["run"] = {name: own.get(name) for name in ("metrics", "examples_evaluated")}
    print(json.dumps(finite(shown), indent=2))


def import_tensorboard() -> None:
    """Import tensorboardX without PyTorch, which it imports if installed (2 s, 0.7 GB)."""
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    with contextlib.suppress(MissingExtra):  # noqa: SIM117  # the test of the extras reads single ones
        with require_extra("tracking"):
            import tensorboardX  # noqa: F401
    if hide_torch:
        del sys.modules["torch"]


def parse_flags(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parse the flags into ``values``; turn errors of the libraries into one line."""
    if command_help.shows_full_help(argv):
        command.show(command_help.full_help(flag_meanings(values)))
        sys.exit()
    argv = with_recipe_flag(argv)
    original_argv = sys.argv
    try:
        with show_elapsed(LOADING), _collect_renamed_fields():  # a recipe imports most of the library
            argv = [_current_flag_name(arg) for arg in argv]
            phase_args = [arg for arg in argv if arg.lstrip("-").startswith("config.phases[")]
            other_args = [arg for arg in argv if arg not in phase_args]
            check_fields(argv)
            sys.argv = other_args  # ml_collections looks here for fields that are set
            remaining = values(other_args)
            for arg in phase_args:
                set_in_phase(values["config"].value, arg)
    except flags.Error as e:
        raise UserError(f"{e}".replace("\n", "; ")) from None
    except ImportError as e:
        if e.name not in ("configs", "configs.base", "configs.fields", "configs.mechanisms"):
            raise
        raise UserError(
            f"{e}: recipes import `from tl_jax.config import recipe` since 0.2 (fields: tl_jax.config.schema, methods: "
            "tl_jax.transfer.methods); change the import in the recipe"
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        location = _blamed_line(e) or "a flag does not match the configuration"
        raise UserError(f"{location}: {e}".replace("\n", "; ")) from None
    finally:
        sys.argv = original_argv
    if remaining[1:]:
        raise UserError(f"unexpected argument {remaining[1]!r}; write options as --name=value")
    return remaining


def flag_meanings(values: flags.FlagValues) -> dict[str, str]:
    """Return name -> meaning of the flags of ``define_flags``."""
    defined = values.flags_by_module_dict()[__name__]
    return {flag.name: (flag.help or "").partition(";\n")[0] for flag in defined}  # absl appends a note on repetition


def _blamed_line(error: Exception) -> str:
    """Return "FILE:LINE" of the recipe or user module that raised an error; "" if it arose elsewhere."""
    others = {"ml_collections", "absl", "importlib"}
    program = getattr(sys.modules["__main__"], "__file__", None)

    def can_be_blamed(file: Path) -> bool:
        if file in RECIPES_DIR.glob("*.py") or file == STORED_RECIPE:
            return True
        return file.is_file() and str(file) != program and PACKAGE not in file.parents and not others & set(file.parts)

    frames = [f for f in traceback.extract_tb(error.__traceback__) if can_be_blamed(Path(f.filename))]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


@contextlib.contextmanager
def _collect_renamed_fields() -> Iterator[None]:
    """Collect the warnings about old field names into one line; show other warnings afterwards."""
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


def _current_flag_name(arg: str) -> str:
    """Return a flag ``--config.FIELD`` or ``--config.FIELD=VALUE`` with the current name of the field."""
    from tl_jax.config import renames

    name, equals, value = arg.partition("=")
    _, prefix, path = name.partition("--config.")
    return f"{prefix}{renames.current_name(path)}{equals}{value}" if prefix else arg


def set_in_phase(config: Any, arg: str) -> None:
    """Apply ``--config.phases[I].FIELD=VALUE``; ml_collections can only set fields that the phase already has."""
    from tl_jax.config import recipe

    name, equals, value = arg.lstrip("-").partition("=")
    index, field = recipe.PHASE_FIELD_NAME.fullmatch(name.removeprefix("config.")).groups()  # pyright: ignore
    default = recipe.PHASE_FIELDS[field].default
    if not equals:
        raise UserError(f"--{name} has no value; write --{name}=VALUE")
    try:
        parsed = value if isinstance(default, str) else ast.literal_eval(value)
    except (ValueError, SyntaxError):
        expected = "tuple" if isinstance(default, tuple) else "number"
        raise UserError(f"{name}={value!r} is no {expected} ({recipe.PHASE_FIELDS[field].doc})") from None
    recipe.set_in_phase(config, int(index), field, parsed)


def with_recipe_flag(argv: list[str]) -> list[str]:
    """Return the arguments with one ``--config=FILE``, a file or a shipped recipe.

    Without the flag it is the default recipe, or, for every mode but train, the stored one of the run.
    """
    arguments, values, remaining = [argv[0]], {}, iter(argv[1:])
    for arg in remaining:
        name, equals, value = arg.lstrip("-").partition("=")
        if name in ("config", "workdir", "mode") and not equals:  # the value is the next argument
            value = next(remaining, None)
            if value is None:
                raise UserError(f"--{name} has no value; write --{name}=VALUE")
        if name in ("config", "workdir", "mode"):
            values[name] = str(Path(value).expanduser()) if name == "workdir" else value
        else:
            arguments.append(arg)
    folder = values.get("workdir", "")
    if (Path(folder) / BUNDLE_FILE).is_file():
        folder = str(Path(folder) / BUNDLE_RUN)
    if "config" not in values:
        has_config = values.get("mode", "train") != "train" and (Path(folder) / "config.json").is_file()
        values["config"] = f"{STORED_RECIPE}:{folder}" if has_config else str(DEFAULT_RECIPE)
    else:
        values["config"] = find_recipe(values["config"])
    # The recipe must precede the fields that are set in it.
    return [arguments[0], *(f"--{name}={value}" for name, value in sorted(values.items())), *arguments[1:]]


def find_recipe(recipe: str) -> str:
    """Return ``FILE:VARIANT``: an existing file, or the recipe shipped as NAME, NAME.py or configs/NAME.py."""
    file, separator, variant = recipe.partition(":")
    if not Path(file).is_file():
        name = Path(file).name if Path(file).parent.name in ("", "configs") else file
        file = str(
            (CONFIG_DIR if name == STORED_RECIPE.name else RECIPES_DIR)
            / (name if name.endswith(".py") else f"{name}.py")
        )
    return file + separator + variant


def check_fields(argv: list[str]) -> None:
    """Raise a UserError with the nearest names for a missing recipe, or fields that its task does not have."""
    from tl_jax.config import recipe, schema

    config_arg = next(arg for arg in argv if arg.startswith("--config="))
    file = Path(config_arg.removeprefix("--config=").partition(":")[0])
    if not file.is_file():
        recipe_names = [path.name for path in RECIPES_DIR.glob("[a-z]*.py")]
        raise UserError(f"no config file {file}; {nearest(file.name, recipe_names)} (in {RECIPES_DIR})")
    paths = [arg.partition("=")[0].removeprefix("--config.") for arg in argv if arg.startswith("--config.")]
    for path in paths:
        if path == "task":
            names = ", ".join(sorted(file.stem for file in RECIPES_DIR.glob("[a-z]*.py")))
            raise UserError(f"config.task is set by the recipe; choose a recipe with this task, with --config={names}")
        if phase := re.fullmatch(r"(phases\[\d+\]\.)(.*)", path):
            schema.check_known(phase[2], recipe.PHASE_FIELDS, f"config.{phase[1]}")
    for path in (path for path in paths if not path.startswith("phases[")):
        if not any(field.startswith(path + ".") for field in schema.all_fields()):  # a whole group
            schema.check_of_task(path, _read_recipe(config_arg).task)


@functools.cache
def _read_recipe(config_arg: str) -> Any:
    """Return the configuration of ``--config=FILE:VARIANT``, before its fields are set."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    original_argv, sys.argv = sys.argv, [sys.argv[0], config_arg]
    try:
        values(sys.argv)
    finally:
        sys.argv = original_argv
    return values["config"].value
