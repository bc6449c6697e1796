"""Numbers that are not finite end an evaluation, in any split and whatever a task predicts."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import tiny
from tl_jax.data import loader
from tl_jax.metrics import Evaluation
from tl_jax.train import evaluate
from tl_jax.utils.errors import Diverged

pytestmark = pytest.mark.fast
VARIABLES = {"params": {}}


def task(predict=None, judge=None, **values):
    """Return a task whose metrics are means of what stands in the examples."""

    def sums(variables, batch):
        return {name: (batch["inputs"][:, 0].sum() * value, batch["mask"].sum()) for name, value in values.items()}

    return tiny.task().replace(metrics=sums, outputs=predict, evaluate=judge, evaluates_outputs=judge is not None)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_metric_that_is_not_finite_names_the_split(part, value):
    whole = task(accuracy=1.0, loss=value)
    if part == "train":
        whole = whole.replace(eval_batches=lambda _: loader.eval_batches(tiny.data(), 8))
    with pytest.raises(Diverged, match=f"the {part} split: loss is .*; lower config.optim.lr .*check the data"):
        evaluate.evaluate(whole, VARIABLES, part)


PREDICTIONS = {
    "classes": lambda image: image[:, :3],
    "boxes": lambda image: image[:, :6].reshape(-1, 1, 6),
    "pairs": lambda image: {"first": jnp.zeros(len(image)), "second": image.astype(jnp.bfloat16)},
}


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_predictions_that_are_nan_are_not_judged(kind):
    """The sums may be finite all the same: people who are tested have no loss."""

    def predict(variables, batch):
        return PREDICTIONS[kind](jnp.where(jnp.arange(len(batch["label"]))[:, None] == variables["nan"], jnp.nan, 1.0)
                                 * jnp.ones(batch["inputs"].shape))  # fmt: skip

    judged = []
    whole = task(predict, lambda found, seen: judged.append(found) or Evaluation({}, {}), accuracy=1.0)
    evaluate.evaluate(whole, {"nan": jnp.asarray(-1)}, "test")
    assert len(judged) == 1
    evaluate.evaluate(whole.replace(eval_batches=lambda _: padded()), {"nan": jnp.asarray(7)}, "test")
    assert len(judged) == 2  # the last row is padding
    with pytest.raises(Diverged, match="the test split: network's output is nan"):
        evaluate.evaluate(whole, {"nan": jnp.asarray(2)}, "test")
    assert len(judged) == 2


def padded():
    return loader.eval_batches(tiny.data(7), 8)


def test_what_a_judge_could_not_measure_is_no_error():
    whole = task(lambda v, b: b["inputs"], lambda *_: Evaluation({"eer": 0.5}, {}, {"auc": "needs both"}), accuracy=1.0)
    assert evaluate.evaluate(whole, VARIABLES, "test").evaluation.missing == {"auc": "needs both"}
