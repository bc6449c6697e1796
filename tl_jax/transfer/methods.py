"""Ways to transfer by name, each a few changes to a recipe: what experiments/mechanisms/study.py compares.

    python run.py --config=configs/flowers_mobilenet.py:lora --config.optim.lr=1e-3

Each function takes a recipe with its data, network, rate and ``epochs`` set, and changes only what makes the mechanism.
Strengths are those usual in the papers (see tl_jax/transfer/regularizers.py); nothing here was tuned on a data set.
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
    """A way to transfer.

    Attributes:
        change: puts it into a recipe.
        inputs: of the tasks that it is for, see ``Task.input_kind``; empty for all.
        name: under which it is registered.
    """

    change: Callable[[Config], None]
    inputs: str = ""
    name: str = ""

    def __call__(self, config: Config) -> None:
        try:
            self.change(config)
        except AttributeError as e:  # the kind of task has no such field
            raise UserError(f"method {self.name} is not for config.task={config.task}: {e}") from None


METHODS: Registry[Method] = Registry("method")


def register_method(inputs: str = "", name: str = "") -> Callable[[Callable[[Config], None]], Callable[[Config], None]]:
    """Return a decorator that registers a change of recipes as a method.

    Args:
        inputs: of the tasks that it is for, see ``Task.input_kind``; empty for all.
        name: of the method; empty for the name of the function.
    """

    if callable(inputs):
        raise UserError("write @register_method() above a method, with parentheses")
    if inputs not in ("", "images", "texts", "observations"):
        raise UserError(f"inputs={inputs!r} of a method is none of images, texts and observations; correct it")

    def register(change: Callable[[Config], None]) -> Callable[[Config], None]:
        method = Method(change, inputs, name or change.__name__)
        METHODS.add(method.name, method, change.__module__, change.__qualname__)
        return change

    return register


@register_method()
def auto(config: Config) -> None:
    """Choose by validation what trains and how fast, beginning with a linear probe; see ``tl_jax.choose_method``."""
    config.method = AUTO


@register_method()
def scratch(config: Config) -> None:
    """Train everything from random weights: what transfer has to beat."""
    if not TASKS[config.task].random_files:
        config.init.path = ""
    if "layout" in config.init:  # of images
        config.init.layout = config.init.source
    config.init.source = "random"


@register_method()
def fine_tune(config: Config) -> None:
    """Train everything at one rate, from the source's weights and a random head."""
    config.freeze.recipe = "all"


@register_method(inputs="images", name="still_norms")
def frozen_batch_norm(config: Config) -> None:
    """Train everything with BatchNorm on the source's statistics, as Keras' guide to fine-tuning has it."""
    config.freeze.batch_stats = "frozen"


@register_method()
def logistic(config: Config) -> None:
    """Reuse features: a logistic regression on them, nothing else."""
    config.init.head, config.epochs = "logistic", 0.0
    _disable_augmentation(config)


@register_method()
def ridge(config: Config) -> None:
    """Reuse features: a ridge regression on them, nothing else."""
    logistic(config)
    config.init.head = "ridge"


@register_method()
def head(config: Config) -> None:
    """Reuse features of augmented pictures: train the head alone by gradient descent."""
    config.freeze.recipe = "head"


@register_method()
def lp_ft(config: Config) -> None:
    """Fit the head first, then train everything: LP-FT, Kumar et al. 2022, arXiv:2202.10054."""
    config.init.head = "logistic"


@register_method()
def last_stages(config: Config) -> None:
    """Train the last third of the network's parts and the head."""
    count = len(TASKS[config.task].stage_names(freeze(config)))
    config.freeze.recipe, config.freeze.stages = "last_n_stages", math.ceil(count / 3)


@register_method()
def gradual(config: Config) -> None:
    """Unfreeze from the head down in three phases of a third of the run each: ULMFiT, arXiv:1801.06146."""
    count, epochs = len(TASKS[config.task].stage_names(freeze(config))), config.epochs / 3
    config.phases = (
        {"name": "head", "epochs": epochs, "recipe": "head"},
        {"name": "half", "epochs": epochs, "recipe": "last_n_stages", "stages": math.ceil(count / 2)},
        {"name": "all", "epochs": epochs, "recipe": "all"},
    )
    config.epochs = RunConfig().epochs


@register_method()
def layer_decay(config: Config) -> None:
    """Let rates fall towards the input, by 0.65 a part."""
    config.optim.layer_decay = 0.65


@register_method()
def norm_only(config: Config) -> None:
    """Train BatchNorm's scales and biases and the head: Frankle et al. 2021, arXiv:2003.00152."""
    config.freeze.recipe = "norm_only"


@register_method()
def bias_only(config: Config) -> None:
    """Train biases and the head: BitFit, arXiv:2106.10199."""
    config.freeze.recipe = "bias_only"


@register_method()
def lora(config: Config) -> None:
    """Train low-rank changes of all kernels and the head: LoRA, arXiv:2106.09685."""
    config.adapt.kind, config.freeze.recipe = "lora", "adapters"


@register_method(inputs="images")
def parallel(config: Config) -> None:
    """Train 1x1 convolutions of low rank beside all layers, and the head: arXiv:1803.10082."""
    config.adapt.kind, config.freeze.recipe = "parallel", "adapters"


@register_method()
def bottleneck(config: Config) -> None:
    """Train bottleneck adapters between the parts, and the head: arXiv:1902.00751."""
    config.adapt.kind, config.adapt.rank, config.freeze.recipe = "bottleneck", 16, "adapters"


