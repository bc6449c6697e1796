"""Named transfer methods: each changes a few fields of a recipe. Compared by experiments/mechanisms/study.py.

    python run.py --config=configs/flowers_mobilenet.py:lora --config.optim.lr=1e-3

Each function takes a recipe whose data, network, learning rate and ``epochs`` are set, and changes only the fields of
the method. Strengths are the papers' usual values (see tl_jax/transfer/regularizers.py); none was tuned on a dataset.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from tl_jax.config.schema import Config, freeze
from tl_jax.data.augment import AugmentConfig
from tl_jax.train.run_config import AUTO, RunConfig
from tl_jax.train.task import TASKS
from tl_jax.utils.errors import UserError
from tl_jax.utils.registry import Registry


class Method(NamedTuple):
    """A named transfer method.

    Attributes:
        change: applies the method to a recipe, in place.
        inputs: ``Task.input_kind`` of the supported tasks; empty for all.
        name: registered name.
    """

    change: Callable[[Config], None]
    inputs: str = ""
    name: str = ""

    def __call__(self, config: Config) -> None:
        try:
            self.change(config)
        except AttributeError as e:  # the task has no such field
            raise UserError(f"method {self.name}: not available for config.task={config.task}: {e}") from None


METHODS: Registry[Method] = Registry("method")


def register_method(inputs: str = "", name: str = "") -> Callable[[Callable[[Config], None]], Callable[[Config], None]]:
    """Return a decorator that registers a function on recipes as a transfer method.

    Args:
        inputs: ``Task.input_kind`` of the supported tasks; empty for all.
        name: name of the method; empty for the function's name.
    """

    if callable(inputs):
        raise UserError("register_method: used without parentheses; write @register_method()")
    if inputs not in ("", "images", "texts", "observations"):
        raise UserError(f"register_method: unknown inputs={inputs!r}; use images, texts or observations")

    def register(change: Callable[[Config], None]) -> Callable[[Config], None]:
        method = Method(change, inputs, name or change.__name__)
        METHODS.add(method.name, method, change.__module__, change.__qualname__)
        return change

    return register


@register_method()
def auto(config: Config) -> None:
    """Choose the trained layers and learning rate by validation, starting from a linear probe (``choose_method``)."""
    config.method = AUTO


@register_method()
def scratch(config: Config) -> None:
    """Train all layers from random initialization, the baseline for transfer."""
    if not TASKS[config.task].random_files:
        config.init.path = ""
    if "layout" in config.init:  # of images
        config.init.layout = config.init.source
    config.init.source = "random"


@register_method()
def fine_tune(config: Config) -> None:
    """Fine-tune all layers at one learning rate, from pretrained weights and a new head."""
    config.freeze.recipe = "all"


@register_method(inputs="images", name="still_norms")
def frozen_batch_norm(config: Config) -> None:
    """Fine-tune all layers with BatchNorm frozen on the source statistics, as in Keras' fine-tuning guide."""
    config.freeze.batch_stats = "frozen"


@register_method()
def logistic(config: Config) -> None:
    """Freeze the network and fit a logistic regression on its features."""
    config.init.head, config.epochs = "logistic", 0.0
    _disable_augmentation(config)


@register_method()
def ridge(config: Config) -> None:
    """Freeze the network and fit a ridge regression on its features."""
    logistic(config)
    config.init.head = "ridge"


@register_method()
def head(config: Config) -> None:
    """Freeze the network and train the head by gradient descent on augmented images."""
    config.freeze.recipe = "head"


@register_method()
def lp_ft(config: Config) -> None:
    """Train the head first, then all layers: LP-FT, Kumar et al. 2022, arXiv:2202.10054."""
    config.init.head = "logistic"


@register_method()
def last_stages(config: Config) -> None:
    """Train the head and the last third of the stages."""
    count = len(TASKS[config.task].stage_names(freeze(config)))
    config.freeze.recipe, config.freeze.stages = "last_n_stages", math.ceil(count / 3)


