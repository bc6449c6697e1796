"""Fine-tune an ImageNet ResNet50 on CIFAR-10: recommended practice, and the article's experiment as written.

    python run.py --config=configs/cifar_resnet.py            resized input, ResNet50's own preprocessing, augmentation;
                                                              the head first, then all layers at a tenth of the rate
    python run.py --config=configs/cifar_resnet.py:article    32x32 pixels, x/255, everything frozen but the head,
                                                              Adam 1e-3, batch 64, 10 epochs
    python run.py --config=configs/cifar_resnet.py:smoke      smoke test: a tiny ResNet, random weights, synthetic
                                                              images; mostly compilation

Weights (94 MB) and data (170 MB) are downloaded on first use, or passed with ``--config.init.path=FILE`` and
``--config.data.dir=TFDS_FOLDER``.

Not measured yet with ImageNet weights. Use a GPU or TPU for the default variant; no result is claimed for it.
"""

from tl_jax.config import recipe


def get_config(variant: str = ""):
    """Return the recipe or one of its variants ``article`` and ``smoke``."""
    config = recipe.get_config()
    config.name = "cifar_resnet"
    config.model.name = "resnet50"
    config.data.name = "cifar10"
    config.input.size = 160
    recipe.fine_tuning(config)
    config.phases = (
        {"name": "head", "epochs": 2.0, "recipe": "head"},
        {"name": "all", "epochs": 8.0, "recipe": "all", "lr_scale": 0.1},
    )
    return recipe.variants(config, variant, article=article, smoke=smoke)


def article(config):
    """Follow the article to the letter, although these weights were not trained with x/255."""
    config.input.size = 32
    config.input.scaling = "unit"
    config.augment.flip = False
    config.augment.crop_pad = 0
    config.data.validation = 0.0
    config.batch_size = 64
    config.optim.schedule = "constant"
    config.optim.warmup = 0.0
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 0.0
    config.optim.epsilon = 1e-7  # Keras' default
    config.freeze.recipe = "head"
    config.phases = ()
    config.epochs = 10.0


def smoke(config):
    """Run all parts on a tiny network of the same layout."""
    recipe.smoke(config)
    config.model.name = "resnet50_tiny"
    config.init.source = "random"
