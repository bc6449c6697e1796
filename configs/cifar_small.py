"""Train the source of the embedded weights: a small CIFAR-style ResNet from scratch on CIFAR-10.

To make the weights:

    python run.py --config=configs/cifar_small.py --config.data.dir=TFDS_FOLDER --workdir=RUN
    python -m experiments.pretrain_sources --what=embed --workdir=RUN --name=resnet8_cifar10 --data=... ...

The model card, tl_jax/pretrained/embedded/resnet8_cifar10.md, has the results.
"""

from tl_jax.config import recipe


def get_config(variant: str = ""):
    """Return the recipe; ``smoke`` runs in seconds on synthetic images."""
    config = recipe.get_config()
    config.name = "cifar_small"
    config.model.name = "resnet8"
    config.init.source = "random"
    config.init.layout = "tl_jax"
    config.data.name = "cifar10"
    config.data.validation = 0.05
    config.input.size = 32
    config.augment.flip = True
    config.augment.crop_pad = 4
    config.batch_size = 128
    config.optim.name = "sgd"
    config.optim.lr = 0.1
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.05
    config.optim.weight_decay = 5e-4
    config.epochs = 15.0
    config.optim.batch_norm_momentum = 0.0  # the layout's own, as for the embedded weights
    return recipe.variants(config, variant, smoke=recipe.smoke)
