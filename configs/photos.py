"""ImageNet MobileNetV2 to a folder of your own photos; what trains, and how fast, is chosen by cross-validation.

    python run.py --config=configs/photos.py --config.data.dir=FOLDER                          FOLDER/CLASS/IMAGE
    python run.py --config=configs/photos.py --config.data.dir=FOLDER --config.budget=10min    chooses no longer
    python run.py --config=configs/photos.py:smoke                                a small network, drawn images

``--config.init.path=FILE`` takes local weights, else 9 MB are downloaded. A linear probe is fitted first, and the last
stages, or all, are trained if that does better on held-out photos; the run says what it tried and why it chose. What is
set, ``--config.optim.lr`` or ``--config.freeze.recipe`` say, is not searched. In Python: ``tl_jax.fine_tune(FOLDER)``.
"""

from tl_jax.config import recipe


def get_config(variant: str = ""):
    """Return the recipe, or its variant ``smoke``."""
    config = recipe.get_config()
    config.name = "photos"
    config.method = "auto"
    config.model.name = "mobilenet_v2"
    config.data.name = "folder"
    config.batch_size = 32
    config.min_steps = 200
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.1
    return recipe.variants(config, variant, smoke=smoke)


def smoke(config):
    """Run every part on a small network whose weights ship."""
    recipe.smoke(config)
    config.model.name = "resnet8"
    config.init.source = "tl_jax"