@register_method()
def gradual(config: Config) -> None:
    """Unfreeze gradually from the head down, in three phases of equal length: ULMFiT, arXiv:1801.06146."""
    count, epochs = len(TASKS[config.task].stage_names(freeze(config))), config.epochs / 3
    config.phases = (
        {"name": "head", "epochs": epochs, "recipe": "head"},
        {"name": "half", "epochs": epochs, "recipe": "last_n_stages", "stages": math.ceil(count / 2)},
        {"name": "all", "epochs": epochs, "recipe": "all"},
    )
    config.epochs = RunConfig().epochs


@register_method()
def layer_decay(config: Config) -> None:
    """Fine-tune with learning rates that decay towards the input, by a factor of 0.65 per stage."""
    config.optim.layer_decay = 0.65


@register_method()
def norm_only(config: Config) -> None:
    """Train BatchNorm scales and biases and the head: Frankle et al. 2021, arXiv:2003.00152."""
    config.freeze.recipe = "norm_only"


@register_method()
def bias_only(config: Config) -> None:
    """Train the biases and the head: BitFit, arXiv:2106.10199."""
    config.freeze.recipe = "bias_only"


@register_method()
def lora(config: Config) -> None:
    """Train low-rank updates of all kernels and the head: LoRA, arXiv:2106.09685."""
    config.adapt.kind, config.freeze.recipe = "lora", "adapters"


@register_method(inputs="images")
def parallel(config: Config) -> None:
    """Train low-rank 1x1 convolutions in parallel to all layers, and the head: arXiv:1803.10082."""
    config.adapt.kind, config.freeze.recipe = "parallel", "adapters"


@register_method()
def bottleneck(config: Config) -> None:
    """Train bottleneck adapters between the stages, and the head: arXiv:1902.00751."""
    config.adapt.kind, config.adapt.rank, config.freeze.recipe = "bottleneck", 16, "adapters"


@register_method()
def distill(config: Config) -> None:
    """Fine-tune with a penalty on the distance between feature maps and those of the source network."""
    config.regularize.distill = 0.01


@register_method()
def wise_ft(config: Config) -> None:
    """Run LP-FT, then average its first and last weights in the best ratio: WiSE-FT, arXiv:2109.01903."""
    config.init.head, config.wise_ft = "logistic", True


@register_method()
def ema(config: Config) -> None:
    """Fine-tune and evaluate an exponential moving average of the weights."""
    config.optim.ema = 0.99


@register_method()
def l2_sp(config: Config) -> None:
    """Fine-tune with an L2 penalty towards the pretrained weights: L2-SP, arXiv:1802.01483."""
    config.regularize.l2_sp, config.regularize.l2_sp_head = 0.01, 0.01


@register_method(inputs="images")
def delta(config: Config) -> None:
    """Keep the feature maps that matter for the target close to the source's: DELTA, arXiv:1901.09229."""
    config.regularize.delta = 0.01


@register_method()
def bss(config: Config) -> None:
    """Penalize the smallest singular value of each batch of features: batch spectral shrinkage (BSS)."""
    config.regularize.bss = 1e-3


@register_method(inputs="images")
def co_tuning(config: Config) -> None:
    """Train the source's own head too, on the source classes that match each target class: Co-Tuning."""
    config.regularize.co_tuning = 2.3


@register_method(inputs="images")
def stochastic_norm(config: Config) -> None:
    """Normalize half of the BatchNorm channels with the source statistics: stochastic normalization."""
    config.regularize.stochastic_norm = 0.5


@register_method()
def label_smoothing(config: Config) -> None:
    """Fine-tune with label smoothing of 0.1."""
    config.regularize.label_smoothing = 0.1


@register_method(inputs="images")
def mixup(config: Config) -> None:
    """Blend pairs of images and their labels: Mixup, arXiv:1710.09412."""
    config.regularize.mixup = 0.2


