"""The sources of the bank: the small ResNet of cifar_small.py from scratch on other data, for the study of distances.

    python -m experiments.pretrain_sources --data_dir=FOLDER              all of them, with their model cards
    python run.py --config=configs/source_small.py:shapes                 one of them; shapes are drawn, others need
    python run.py --config=configs/source_small.py:mnist --config.data.dir=TFDS_FOLDER                      their data

``faces``, ``ct`` and ``flowers`` are folders of class folders. The model cards in tl_jax/pretrained/embedded say
what came of them.
"""

from tl_jax.config import recipe


def get_config(variant: str = ""):
    """Return the recipe for one source, ``shapes`` where none is named, or ``smoke``."""
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
    """Digits as they are written: no mirror images."""
    config.data.name = "mnist"
    config.augment.flip = False
    config.augment.crop_pad = 2
    config.epochs = 8.0


def shapes(config):
    """Ten drawn shapes, see tl_jax/data/synthetic.py."""
    config.data.name = "shapes"
    config.epochs = 30.0


def flowers(config):
    """Photos of flowers, one folder for each kind."""
    config.data.name = "flowers"
    config.augment.crop_pad = 12  # of pictures of 128 pixels
    config.epochs = 40.0


def faces(config):
    """Photos of people, one folder for each."""
    config.augment.crop_pad = 8
    config.epochs = 200.0


def ct(config):
    """CT slices, one folder for each kind, parts in folders of their own."""
    config.augment.crop_pad = 12
    config.augment.rotate = 10.0
    config.epochs = 120.0


SOURCES = {f.__name__: f for f in (mnist, shapes, flowers, faces, ct)}
