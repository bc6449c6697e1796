"""A small real task for these tests: the shipped ResNet on 8x8 digits."""

from configs import digits_resnet
from tl_jax.config import recipe, schema
from tl_jax.tasks.image_classification import ImageClassification


def config(*changes):
    """Return the configuration with ``changes``, (field, value) pairs, on top."""
    common = (
        ("arms", ()), ("seeds", ()), ("input.size", 8), ("batch_size", 10), ("eval_batch_size", 50),
        ("augment.crop_pad", 0), ("data.test_examples", 100), ("data.validation", 0.05),
    )  # fmt: skip
    return recipe.override(digits_resnet.get_config(), (*common, *changes))


def task(*changes):
    """Return the task of that configuration."""
    return ImageClassification(schema.freeze(config(*changes)))
