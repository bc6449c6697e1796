"""Ways to transfer by name, each a few changes to a recipe: what experiments/mechanisms/study.py compares.

    python run.py --config=configs/flowers_mobilenet.py:lora --config.optim.lr=1e-3

Each function takes a recipe with its data, network, rate and ``epochs`` set, and changes only what makes the mechanism.
Strengths are those usual in the papers (see tl_jax/transfer/regularizers.py); nothing here was tuned on a data set.
"""

import math
from collections.abc import Callable

from tl_jax.config.recipe import FIELDS, Config, stage_names
from tl_jax.config.schema import IMAGE_TASKS


def fine_tune(config: Config) -> None:
    """Train everything at one rate, from the source's weights and a random head."""
    config.freeze.recipe = "all"


def still_norms(config: Config) -> None:
    """Train everything with BatchNorm on the source's statistics, as Keras' guide to fine-tuning has it."""
    config.freeze.batch_stats = "frozen"


def scratch(config: Config) -> None:
    """Train everything from random weights: what transfer has to beat."""
    if config.task in IMAGE_TASKS:
        config.init.layout, config.init.path = config.init.source, ""  # a text network's folder has the tokenizer
    config.init.source = "random"


def logistic(config: Config) -> None:
    """Reuse features: a logistic regression on them, nothing else."""
    config.init.head, config.epochs = "logistic", 0.0
    _disable_augmentation(config)


def ridge(config: Config) -> None:
    """Reuse features: a ridge regression on them, nothing else."""
    logistic(config)
    config.init.head = "ridge"


def head(config: Config) -> None:
    """Reuse features of augmented pictures: train the head alone by gradient descent."""
    config.freeze.recipe = "head"


def lp_ft(config: Config) -> None:
    """Fit the head first, then train everything: LP-FT, Kumar et al. 2022, arXiv:2202.10054."""
    config.init.head = "logistic"


def last_stages(config: Config) -> None:
    """Train the last third of the network's parts and the head."""
    config.freeze.recipe, config.freeze.stages = "last_n_stages", math.ceil(len(stage_names(config)) / 3)


def gradual(config: Config) -> None:
    """Unfreeze from the head down in three phases of a third of the run each: ULMFiT, arXiv:1801.06146."""
    count, epochs = len(stage_names(config)), config.epochs / 3
    config.phases = (
        {"name": "head", "epochs": epochs, "recipe": "head"},
        {"name": "half", "epochs": epochs, "recipe": "last_n_stages", "stages": math.ceil(count / 2)},
        {"name": "all", "epochs": epochs, "recipe": "all"},
    )
    config.epochs = FIELDS["epochs"].default


def layer_decay(config: Config) -> None:
    """Let rates fall towards the input, by 0.65 a part."""
    config.optim.layer_decay = 0.65


def norm_only(config: Config) -> None:
    """Train BatchNorm's scales and biases and the head: Frankle et al. 2021, arXiv:2003.00152."""
    config.freeze.recipe = "norm_only"


def bias_only(config: Config) -> None:
    """Train biases and the head: BitFit, arXiv:2106.10199."""
    config.freeze.recipe = "bias_only"


def lora(config: Config) -> None:
    """Train low-rank changes of all kernels and the head: LoRA, arXiv:2106.09685."""
    config.adapt.kind, config.freeze.recipe = "lora", "adapters"


def parallel(config: Config) -> None:
    """Train 1x1 convolutions of low rank beside all layers, and the head: arXiv:1803.10082."""
    config.adapt.kind, config.freeze.recipe = "parallel", "adapters"


def bottleneck(config: Config) -> None:
    """Train bottleneck adapters between the parts, and the head: arXiv:1902.00751."""
    config.adapt.kind, config.adapt.rank, config.freeze.recipe = "bottleneck", 16, "adapters"


def distill(config: Config) -> None:
    """Keep feature maps close to the source's."""
    config.regularize.distill = 0.01


def wise_ft(config: Config) -> None:
    """LP-FT, then the best mixture of its start and its end: arXiv:2109.01903."""
    config.init.head, config.wise_ft = "logistic", True


def ema(config: Config) -> None:
    """Test the running average of the weights."""
    config.optim.ema = 0.99


def l2_sp(config: Config) -> None:
    """Pull weights towards where they started: arXiv:1802.01483."""
    config.regularize.l2_sp, config.regularize.l2_sp_head = 0.01, 0.01


