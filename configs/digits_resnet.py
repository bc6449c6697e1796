"""The embedded default: a small ResNet pretrained on CIFAR-10 against the same network from scratch, on digits.

python run.py
python run.py --config=configs/digits_resnet.py:smoke
"""

from configs import base


def get_config(variant: str = ""):
    """Return the recipe; ``smoke`` runs one seed of each arm for a few steps."""
    config = base.get_config()
    config.name = "digits_resnet"
    config.model.name = "resnet8"
    config.init.source = "tl_jax"
    config.data.name = "digits"
    config.data.validation = 0.25
    config.data.per_class = 5
    config.input.size = 32
    config.augment.crop_pad = 1
    config.batch_size = 25
    config.eval_batch_size = 300
    config.optim.lr = 3e-3  # the best of 3e-4, 1e-3, 3e-3, 1e-2 on validation for either arm (seeds 100 to 102)
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.1
    config.save_every = 1000.0
    config.phases = (
        {"name": "head", "epochs": 10.0, "recipe": "head"},
        {"name": "all", "epochs": 20.0, "recipe": "all", "lr_scale": 1.0},
    )
    config.seeds = (0, 1, 2, 3, 4)
    config.arms = (
        ("pretrained", ()),
        ("scratch", (("init.source", "random"), ("init.layout", "tl_jax"), ("phases", ()), ("epochs", 30.0))),
    )
    return base.variants(config, variant, smoke=smoke)


def smoke(config):
    """Run both arms with one seed for a few steps."""
    base.smoke(config)
    config.data.generate = False  # the digits are embedded
    config.data.train_examples = 0
    config.seeds = (0,)
    config.arms = (
        ("pretrained", ()),
        ("scratch", (("init.source", "random"), ("init.layout", "tl_jax"), ("phases", ()), ("epochs", 2.0))),
    )
