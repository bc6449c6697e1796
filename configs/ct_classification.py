"""ImageNet MobileNetV2 to CT slices, or any other pictures with few labels, far from photos, of patients or sources.

    python run.py --config=configs/ct_classification.py --config.data.dir=FOLDER      everything trained at one rate
    python run.py --config=configs/ct_classification.py:probe --config.data.dir=FOLDER    the head alone
    python run.py --config=configs/ct_classification.py:scratch --config.data.dir=FOLDER  from random weights
    python run.py --config=configs/ct_classification.py:lora --config.data.dir=FOLDER     any of transfer/methods.py
    python run.py --config=configs/ct_classification.py:compare --config.data.dir=FOLDER  these three, three seeds each
    python run.py --config=configs/ct_classification.py:smoke                         a tiny MobileNet, drawn pictures

FOLDER holds ``train/CLASS/PICTURE``, ``val/CLASS/PICTURE`` and ``test/CLASS/PICTURE`` (or ``CLASS/PICTURE``); a
picture is a PNG, a JPEG or a DICOM file (.dcm), a CT slice being seen through ``data.windows``. Others:

    --config.data.name=index --config.data.dir=FOLDER     FOLDER/index.csv with columns file, label, split, patient
    --config.data.name=npz --config.data.dir=FILE.npz     as MedMNIST has them
    --config.data.name=organamnist                        its axial slices of eleven organs, downloaded (38 MB)

Name the column of ``index.csv`` that says what belongs together, ``--config.data.group=patient``: such pictures are
kept in one part, and the interval of the AUC is over them. ``--config.positive=CLASS`` is what is looked for. Where
classes are uneven, ``--config.regularize.class_weights=balanced``. ``--config.init.path=FILE`` takes local weights.
The summary has the AUC, sensitivity at a specificity of 0.9 and the calibration error before and after temperature
scaling (``reliability.png``); then

    python run.py --mode=predict --workdir=DIR --input=FILE       calibrated probabilities
    python run.py --mode=explain --workdir=DIR --input=FOLDER     where it looks (Grad-CAM): explain.png

Not fit for any clinical conclusion.
"""

from tl_jax.config import recipe
from tl_jax.transfer import methods


def get_config(variant: str = ""):
    """Return the recipe, one of its variants ``probe``, ``compare`` and ``smoke``, or it with one of the mechanisms."""
    config = recipe.get_config()
    config.name = "ct_classification"
    config.model.name = "mobilenet_v2"
    config.data.name = "folder"
    config.data.fit = "pad"  # a centre crop would cut off the outer parts of both lungs
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


# The head alone is trained; nothing is augmented, so the features of a picture are always the same.
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
    """Compare fine-tuning with training from scratch and with the head alone, by their areas under the curve.

    Rates are as the record of ``experiments/mechanisms/study.py`` on these slices has them, chosen on the
    validation part.
    """
    config.arms = (("fine_tune", ()), ("scratch", SCRATCH), ("probe", PROBE))
    config.seeds = (0, 1, 2)
    config.score = "auc"


def smoke(config):
    """Run every part on a tiny network of the same family."""
    recipe.smoke(config)
    config.model.name = "mobilenet_v2_tiny"
    config.init.source = "random"
    config.augment.crop_pad = 2
