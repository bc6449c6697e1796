"""Train the bank of source networks for the study of distances: the small ResNet of cifar_small.py on other data.

    python -m experiments.pretrain_sources --data_dir=FOLDER              all of them, with their model cards
    python run.py --config=configs/source_small.py:shapes                 one of them; shapes are synthetic, others
    python run.py --config=configs/source_small.py:mnist --config.data.dir=TFDS_FOLDER               need data

``faces``, ``ct`` and ``flowers`` are folders of class folders. The model cards in tl_jax/pretrained/embedded have the
results.
"""

from tl_jax.config import recipe


def get_config(variant: str = ""):
    """Return the recipe for one source, by default ``shapes``, or ``smoke``."""
    config = recipe.load("cifar_small").get_config()
    config.name = "source_small"
    config.data.name = "folder"
    config.data.validation = 0.1
    config.batch_size = 64
    config.optim.batch_norm_momentum = 0.9
    if not variant:
        shapes(config)
    return recipe.variants(config, variant, **SOURCES, smoke=recipe.smoke)


def mnist(config):
    """Handwritten digits, without mirroring."""
    config.data.name = "mnist"
    config.augment.flip = False
    config.augment.crop_pad = 2
    config.epochs = 8.0


def shapes(config):
    """Ten synthetic shapes, see tl_jax/data/synthetic.py."""
    config.data.name = "shapes"
    config.epochs = 30.0


def flowers(config):
    """Photos of flowers, one folder per species."""
    config.data.name = "flowers"
    config.augment.crop_pad = 12  # for images of 128 pixels
    config.epochs = 40.0


def faces(config):
    """Photos of people, one folder per person."""
    config.augment.crop_pad = 8
    config.epochs = 200.0


def ct(config):
    """CT slices, one folder per class, splits in their own folders."""
    config.augment.crop_pad = 12
    config.augment.rotate = 10.0
    config.epochs = 120.0


SOURCES = {f.__name__: f for f in (mnist, shapes, flowers, faces, ct)}