@register_method(inputs="images")
def cutmix(config: Config) -> None:
    """Paste a box from one image into another: CutMix, arXiv:1905.04899."""
    config.regularize.cutmix = 1.0


@register_method()
def dropout(config: Config) -> None:
    """Fine-tune with dropout of 0.5 before the head."""
    config.regularize.dropout = 0.5


@register_method(inputs="images")
def drop_path(config: Config) -> None:
    """Skip residual blocks at random: stochastic depth, arXiv:1603.09382."""
    config.regularize.drop_path = 0.2


@register_method()
def sam(config: Config) -> None:
    """Seek flat minima with sharpness-aware minimization, at two passes per step: SAM, arXiv:2010.01412."""
    config.optim.sam = 0.05


@register_method()
def early_stop(config: Config) -> None:
    """Stop after three evaluations without improvement and keep the best checkpoint."""
    config.patience, config.eval_checkpoint = 3, "best"


@register_method(inputs="images", name="rotation_beside")
def joint_rotation(config: Config) -> None:
    """Predict image rotations jointly with the labels: RotNet, arXiv:1803.07728."""
    config.pretext.name, config.pretext.weight = "rotation", 0.5


@register_method(inputs="images", name="simclr_beside")
def joint_simclr(config: Config) -> None:
    """Contrast views of each image with other images, jointly with the labels: SimCLR, arXiv:2002.05709."""
    config.pretext.name, config.pretext.weight = "simclr", 0.1


@register_method(inputs="images", name="simsiam_beside")
def joint_simsiam(config: Config) -> None:
    """Predict one view of an image from another, jointly with the labels: SimSiam, arXiv:2011.10566."""
    config.pretext.name, config.pretext.weight = "simsiam", 0.1


@register_method(inputs="images")
def rotation_first(config: Config) -> None:
    """Pretrain on rotation prediction with unlabelled images, then fine-tune."""
    _pretext_first(config, "rotation")


@register_method(inputs="images")
def simclr_first(config: Config) -> None:
    """Pretrain with SimCLR on unlabelled images, then fine-tune."""
    _pretext_first(config, "simclr")


@register_method(inputs="images")
def simsiam_first(config: Config) -> None:
    """Pretrain with SimSiam on unlabelled images, then fine-tune."""
    _pretext_first(config, "simsiam")


@register_method(inputs="texts", name="words_beside")
def joint_masked_lm(config: Config) -> None:
    """Predict masked words jointly with the labels: BERT's masked language modelling, arXiv:1810.04805."""
    config.pretext.name, config.pretext.weight = "masked", 0.1


@register_method(inputs="texts")
def words_first(config: Config) -> None:
    """Pretrain on masked words of the unlabelled texts, then fine-tune: arXiv:2004.10964."""
    _pretext_first(config, "masked")


def _pretext_first(config: Config, name: str, epochs: float = 10.0) -> None:
    """Add a pretext phase before fine-tuning."""
    config.pretext.name = name
    config.phases = (
        {"name": "pretext", "epochs": epochs, "objective": "pretext", "recipe": "all"},
        {"name": "tune", "epochs": config.epochs, "recipe": "all"},
    )
    config.epochs = RunConfig().epochs


def _disable_augmentation(config: Config) -> None:
    """Turn augmentation off, since a probe sees each image once."""
    for name in config.get("augment", ()):  # texts have none
        config.augment[name] = getattr(AugmentConfig(), name)


def names_for_task(kind: str) -> tuple[str, ...]:
    """Return the names of the methods available for a task."""
    inputs = TASKS[kind].input_kind
    return tuple(name for name, method in METHODS.items() if method.inputs in ("", inputs))


def __getattr__(name: str) -> Any:
    """Return a method's function by name, or a name from 0.1, which is supported for one release."""
    if name in METHODS:
        return METHODS[name].change
    if name == "MECHANISMS":
        warnings.warn(
            "methods.MECHANISMS is deprecated; use METHODS and register_method", DeprecationWarning, stacklevel=2
        )
        return METHODS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
