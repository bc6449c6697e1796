"""ImageNet VGG16 to CIFAR-10: freeze the first layers, train the last.

    python run.py --config=configs/cifar_vgg.py           the head first, then the last stage too, at a lower rate
    python run.py --config=configs/cifar_vgg.py:hidden    keep fc1 and fc2 and train them with a new head
    python run.py --config=configs/cifar_vgg.py:smoke     a tiny VGG, random weights, drawn pictures: that it runs

Weights (59 MB, 553 MB for ``hidden``) and data (170 MB) are downloaded on the first use; ``--config.init.path=FILE``
and ``--config.data.dir=TFDS_FOLDER`` take local ones. For VGG19 add ``--config.model.name=vgg19``.

Measured: nothing yet with ImageNet weights; it wants a GPU or TPU.
"""

from tl_jax.config import recipe


def get_config(variant: str = ""):
    """Return the recipe or one of its variants ``hidden`` and ``smoke``."""
    config = recipe.get_config()
    config.name = "cifar_vgg"
    config.model.name = "vgg16"
    config.data.name = "cifar10"
    config.input.size = 96
    recipe.fine_tuning(config)
    config.phases = (
        {"name": "head", "epochs": 2.0, "recipe": "head"},
        {"name": "last", "epochs": 8.0, "rules": ((r"(stage5|head)/.*", "train"), (".*", "frozen")), "lr_scale": 0.1},
    )
    return recipe.variants(config, variant, hidden=hidden, smoke=smoke)


def hidden(config):
    """Train the two hidden layers of the file and a new head; their 7x7 grid is averaged from any size."""
    with config.model.options.unlocked():
        config.model.options.fc = True
    rules = ((r"(fc1|fc2|head)/.*", "train"), (".*", "frozen"))
    config.phases = ({"name": "hidden", "epochs": 10.0, "rules": rules, "lr_scale": 0.1},)


def smoke(config):
    """Run every part on a tiny network of the same layout."""
    recipe.smoke(config)
    config.model.name = "vgg16_tiny"
    config.init.source = "random"
