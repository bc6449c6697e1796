"""Fine-tune an ImageNet MobileNetV2 on faces: embeddings trained on some people and tested on others.

    python run.py --config=configs/faces_verification.py --config.data.dir=FOLDER            ArcFace, all layers
    python run.py --config=configs/faces_verification.py:probe --config.data.dir=FOLDER      on frozen features
    python run.py --config=configs/faces_verification.py:softmax --config.data.dir=FOLDER    without a margin
    python run.py --config=configs/faces_verification.py:lora --config.data.dir=FOLDER       and most names of
                                                                                              tl_jax/transfer/methods.py
    python run.py --config=configs/faces_verification.py:smoke                               smoke test on cartoons
    python run.py --mode=predict --workdir=RUN --input=IMAGES                                who is it?

FOLDER holds ``PERSON/IMAGE``. A quarter of the people are test identities; a fifth of the others only determine the
threshold of ``--mode=predict``. ``faces.test_identities`` and ``data.validation`` change that, and a file of pairs
(``--config.faces.pairs=pairs.txt``, LFW's format) defines its own test identities. ``predict`` knows the people of
FOLDER, or of ``--config.faces.known``. To evaluate the pretrained features without training:
``--config.faces.embedding=0 --config.epochs=0``.
"""

from tl_jax.config import recipe
from tl_jax.tasks.face_verification import FacesConfig
from tl_jax.transfer import methods


def get_config(variant: str = ""):
    """Return the recipe, a variant (``probe``, ``softmax``, ``smoke``), or the recipe with a transfer method."""
    config = recipe.get_config("faces")
    config.name = "faces_verification"
    config.model.name = "mobilenet_v2"
    config.data.name = "folder"
    config.data.validation = 0.2
    config.input.size = 96
    config.faces.scale = 32.0  # 64 suits tens of thousands of people
    config.faces.margin = 0.3
    recipe.fine_tuning(config)
    config.augment.crop_pad = 6
    config.batch_size = 32
    config.optim.lr = 3e-4
    config.freeze.batch_stats = "frozen"  # statistics of small batches hurt on unseen people
    config.epochs = 10.0
    known = {name: change for name, change in methods.METHODS.items() if name in methods.names_for_task("faces")}
    return recipe.variants(config, variant, probe=probe, softmax=softmax, smoke=smoke, **known)


def probe(config):
    """Train the embedding alone, without augmentation, so the features of an image are constant."""
    config.augment.flip = False
    config.augment.crop_pad = 0
    config.freeze.recipe = "head"
    config.optim.lr = 1e-3
    config.epochs = 30.0


def softmax(config):
    """Train with a plain softmax over identities."""
    config.faces.loss = "softmax"
    config.faces.scale, config.faces.margin = FacesConfig.scale, FacesConfig.margin


def smoke(config):
    """Run all parts on the small embedded network, with synthetic faces."""
    recipe.smoke(config)
    config.data.train_examples = 0
    config.freeze.batch_stats = "auto"
    config.model.name = "resnet8"
    config.init.source = "tl_jax"
    config.augment.crop_pad = 2
    config.faces.embedding = 32
    config.optim.lr = 1e-3
    config.epochs = 10.0
