"""Fine-tune an ImageNet MobileNetV2 for object detection, on data in the format of Pascal VOC or COCO.

    python run.py --config=configs/detection_voc.py --config.data.dir=FOLDER
    python run.py --config=configs/detection_voc.py:probe --config.data.dir=FOLDER      all frozen but the head
    python run.py --config=configs/detection_voc.py:scratch --config.data.dir=FOLDER    from random initialization
    python run.py --config=configs/detection_voc.py:smoke       smoke test, seconds, synthetic shapes
    python run.py --mode=predict --workdir=RUN --input=IMAGE    boxes with class and score, drawn to RUN/predictions

FOLDER holds JPEGImages, Annotations and ImageSets/Main, or with ``--config.data.name=coco`` annotations and images.
``--config.model.name`` accepts any image network, ``--config.init.path=FILE`` local weights. The checkpoint with the
best mean average precision on validation is tested.
"""

from tl_jax.config import recipe


def get_config(variant: str = "") -> recipe.Config:
    """Return the recipe, or one of its variants."""
    config = recipe.get_config("detection")
    config.name = "detection_voc"
    config.model.name = "mobilenet_v2"
    config.data.name = "voc"
    config.input.size = 256
    recipe.fine_tuning(config)
    config.augment.resized_crop = 0.4
    config.augment.jitter = 0.2
    config.batch_size = 16
    config.eval_batch_size = 32
    config.epochs = 40.0
    config.save_every = 4.0
    config.eval_checkpoint = "best"
    return recipe.variants(config, variant, probe=probe, scratch=scratch, smoke=smoke)


def probe(config: recipe.Config) -> None:
    """Train the head alone."""
    config.freeze.recipe = "head"


def scratch(config: recipe.Config) -> None:
    """Start from random initialization."""
    config.init.source = "random"


def smoke(config: recipe.Config) -> None:
    """Run all parts on a tiny network of the same family."""
    recipe.smoke(config)
    config.model.name = "mobilenet_v2_tiny"
    config.init.source = "random"
    config.input.size = 64
    config.detect.width = 16
    config.save_every = 1.0
    config.optim.lr = 3e-3
