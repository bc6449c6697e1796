"""Fine-tune an ImageNet MobileNetV2 on CT slices, or other images with few labels, grouped by patient or source.

    python run.py --config=configs/ct_classification.py --config.data.dir=FOLDER      all layers at one rate
    python run.py --config=configs/ct_classification.py:probe --config.data.dir=FOLDER    the head alone
    python run.py --config=configs/ct_classification.py:scratch --config.data.dir=FOLDER  from random initialization
    python run.py --config=configs/ct_classification.py:lora --config.data.dir=FOLDER     any of transfer/methods.py
    python run.py --config=configs/ct_classification.py:compare --config.data.dir=FOLDER  these three, three seeds each
    python run.py --config=configs/ct_classification.py:smoke                         smoke test on synthetic images

FOLDER holds ``train/CLASS/IMAGE``, ``val/CLASS/IMAGE`` and ``test/CLASS/IMAGE`` (or ``CLASS/IMAGE``) with PNG, JPEG or
DICOM (.dcm) files; ``data.windows`` sets the window of CT slices. Other layouts:

    --config.data.name=index --config.data.dir=FOLDER     FOLDER/index.csv with columns file, label, split, patient
    --config.data.name=npz --config.data.dir=FILE.npz     the format of MedMNIST
    --config.data.name=organamnist                        its axial slices of eleven organs, downloaded (38 MB)

Set the grouping column of ``index.csv``, such as ``--config.data.group=patient``: images of one group stay in one
split, and the interval of the AUC is over groups. ``--config.positive=CLASS`` sets the positive class. For imbalanced
classes add ``--config.regularize.class_weights=balanced``. ``--config.init.path=FILE`` uses local weights. The summary
has the AUC, the sensitivity at a specificity of 0.9, and the calibration error before and after temperature scaling
(``reliability.png``). Then:

    python run.py --mode=predict --workdir=DIR --input=FILE       calibrated probabilities
    python run.py --mode=explain --workdir=DIR --input=FOLDER     Grad-CAM: explain.png

Not for clinical use.
"""

from tl_jax.config import recipe
from tl_jax.transfer import methods


def get_config(variant: str = ""):
    """Return the recipe, a variant (``probe``, ``compare``, ``smoke``), or the recipe with a transfer method."""
    config = recipe.get_config()
    config.name = "ct_classification"
    config.model.name = "mobilenet_v2"
    config.data.name = "folder"
    config.data.fit = "pad"  # a center crop would cut off the outer parts of both lungs
    config.input.size = 96
    recipe.fine_tuning(config)
    config.augment.crop_pad = 8
    config.augment.rotate = 10.0
    config.batch_size = 32
    config.optim.lr = 3e-4
    config.epochs = 10.0
    config.test_train = True
    config.metrics = ("auc", "sensitivity", "ece")
    config.calibrate = True
    return recipe.variants(config, variant, probe=probe, compare=compare, smoke=smoke, **methods.METHODS)


# Only the head trains, without augmentation, so the features of an image are constant.
PROBE = (
    ("augment.flip", False),
    ("augment.crop_pad", 0),
    ("augment.rotate", 0.0),
    ("optim.lr", 3e-3),
    ("freeze.recipe", "head"),
)
SCRATCH = (("init.source", "random"), ("init.path", ""), ("optim.lr", 1e-2))


def probe(config):
    """Train the head alone."""
    config.update_from_flattened_dict(dict(PROBE))


def compare(config):
    """Compare the AUC of fine-tuning, training from scratch and the head alone.

    Learning rates are from the record of ``experiments/mechanisms/study.py`` on these slices, chosen on the validation
    split.
    """
    config.arms = (("fine_tune", ()), ("scratch", SCRATCH), ("probe", PROBE))
    config.seeds = (0, 1, 2)
    config.score = "auc"


def smoke(config):
    """Run all parts on a tiny network of the same family."""
    recipe.smoke(config)
    config.model.name = "mobilenet_v2_tiny"
    config.init.source = "random"
    config.augment.crop_pad = 2
