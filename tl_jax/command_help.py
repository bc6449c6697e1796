"""Help of the command line: one screen for ``--help``, and every flag and field for ``--helpfull``.

The short help is a constant text, so that it appears before JAX is imported.
"""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tl_jax.config import recipes_dir

if TYPE_CHECKING:
    from tl_jax.config.options import Field  # which imports JAX

WIDTH = 100  # columns
SCREEN = """\
tl-jax: fine-tune a pretrained network on your data, and measure what pretraining gains.

usage: tl-jax [--config=RECIPE[:VARIANT]] [--mode=MODE] [--workdir=DIR] [--config.FIELD=VALUE ...]
       In a checkout, `python run.py` is the same command. Without flags it trains on digits.

modes, each with an example:
  train    train and test; repeat the command to resume (default)
             tl-jax --config=photos --config.data.dir=PHOTOS --workdir=runs/photos
  eval     test a finished run again, or test it on another data set
             tl-jax --mode=eval --workdir=runs/photos --data=MORE_PHOTOS
  predict  predict for files, folders or texts
             tl-jax --mode=predict --workdir=runs/photos --input=NEW --output=predictions.csv
  explain  draw which pixels decide (Grad-CAM)
             tl-jax --mode=explain --workdir=runs/photos --input=new.jpg
  export   write a bundle for tl_jax, JAX, Keras, torchvision or transformers
             tl-jax --mode=export --workdir=runs/photos
  report   rebuild report.html
             tl-jax --mode=report --workdir=runs/photos
  preview  draw augmented training examples, before training
             tl-jax --mode=preview --config=photos --config.data.dir=PHOTOS
  find_lr  suggest a learning rate, before training
             tl-jax --mode=find_lr --config=flowers_mobilenet --workdir=runs/rates
  play     draw an episode of a trained policy as a GIF
             tl-jax --mode=play --workdir=runs/policy

common flags and fields:
  --config=RECIPE[:VARIANT]  a file, or the name of a shipped recipe (default: digits_resnet)
  --workdir=DIR              folder of the run (default: runs/NAME-HASH)
  --input=INPUT              input to predict or explain: a file, folder or text; repeatable
  --output=FILE              table of predictions, .csv or .jsonl
  --config.data.dir=DIR      folder of the data
  --config.model.name=NAME   network, such as resnet50 or mobilenet_v2
  --config.epochs=N          passes over the training examples
  --config.batch_size=N      examples per step
  --config.optim.lr=RATE     peak learning rate
  --config.seed=N            random seed

recipes:
{recipes}

--helpfull lists all flags and fields. The documentation starts at docs/pages/start.md.
"""


def shows_help(argv: list[str]) -> bool:
    """Return whether the arguments request the short help."""
    return any(argument in ("--help", "-help", "-h", "-?", "--helpshort") for argument in argv[1:])


def shows_full_help(argv: list[str]) -> bool:
    """Return whether the arguments request all flags and fields."""
    return any(argument in ("--helpfull", "-helpfull") for argument in argv[1:])


def examples() -> str:
    """Return the example commands of ``--help``, one per line."""
    return "\n".join(line.strip() for line in SCREEN.splitlines() if line.strip().startswith("tl-jax --"))


def short_help() -> str:
    """Return the text of ``--help``."""
    return SCREEN.format(recipes=_indent(", ".join(sorted(path.stem for path in recipes_dir().glob("[a-z]*.py"))), 2))


def full_help(flags: Mapping[str, str]) -> str:
    """Return the text of ``--helpfull``: the short help, all flags, and all fields by group.

    Args:
        flags: name of a flag -> its meaning.
    """
    from tl_jax.config.schema import PHASE_FIELDS, all_fields  # which import JAX
    from tl_jax.train.task import TASKS

    fields_of_tasks = {kind: cls.fields() for kind, cls in TASKS.items()}
    groups: dict[str, list[str]] = {"": []}
    for path, field in all_fields().items():
        group = path.partition(".")[0] if "." in path else ""
        kinds = [kind for kind, fields in fields_of_tasks.items() if path in fields]
        tasks = kinds if 0 < len(kinds) < len(TASKS) else []
        groups.setdefault(group, []).append(_describe_field(f"--config.{path}", field, tasks))
    groups["phases[i]"] = [
        _describe_field(f"--config.phases[i].{name}", field, []) for name, field in PHASE_FIELDS.items()
    ]
    sections = ["flags:\n" + "\n".join(_entry(f"--{name}", meaning) for name, meaning in flags.items())]
    sections += [f"fields{f' of {name}' if name else ''}:\n" + "\n".join(rows) for name, rows in groups.items()]
    closing = "absl flags also work, such as --pdb_post_mortem, --run_with_profiling and --flagfile=FILE.\n"
    return "\n\n".join([short_help().rstrip(), *sections, closing])


def _describe_field(name: str, field: "Field", tasks: list[str]) -> str:
    """Return the entry of a field: name, default, meaning, choices, and its tasks (none named: all)."""
    choices = [str(choice) for choice in (field.choices() if callable(field.choices) else field.choices) if choice]
    meaning = field.doc + (f"; one of {', '.join(choices)}" if choices else "")
    return _entry(f"{name}={field.default!r}", meaning + (f" [task: {', '.join(tasks)}]" if tasks else ""))


def _entry(head: str, meaning: str) -> str:
    return f"  {head}\n{_indent(meaning, 6)}"


def _indent(text: str, columns: int) -> str:
    """Return ``text`` wrapped to ``WIDTH`` columns, indented by ``columns`` spaces."""
    indent = " " * columns
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
