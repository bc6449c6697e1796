"""Fine-tune an ImageNet MobileNetV2 on photos of flowers, without an accelerator.

    python run.py --config=configs/flowers_mobilenet.py               downloads weights (9 MB) and photos (229 MB)
    python run.py --config=configs/flowers_mobilenet.py:probe         the head only, on frozen features
    python run.py --config=configs/flowers_mobilenet.py:lora          one phase of ten epochs, and any name of
                                                                      tl_jax/transfer/methods.py
    python run.py --config=configs/flowers_mobilenet.py:smoke         smoke test: a tiny MobileNet, synthetic images

``--config.init.path=FILE`` uses local weights, ``--config.data.dir=FOLDER`` a local folder with one folder per class.
The head trains first, then also the layers with maps of 8x8 and smaller, at a tenth of the rate: they hold nine tenths
of the parameters and cost little. A fifth of the photos is the test split.

The probe's results on flower photos enlarged from about 32x32 pixels are in experiments/expected.json, those of the
transfer methods in experiments/results/mechanisms_flowers.md. Nothing was tuned.
"""

from tl_jax.config import recipe
from tl_jax.transfer import methods


def get_config(variant: str = ""):
    """Return the recipe, a variant (``probe``, ``smoke``), or the recipe with a transfer method."""
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
    """Train the head alone, without augmentation, so the features of a photo are constant."""
    config.augment.flip = False
    config.augment.crop_pad = 0
    config.phases = ()
    config.epochs = 10.0
    config.freeze.recipe = "head"


def smoke(config):
    """Run all parts on a tiny network of the same family."""
    recipe.smoke(config)
    config.model.name = "mobilenet_v2_tiny"
    config.init.source = "random"
    config.augment.crop_pad = 3
    config.seeds = (0,)
