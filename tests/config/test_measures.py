"""What is asked of measures, groups and windows and cannot be had is refused, before anything is loaded."""

import pytest

from configs import ct_classification, sst2_bert
from tests.tasks import small
from tl_jax.config import recipe, schema, validate
from tl_jax.learner import Learner
from tl_jax.tasks.image_classification import ImageClassification
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    "changes,message",
    [
        ((("metrics", ("auc", "f2")),), "config.metrics has the unknown 'f2'; choose from auc, sensitivity, ece"),
        ((("metrics", ("ece",)), ("score", "auc")), "score=auc needs auc in"),
        ((("metrics", ("auc",)), ("specificity", 0.8)), "specificity has an effect with sensitivity"),
        ((("metrics", ()), ("positive", "x")), "positive has an effect with auc or sensitivity"),
        ((("data.validation", 0.0),), "calibrate needs a validation split"),
        (
            (("data.name", "npz"), ("data.group", "x")),
            "data.group has an effect with config.data.name=flowers, folder, index only",
        ),
        ((("data.label", "x"),), "data.label is only for texts and config.data.name=index"),
        ((("data.windows", ("lungs",)),), "did you mean 'lung'"),
        ((("regularize.class_weights", "balanced"), ("epochs", 0.0)), "class_weights has no effect"),
    ],
)
def test_measures_that_cannot_be_had(changes, message):
    validate.validate(ct_classification.get_config())
    with pytest.raises(UserError, match=message):
        validate.validate(recipe.override(ct_classification.get_config(), changes))


@pytest.mark.parametrize("field,value", [("calibrate", True), ("metrics", ("auc",)), ("data.group", "x")])
def test_texts_have_none_of_them(field, value):
    with pytest.raises(UserError, match=f"config.{field} has no effect with config.task=text"):
        validate.validate(recipe.override(sst2_bert.get_config(), ((field, value),)))


def test_a_class_that_is_not_there_and_a_part_of_one_class():
    with pytest.raises(UserError, match="config.positive='33' is not a class; did you mean '3'"):
        small.task(("metrics", ("auc",)), ("positive", "33"))
    with pytest.raises(UserError, match="the test split has examples of one class only"):
        ImageClassification(schema.freeze(small.config(("metrics", ("auc",)), ("data.test_examples", 1))))


def test_only_pictures_are_explained(tmp_path):
    with pytest.raises(UserError, match="config.task=text: .* is not available; it is for config.task=image"):
        Learner(sst2_bert.get_config(), tmp_path).explain([])
