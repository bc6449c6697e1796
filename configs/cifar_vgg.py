"""Fine-tune an ImageNet VGG16 on CIFAR-10: freeze the first layers, train the last.

    python run.py --config=configs/cifar_vgg.py           the head first, then also the last stage, at a lower rate
    python run.py --config=configs/cifar_vgg.py:hidden    keep fc1 and fc2 and train them with a new head
    python run.py --config=configs/cifar_vgg.py:smoke     smoke test: a tiny VGG, random weights, synthetic images

Weights (59 MB, 553 MB for ``hidden``) and data (170 MB) are downloaded on first use, or passed with
``--config.init.path=FILE`` and ``--config.data.dir=TFDS_FOLDER``. For VGG19 add ``--config.model.name=vgg19``.

Not measured yet with ImageNet weights; use a GPU or TPU.
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
    """Train the file's two hidden layers and a new head; maps of any size are averaged to their 7x7 grid."""
    with config.model.options.unlocked():
        config.model.options.fc = True
    rules = ((r"(fc1|fc2|head)/.*", "train"), (".*", "frozen"))
    config.phases = ({"name": "hidden", "epochs": 10.0, "rules": rules, "lr_scale": 0.1},)


def smoke(config):
    """Run all parts on a tiny network of the same layout."""
    recipe.smoke(config)
    config.model.name = "vgg16_tiny"
    config.init.source = "random"
