"""Fine-tune an ImageNet InceptionV3 on CIFAR-10: the head first, then also the last blocks.

    python run.py --config=configs/cifar_inception.py               Keras' weights
    python run.py --config=configs/cifar_inception.py:torchvision   torchvision's, with its auxiliary head, 299 pixels
    python run.py --config=configs/cifar_inception.py:smoke         smoke test: a tiny InceptionV3, random weights,
                                                                    synthetic images; mostly compilation

Weights (88 MB; torchvision's 109 MB) and data (170 MB) are downloaded on first use, or passed with
``--config.init.path=FILE`` and ``--config.data.dir=TFDS_FOLDER``. Images must have at least 75 pixels.

Not measured yet with ImageNet weights; use a GPU or TPU.
"""

from tl_jax.config import recipe


def get_config(variant: str = ""):
    """Return the recipe or one of its variants ``torchvision`` and ``smoke``."""
    config = recipe.get_config()
    config.name = "cifar_inception"
    config.model.name = "inception_v3"
    config.data.name = "cifar10"
    config.input.size = 139
    recipe.fine_tuning(config)
    last = ((r"(mixed8|mixed9|mixed10|(aux/)?head)/.*", "train"), (".*", "frozen"))
    config.phases = (
        {"name": "head", "epochs": 2.0, "recipe": "head"},
        {"name": "last", "epochs": 8.0, "rules": last, "lr_scale": 0.1},
    )
    return recipe.variants(config, variant, torchvision=torchvision, smoke=smoke)


def torchvision(config):
    """Use torchvision's weights and train their auxiliary head, which needs images of 299 pixels."""
    config.init.source = "torchvision"
    with config.model.options.unlocked():
        config.model.options.aux = True
    config.input.size = 299


def smoke(config):
    """Run all parts on a tiny network of the same layout, at its smallest input size."""
    recipe.smoke(config)
    config.model.name = "inception_v3_tiny"
    config.init.source = "random"
    config.input.size = 75
    last = ((r"(mixed3|mixed4|head)/.*", "train"), (".*", "frozen"))
    config.phases = (config.phases[0], {**config.phases[1], "rules": last})
