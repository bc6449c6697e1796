"""Fine-tune a vision transformer on photos of flowers: the head, then all layers with rates that grow towards it.

    python run.py --config=configs/vit.py            downloads weights of timm (88 MB) and photos (229 MB)
    python run.py --config=configs/vit.py:lora       one phase of ten epochs, and any name of
                                                        tl_jax/transfer/methods.py
    python run.py --config=configs/vit.py:smoke      smoke test: a tiny network, synthetic images

``--config.init.path=FILE`` uses local weights, ``--config.data.dir=FOLDER`` a local folder with one folder per class,
and ``--config.model.name`` another ViT (arXiv:2106.10270) or a network of its kind. AdamW, weight decay 0.05, and
rates that fall by a factor for each layer are usual for it (BEiT, arXiv:2106.08254). It has not been measured with the
published weights.
"""

from tl_jax.config import recipe
from tl_jax.transfer import methods


def get_config(variant: str = ""):
    """Return the recipe, its variant ``smoke``, or the recipe with a transfer method."""
    config = recipe.get_config()
    config.name = "vit"
    config.model.name = "vit_small16"
    config.init.source = "timm"
    config.data.name = "flowers"
    recipe.fine_tuning(config)
    config.input.size = 224
    config.batch_size = 32
    config.augment.crop_pad = 16
    config.optim.weight_decay = 0.05
    config.optim.lr = 1e-4
    config.phases = (
        {"name": "head", "epochs": 2.0, "recipe": "head", "lr_scale": 10.0},
        {"name": "all", "epochs": 8.0, "recipe": "all", "layer_decay": 0.75},
    )
    config.seeds = (0, 1, 2)
    if variant in methods.METHODS:
        config.phases = ()
    return recipe.variants(config, variant, smoke=smoke, **methods.METHODS)


def smoke(config):
    """Run all parts on a tiny network of the same family."""
    recipe.smoke(config)
    config.model.name = "vit_nano8"
    config.init.source = "random"
    config.init.layout = "timm"
    config.augment.crop_pad = 3
    config.seeds = (0,)
