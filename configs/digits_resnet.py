"""The embedded default: a small ResNet pretrained on CIFAR-10 against the same network from scratch, on digits.

    python run.py                                             downloads nothing
    python run.py --config=configs/digits_resnet.py:smoke     one seed, a few steps

Both arms see the same five examples of each digit and are trained in the same way; only the weights that they start
from differ. All choices were made on the validation part with seeds 100 to 102: the learning rate is the best of 3e-4,
1e-3, 3e-3 and 1e-2 for either arm; training the head alone first, and half or twice the epochs, made no difference.

What it gives, and on what that was measured, is in experiments/expected.json; the seconds that it takes are in
experiments/results/benchmarks/starts.json. On other processors expect other last digits.
"""

from tl_jax.config import recipe


def get_config(variant: str = ""):
    """Return the recipe; ``smoke`` runs one seed of each arm for a few steps."""
    config = recipe.get_config()
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
    config.optim.lr = 3e-3
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.1
    config.epochs = 30.0
    config.save_every = 1000.0
    config.seeds = (0, 1, 2, 3, 4)
    config.arms = (
        ("pretrained", ()),
        ("scratch", (("init.source", "random"), ("init.layout", "tl_jax"))),
    )
    return recipe.variants(config, variant, smoke=smoke)


def smoke(config):
    """Run both arms with one seed for a few steps."""
    recipe.smoke(config)
    config.data.generate = False  # the digits are embedded
    config.data.train_examples = 0
    config.seeds = (0,)
