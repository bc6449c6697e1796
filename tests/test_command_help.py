"""``--help`` fits a screen and shows every mode; ``--helpfull`` shows every flag and field.

tests/test_documentation.py parses the examples.
"""

import re
import subprocess
import sys

import pytest
from absl import flags

from tests.conftest import ROOT
from tl_jax import cli, command_help
from tl_jax.config import recipes_dir, schema
from tl_jax.config.schema import all_fields, check_known

pytestmark = pytest.mark.fast
HELP = command_help.short_help()


def test_it_fits_a_screen():
    lines = HELP.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= command_help.WIDTH


def test_each_mode_has_one_example():
    examples = [line.split()[1:] for line in command_help.examples().splitlines()]
    shown = [next((word.removeprefix("--mode=") for word in words if "--mode=" in word), "train") for words in examples]
    assert sorted(shown) == sorted(cli.MODES)
    assert re.findall(r"^  (\w+) +[a-z]", HELP.partition("common flags")[0], re.M) == shown


def test_flags_fields_and_recipes_that_it_shows_exist():
    values = flags.FlagValues()
    cli.define_flags(values)
    shown = re.findall(r"^  --([\w.]+)[=\[]", HELP, re.M)
    assert len(shown) == 10
    for name in shown:
        if name.startswith("config."):
            check_known(name.removeprefix("config."), all_fields())
        else:
            assert name in values
    for recipe in recipes_dir().glob("[a-z]*.py"):
        assert recipe.stem in HELP


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_it_does_not_wait_for_jax(flag):
    code = "import sys; from tl_jax import cli; cli.main(); assert not {'jax', 'flax'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, flag], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == HELP, done.stderr


def test_the_full_help_has_every_flag_and_field():
    done = subprocess.run([sys.executable, "run.py", "--helpfull"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fields = re.findall(r"^  --config\.([\w.\[\]]+)=", done.stdout.removeprefix(HELP.rstrip()), re.M)
    assert sorted(fields) == sorted([*all_fields(), *(f"phases[i].{name}" for name in schema.PHASE_FIELDS)])
    groups = re.findall(r"^fields of (.*):$", done.stdout, re.M)
    assert len(groups) == len(set(groups)) and {"data", "optim", "rl", "phases[i]"} <= set(groups)
    assert set(re.findall(r"^  --(\w+)$", done.stdout, re.M)) > {
        "config",
        "mode",
        "data",
        "top",
        "embeddings",
        "import",
    }
    assert "repeat this option" not in done.stdout and max(map(len, done.stdout.splitlines())) <= command_help.WIDTH
