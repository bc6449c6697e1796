"""Compare a small ResNet pretrained on CIFAR-10 with the same network from scratch, on digits (the default recipe).

    python run.py                                             downloads nothing
    python run.py --config=configs/digits_resnet.py:smoke     smoke test: one seed, a few steps

Both arms train on the same five examples per digit in the same way; only the initial weights differ. All choices were
made on the validation split with seeds 100 to 102: the learning rate is the best of 3e-4, 1e-3, 3e-3 and 1e-2 for
either arm; training the head alone first, and half or twice the epochs, made no difference.

The expected results, and how they were measured, are in experiments/expected.json; the durations are in
experiments/results/benchmarks/starts.json. On other processors the last digits differ.
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
