"""ImageNet MobileNetV2 to CT slices (or any two folders of pictures): few labels, and far from photos.

    python run.py --config=configs/ct_mobilenet.py --config.data.dir=FOLDER          everything trained at one rate
    python run.py --config=configs/ct_mobilenet.py:lora --config.data.dir=FOLDER     any name of configs/mechanisms.py
    python run.py --config=configs/ct_mobilenet.py:smoke                             a tiny MobileNet, drawn pictures

FOLDER holds ``train/CLASS/PICTURE``, ``val/CLASS/PICTURE`` and ``test/CLASS/PICTURE``; the validation part is used as
it is, so that pictures of one patient or paper stay in one part. ``--config.init.path=FILE`` takes local weights. Not
fit for any clinical conclusion.
"""

from configs import base, mechanisms


def get_config(variant: str = ""):
    """Return the recipe, or it with one of the mechanisms, or ``smoke``."""
    config = base.get_config()
    config.name = "ct_mobilenet"
    config.model.name = "mobilenet_v2"
    config.data.name = "folder"
    config.input.size = 96
    base.fine_tuning(config)
    config.augment.crop_pad = 8
    config.augment.rotate = 10.0
    config.batch_size = 32
    config.optim.lr = 3e-4
    config.epochs = 10.0
    config.test_train = True
    return base.variants(config, variant, smoke=smoke, **mechanisms.MECHANISMS)


def smoke(config):
    """Run every part on a tiny network of the same family."""
    base.smoke(config)
    config.model.name = "mobilenet_v2_tiny"
    config.init.source = "random"
    config.augment.crop_pad = 2