def delta(config: Config) -> None:
    """Keep the feature maps that matter to the target close to the source's: arXiv:1901.09229."""
    config.regularize.delta = 0.01


def bss(config: Config) -> None:
    """Shrink the smallest singular value of each batch of features: batch spectral shrinkage."""
    config.regularize.bss = 1e-3


def co_tuning(config: Config) -> None:
    """Train the source's own head too, on what it takes the target's classes for: Co-Tuning."""
    config.regularize.co_tuning = 2.3


def stochastic_norm(config: Config) -> None:
    """Let half of BatchNorm's channels use the source's statistics."""
    config.regularize.stochastic_norm = 0.5


def label_smoothing(config: Config) -> None:
    """Spread a tenth of each label over the classes."""
    config.regularize.label_smoothing = 0.1


def mixup(config: Config) -> None:
    """Blend pairs of pictures: arXiv:1710.09412."""
    config.regularize.mixup = 0.2


def cutmix(config: Config) -> None:
    """Paste a box of one picture into another: arXiv:1905.04899."""
    config.regularize.cutmix = 1.0


def dropout(config: Config) -> None:
    """Drop half of the features before the head."""
    config.regularize.dropout = 0.5


def drop_path(config: Config) -> None:
    """Skip residual blocks at random: stochastic depth, arXiv:1603.09382."""
    config.regularize.drop_path = 0.2


def sam(config: Config) -> None:
    """Look for flat minima: arXiv:2010.01412; twice the work a step."""
    config.optim.sam = 0.05


def early_stop(config: Config) -> None:
    """Stop after three evaluations without a better one, and test the best."""
    config.patience, config.eval_checkpoint = 3, "best"


def rotation_beside(config: Config) -> None:
    """Recognise quarter turns beside the labels: arXiv:1803.07728."""
    config.pretext.name, config.pretext.weight = "rotation", 0.5


def simclr_beside(config: Config) -> None:
    """Tell views of one picture from those of others, beside the labels: arXiv:2002.05709."""
    config.pretext.name, config.pretext.weight = "simclr", 0.1


def simsiam_beside(config: Config) -> None:
    """Predict one view of a picture from another, beside the labels: arXiv:2011.10566."""
    config.pretext.name, config.pretext.weight = "simsiam", 0.1


def rotation_first(config: Config) -> None:
    """Recognise quarter turns of the unlabelled pictures, then fine-tune."""
    _pretext_first(config, "rotation")


def simclr_first(config: Config) -> None:
    """SimCLR on the unlabelled pictures, then fine-tune."""
    _pretext_first(config, "simclr")


def simsiam_first(config: Config) -> None:
    """SimSiam on the unlabelled pictures, then fine-tune."""
    _pretext_first(config, "simsiam")


def words_beside(config: Config) -> None:
    """Guess hidden words of the texts beside their labels: BERT's own pretext, arXiv:1810.04805."""
    config.pretext.name, config.pretext.weight = "masked", 0.1


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
    config.epochs = FIELDS["epochs"].default


def _disable_augmentation(config: Config) -> None:
    """Turn augmentation off: a probe sees each picture once, as it is."""
    for path in (path for path in FIELDS if path.startswith("augment.")):
        config.augment[path.removeprefix("augment.")] = FIELDS[path].default


MECHANISMS: dict[str, Callable[[Config], None]] = {
    f.__name__: f
    for f in (
        scratch, fine_tune, still_norms, logistic, ridge, head, lp_ft, last_stages, gradual, layer_decay,
        norm_only, bias_only, lora, parallel, bottleneck, distill, wise_ft, ema, l2_sp, delta, bss, co_tuning,
        stochastic_norm, label_smoothing, mixup, cutmix, dropout, drop_path, sam, early_stop, rotation_beside,
        simclr_beside, simsiam_beside, rotation_first, simclr_first, simsiam_first, words_beside, words_first,
    )
}  # fmt: skip
TEXT_ONLY = ("words_beside", "words_first")
IMAGE_ONLY = (
    "still_norms", "parallel", "delta", "co_tuning", "stochastic_norm", "mixup", "cutmix", "drop_path",
    *(f"{name}_{when}" for name in ("rotation", "simclr", "simsiam") for when in ("beside", "first")),
)  # fmt: skip


def names_for_task(task: str) -> tuple[str, ...]:
    """Return the names of the mechanisms for a kind of task."""
    return tuple(name for name in MECHANISMS if name not in (TEXT_ONLY if task in IMAGE_TASKS else IMAGE_ONLY))