@register_method()
def distill(config: Config) -> None:
    """Keep feature maps close to the source's."""
    config.regularize.distill = 0.01


@register_method()
def wise_ft(config: Config) -> None:
    """LP-FT, then the best mixture of its start and its end: arXiv:2109.01903."""
    config.init.head, config.wise_ft = "logistic", True


@register_method()
def ema(config: Config) -> None:
    """Test the running average of the weights."""
    config.optim.ema = 0.99


@register_method()
def l2_sp(config: Config) -> None:
    """Pull weights towards where they started: arXiv:1802.01483."""
    config.regularize.l2_sp, config.regularize.l2_sp_head = 0.01, 0.01


@register_method(inputs="images")
def delta(config: Config) -> None:
    """Keep the feature maps that matter to the target close to the source's: arXiv:1901.09229."""
    config.regularize.delta = 0.01


@register_method()
def bss(config: Config) -> None:
    """Shrink the smallest singular value of each batch of features: batch spectral shrinkage."""
    config.regularize.bss = 1e-3


@register_method(inputs="images")
def co_tuning(config: Config) -> None:
    """Train the source's own head too, on what it takes the target's classes for: Co-Tuning."""
    config.regularize.co_tuning = 2.3


@register_method(inputs="images")
def stochastic_norm(config: Config) -> None:
    """Let half of BatchNorm's channels use the source's statistics."""
    config.regularize.stochastic_norm = 0.5


@register_method()
def label_smoothing(config: Config) -> None:
    """Spread a tenth of each label over the classes."""
    config.regularize.label_smoothing = 0.1


@register_method(inputs="images")
def mixup(config: Config) -> None:
    """Blend pairs of pictures: arXiv:1710.09412."""
    config.regularize.mixup = 0.2


@register_method(inputs="images")
def cutmix(config: Config) -> None:
    """Paste a box of one picture into another: arXiv:1905.04899."""
    config.regularize.cutmix = 1.0


@register_method()
def dropout(config: Config) -> None:
    """Drop half of the features before the head."""
    config.regularize.dropout = 0.5


@register_method(inputs="images")
def drop_path(config: Config) -> None:
    """Skip residual blocks at random: stochastic depth, arXiv:1603.09382."""
    config.regularize.drop_path = 0.2


@register_method()
def sam(config: Config) -> None:
    """Look for flat minima: arXiv:2010.01412; twice the work a step."""
    config.optim.sam = 0.05


@register_method()
def early_stop(config: Config) -> None:
    """Stop after three evaluations without a better one, and test the best."""
    config.patience, config.eval_checkpoint = 3, "best"


@register_method(inputs="images", name="rotation_beside")
def joint_rotation(config: Config) -> None:
    """Recognise quarter turns beside the labels: arXiv:1803.07728."""
    config.pretext.name, config.pretext.weight = "rotation", 0.5


@register_method(inputs="images", name="simclr_beside")
def joint_simclr(config: Config) -> None:
    """Tell views of one picture from those of others, beside the labels: arXiv:2002.05709."""
    config.pretext.name, config.pretext.weight = "simclr", 0.1


@register_method(inputs="images", name="simsiam_beside")
def joint_simsiam(config: Config) -> None:
    """Predict one view of a picture from another, beside the labels: arXiv:2011.10566."""
    config.pretext.name, config.pretext.weight = "simsiam", 0.1


@register_method(inputs="images")
def rotation_first(config: Config) -> None:
    """Recognise quarter turns of the unlabelled pictures, then fine-tune."""
    _pretext_first(config, "rotation")


@register_method(inputs="images")
def simclr_first(config: Config) -> None:
    """SimCLR on the unlabelled pictures, then fine-tune."""
    _pretext_first(config, "simclr")


@register_method(inputs="images")
def simsiam_first(config: Config) -> None:
    """SimSiam on the unlabelled pictures, then fine-tune."""
    _pretext_first(config, "simsiam")


@register_method(inputs="texts", name="words_beside")
def joint_masked_lm(config: Config) -> None:
    """Guess hidden words of the texts beside their labels: BERT's own pretext, arXiv:1810.04805."""
    config.pretext.name, config.pretext.weight = "masked", 0.1


@register_method(inputs="texts")
def words_first(config: Config) -> None:
    """Guess hidden words of the unlabelled texts, then fine-tune: arXiv:2004.10964."""
    _pretext_first(config, "masked")


def _pretext_first(config: Config, name: str, epochs: float = 10.0) -> None:
    """Add a phase of the pretext before the whole of fine-tuning."""
    config.pretext.name = name
    config.phases = (
        {"name": "pretext", "epochs": epochs, "objective": "pretext", "recipe": "all"},
        {"name": "tune", "epochs": config.epochs, "recipe": "all"},
    )
    config.epochs = RunConfig().epochs


def _disable_augmentation(config: Config) -> None:
    """Turn augmentation off: a probe sees each picture once, as it is."""
    for name in config.get("augment", ()):  # texts have none
        config.augment[name] = getattr(AugmentConfig(), name)


def names_for_task(kind: str) -> tuple[str, ...]:
    """Return the names of the methods for a kind of task."""
    inputs = TASKS[kind].input_kind
    return tuple(name for name, method in METHODS.items() if method.inputs in ("", inputs))


def __getattr__(name: str) -> Any:
    """Return the function of a method by the method's name, and what had another name in 0.1, for one release."""
    if name in METHODS:
        return METHODS[name].change
    if name == "MECHANISMS":
        warnings.warn("methods.MECHANISMS is METHODS, and register_method adds to it", DeprecationWarning, stacklevel=2)
        return METHODS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
