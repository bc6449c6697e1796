"""Names of version 0.1 that people have in their code, and where the function of a name that a file has, too, is."""

import importlib
import subprocess
import sys
import types

import pytest

from tests.conftest import ROOT
from tl_jax import models, pretrained, training, transferability
from tl_jax.export.bundle import export
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    "old,name,same",
    [
        ("tl_jax.api", "run", training.train),
        ("tl_jax.api", "export", export),
        ("tl_jax.errors", "UserError", UserError),
        ("tl_jax.distance", "logme", transferability.logme),
        ("tl_jax.distance", "report", transferability.report),
    ],
)
def test_old_modules_have_the_new_objects_and_say_where_they_are(old, name, same):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is "):
        module = importlib.import_module(old)
    assert getattr(module, name) is same


def test_names_that_stay():
    assert callable(pretrained.load) and callable(models.create) and models.names()


def test_the_package_gives_the_function_where_a_file_has_its_name():
    for name in transferability.__all__:
        assert not isinstance(getattr(transferability, name), types.ModuleType), name
    assert not isinstance(pretrained.load, types.ModuleType)


@pytest.mark.parametrize("name", ["still_norms", "rotation_beside", "simclr_beside", "simsiam_beside", "words_beside"])
def test_methods_keep_their_names_where_functions_have_others(name):
    from tl_jax.transfer import methods

    assert getattr(methods, name) is methods.METHODS[name].change and methods.METHODS[name].name == name


@pytest.mark.parametrize("module", ["tl_jax.weights.convert", "experiments.transfer_distance"])
def test_old_commands_show_their_help(module):
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "--input" in done.stdout or "--workdir" in done.stdout


@pytest.mark.parametrize("line", ["from configs import base", "from configs.fields import FIELDS"])
def test_a_recipe_with_the_old_import_is_told_the_new_one(tmp_path, line):
    recipe = tmp_path / "mine.py"
    recipe.write_text(f"{line}\n\ndef get_config():\n    return base.get_config()\n")
    command = [sys.executable, "run.py", f"--config={recipe}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "from tl_jax.config import recipe" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_names_of_the_last_release_work_with_a_warning():
    from tl_jax import export as package
    from tl_jax import models
    from tl_jax.models.registry import MODELS
    from tl_jax.models.resnet import ResNet
    from tl_jax.transfer import methods

    with pytest.warns(DeprecationWarning, match="MECHANISMS is deprecated"):
        assert methods.MECHANISMS is methods.METHODS
    with pytest.warns(DeprecationWarning, match="tl_jax.export.export is now tl_jax.export.bundle.export"):
        assert package.export is export
    with MODELS.temporary(), pytest.warns(DeprecationWarning, match="use register_model"):
        models.MODELS["small"] = (ResNet, {"depths": (1, 1, 1, 1)})
        assert models.create("small", 3).depths == (1, 1, 1, 1)
    with pytest.raises(AttributeError):
        package.no_such_name  # noqa: B018
