"""Fine-tune an ImageNet MobileNetV2 on your own photos; cross-validation chooses the trained layers and learning rate.

    python run.py --config=configs/photos.py --config.data.dir=FOLDER                          FOLDER/CLASS/IMAGE
    python run.py --config=configs/photos.py --config.data.dir=FOLDER --config.budget=10min    limits the search
    python run.py --config=configs/photos.py:smoke                                smoke test on synthetic images

``--config.init.path=FILE`` uses local weights; otherwise 9 MB are downloaded. A linear probe is fitted first, then the
last stages or all layers are trained if that is better on held-out photos; the run reports its trials and the reason
for its choice. Fields that you set, such as ``--config.optim.lr`` or ``--config.freeze.recipe``, are not searched. In
Python: ``tl_jax.fine_tune(FOLDER)``.
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
    """Run all parts on a small embedded network."""
    recipe.smoke(config)
    config.model.name = "resnet8"
    config.init.source = "tl_jax"
