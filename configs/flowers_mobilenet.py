"""ImageNet MobileNetV2 to photos of flowers, for machines without an accelerator.

    python run.py --config=configs/flowers_mobilenet.py               downloads weights (9 MB) and photos (229 MB)
    python run.py --config=configs/flowers_mobilenet.py:probe         the head only, on fixed features
    python run.py --config=configs/flowers_mobilenet.py:lora          one phase of ten epochs, and any name of
                                                                      tl_jax/transfer/methods.py
    python run.py --config=configs/flowers_mobilenet.py:smoke         a tiny MobileNet, drawn pictures: that it runs

``--config.init.path=FILE`` takes local weights, ``--config.data.dir=FOLDER`` a local folder with one folder for each
class. The head is trained first, then also the layers on maps of 8x8 and less, at a tenth of the rate: they hold nine
tenths of the parameters and cost little. A fifth of the photos is for testing.

What the probe gives on flower photos enlarged from about 32x32 pixels is in experiments/expected.json, what the
mechanisms give in experiments/results/mechanisms_flowers.md. Nothing was tuned.
"""

from tl_jax.config import recipe
from tl_jax.transfer import methods


def get_config(variant: str = ""):
    """Return the recipe, one of its variants ``probe`` and ``smoke``, or it with one of the mechanisms."""
    config = recipe.get_config()
    config.name = "flowers_mobilenet"
    config.model.name = "mobilenet_v2"
    config.data.name = "flowers"
    config.input.size = 128
    recipe.fine_tuning(config)
    config.optim.clip_norm = 0.0
    config.augment.crop_pad = 12
    config.batch_size = 32
    last = ((r"(stage[4-7]|final|head)/.*", "train"), (".*", "frozen"))
    config.phases = (
        {"name": "head", "epochs": 2.0, "recipe": "head"},
        {"name": "last", "epochs": 4.0, "rules": last, "lr_scale": 0.1},
    )
    config.seeds = (0, 1, 2)
    if variant in methods.METHODS:
        config.phases = ()
    return recipe.variants(config, variant, probe=probe, smoke=smoke, **methods.METHODS)


def probe(config):
    """Train the head alone; nothing is augmented, so the features of a photo are always the same."""
    config.augment.flip = False
    config.augment.crop_pad = 0
    config.phases = ()
    config.epochs = 10.0
    config.freeze.recipe = "head"


def smoke(config):
    """Run every part on a tiny network of the same family."""
    recipe.smoke(config)
    config.model.name = "mobilenet_v2_tiny"
    config.init.source = "random"
    config.augment.crop_pad = 3
    config.seeds = (0,)
