"""Runs of every task whose numbers stop being finite end with one line that says where, and leave no summary."""

import pytest

from configs import cartpole_ppo, detection_voc, faces_verification
from tests.tasks.test_text import TOKENS, WORDS, folder  # noqa: F401 - a fixture
from tests.tasks.test_text import configure as configure_text
from tl_jax import training
from tl_jax.config import recipe
from tl_jax.utils.errors import Diverged

pytestmark = pytest.mark.slow
WILD = (("optim.name", "sgd"), ("optim.lr", 3e37), ("optim.clip_norm", 0.0), ("log_every", 1000))
SMALL = (("model.name", "resnet8"), ("init.source", "tl_jax"), ("input.size", 32), ("eval_batch_size", 32))
RECIPES = {
    "faces": lambda: recipe.override(faces_verification.get_config("smoke"), (("eval_batch_size", 50), *WILD)),
    "detection": lambda: recipe.override(detection_voc.get_config("smoke"), (*SMALL, *WILD)),
    "policy": lambda: recipe.override(
        cartpole_ppo.get_config("smoke"), (("model.options", {"widths": (8, 8)}), *WILD[1:])
    ),
}
NEXT = "lower config.optim.lr .*check the data"


@pytest.mark.parametrize("task", RECIPES)
def test_a_run_that_diverges_ends(tmp_path, task):
    with pytest.raises(Diverged, match=rf"(step|validation after step) \d+ .*{NEXT}"):
        training.train(RECIPES[task](), tmp_path)
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("changes", [(), TOKENS, WORDS], ids=["text", "tokens", "masked"])
def test_a_run_on_texts_that_diverges_ends(folder, tmp_path, changes):  # noqa: F811
    config = configure_text(folder, *changes, *WILD, ("epochs", 1.0))
    with pytest.raises(Diverged, match=rf"(step|validation after step) \d+ .*{NEXT}"):
        training.train(config, tmp_path)
    assert not (tmp_path / "summary.json").exists()
