"""Every field of a configuration, once: default, meaning, unit, choices. Names and values are checked against them."""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tl_jax import models
from tl_jax.data import registry
from tl_jax.data.dicom import WINDOWS
from tl_jax.pretrained.catalog import published_sources
from tl_jax.train.task import TASKS
from tl_jax.transfer import adapters, arcface, freeze
from tl_jax.transfer.optimizer import SCHEDULES
from tl_jax.transfer.regularizers import REGULARIZERS
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.registry import IMPORT_HINT
from tl_jax.utils.scaling import SCALINGS

# Keras' networks come with 0.99 and 0.999, for runs of 100,000 steps: in a short one the statistics would still be the
# source's when the weights are not, and evaluation goes wrong.
MOMENTUM_DOC = "share of BatchNorm's old statistics that a step keeps; 0 takes the network's own"
DATASET_NAMES = {inputs: ", ".join(registry.names(inputs)) for inputs in registry.INPUTS}
CACHE_MODES = ("auto", "off")
BATCH_STATS_MODES = ("auto", "train", "frozen")
HEAD_INITS = ("new", "keep", "logistic", "ridge")


class Field(NamedTuple):
    """One field; ``low`` and ``high`` are inclusive limits of numbers.

    ``choices`` may be a function, for names that are added after this was made, such as models of the user's own.
    """

    default: Any
    doc: str
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    low: float | None = None
    high: float | None = None


_FIXED_FIELDS = {
    "name": Field("base", "name of the recipe, for folders and summaries"),
    "smoke": Field(False, "whether the run shows no more than that every part works; its results then say so"),
    "seed": Field(0, "of the new head, the order and augmentation of examples, and the parts cut from train", low=0),
    "task": Field(
        "image",
        "pictures with labels, boxes or people; texts or words in them with labels; words to guess; a world to act in",
        lambda: tuple(TASKS),
    ),
    # What is compared: every arm is run with every seed, and one summary and picture made of all.
    "seeds": Field((), "seeds to repeat the run with; empty for the one in `seed`"),
    "arms": Field((), "pairs (name, ((field, value), ...)): variants of this configuration to compare"),
    # The network and where its weights come from.
    "model.name": Field("resnet50", "network", lambda: (*models.names(), *models.names("texts"), models.POLICY)),
    "model.num_classes": Field(0, "outputs of the head; 0 takes the number from the data", low=0),
    "model.endpoint": Field("", "part of the network on which the new head sits, such as stage3; empty for the last"),
    "model.channels": Field(3, "of the network's input; 1 turns pictures to grey", low=1, high=3),
    "model.dtype": Field("float32", "of the computation; parameters are always float32", ("float32", "bfloat16")),
    "model.options": Field({}, "further attributes of the model class, by name"),
    "adapt.kind": Field("", "small trained layers in a frozen network (see transfer/adapters.py)", adapters.KINDS),
    "adapt.rank": Field(8, "of low-rank changes (0 for none), or width of bottleneck adapters", low=0),
    "adapt.alpha": Field(8.0, "low-rank changes count alpha / rank", low=0.0),
    "adapt.targets": Field(".*", "regex over the paths of kernels that get a low-rank change"),
    "init.source": Field(
        "keras", "whose weights are loaded", lambda: (*published_sources(), "huggingface", "tl_jax", "random")
    ),
    "init.layout": Field("keras", "source whose layout random weights take", lambda: (*published_sources(), "tl_jax")),
    "init.path": Field(
        "", "file of weights, bundle, or a text network's folder or hub repository; empty: embedded or published"
    ),
    "init.rename": Field(
        (), "pairs (regex, replacement): new names for arrays in the file that its table does not know"
    ),
    "init.head": Field("new", "drawn at random, kept from the file, or a probe fitted to the features", HEAD_INITS),
    "init.strength": Field(0.0, "C of the probe, 1 / penalty; 0 takes the best of seven on validation", low=0.0),
    "init.load_parts": Field(
        ("trunk", "policy", "value", "normalizer"),
        "parts of a source policy that are taken over; optimizer too, if named",
    ),
    "init.allow_shape_mismatch": Field(
        False, "draw anew what the source's observations or actions do not fit, and take the rest"
    ),
    # Data.
    "data.name": Field(
        "cifar10",
        f"{DATASET_NAMES['images']}; with boxes: {DATASET_NAMES['boxes']}; with people: {DATASET_NAMES['people']}; "
        f"texts: {DATASET_NAMES['texts']}; or any TFDS set",
    ),
    "data.dir": Field("", "TFDS folder (empty: TFDS' own default), pictures as data.name says, or files of texts"),
    "data.generate": Field(False, "where data.dir is empty, draw pictures, or take installed texts (for smoke runs)"),
    "data.text": Field(("text",), "columns that hold the text, or the two of a pair"),
    "data.label": Field("label", "column with the label of a text, or in index.csv of a picture (empty: its folder)"),
    "data.group": Field(
        "",
        "column of index.csv: images of one patient or source stay in one split; without a column of that name, "
        "study: DICOM files by StudyInstanceUID, none: no groups; empty: DICOM files by PatientID",
    ),
    "data.fit": Field(
        "crop",
        "how pictures of differing sizes become squares: their centre, the whole between black borders, or distorted",
        ("crop", "pad", "stretch"),
    ),
    "data.windows": Field(
        ("lung", "mediastinum", "bone"),
        f"of Hounsfield units, for DICOM, as the three channels or one for all: {', '.join(WINDOWS)}, "
        "or pairs (level, width); empty takes the file's own",
    ),
    "data.range": Field(
        (),
        "pair (low, high) of values that become black and white, for images with more than 8 bits; "
        "empty takes the least and the largest value of the data set",
    ),
    "data.max_pixels": Field(0, "pixels of an image at most; 0 takes Pillow's limit, 89,478,485", low=0),
    "data.outside": Field(
        False,
        "read files outside data.dir, too, that an index or annotations name, or links below a class folder lead to",
    ),
    "data.columns": Field((), "names of all columns, for files of texts whose first line does not have them"),
    "data.validation": Field(
        0.1,
        "share of train held out, stratified by class; 0 for none; a part that the set brings is taken whole",
        low=0.0,
        high=0.9,
    ),
    "data.train_examples": Field(0, "random training examples kept, stratified by class; 0 for all", low=0),
    "data.per_class": Field(0, "random training examples kept of each class; 0 for all", low=0),
    "data.gigabytes": Field(
        16.0, "of decoded pictures kept on disk; a set that takes more is decoded each time it is read", low=0.0
    ),
    "data.test_examples": Field(
        0, "test examples used, drawn stratified by class, the same for every seed; 0 for all", low=0
    ),
    # From stored pixels to network inputs.
    "input.size": Field(0, "side of the network's input in pixels; 0 takes that of the weights", low=0),
    "input.interpolation": Field("", "resize method; empty takes that of the weights", ("", "bilinear", "bicubic")),
    "input.crop": Field(1.0, "share of the shortest side that the centre crop keeps", low=0.1, high=1.0),
    "input.scaling": Field("spec", "pixel scaling; spec takes that of the weights", lambda: ("spec", *SCALINGS)),
    "input.max_length": Field(128, "tokens of a text at most; 0: as many as the network takes", low=0, high=8192),
    "augment.flip": Field(False, "mirror half of the training pictures left to right"),
    "augment.crop_pad": Field(0, "border in pixels of the stored picture before a random crop; 0 for none", low=0),
    "augment.rotate": Field(0.0, "largest rotation in degrees, either way; 0 for none", low=0.0, high=180.0),
    "augment.resized_crop": Field(0.0, "least share of the area that a crop keeps; 0 for none", low=0.0, high=1.0),
    "augment.jitter": Field(0.0, "strength of changes to brightness, contrast, saturation, hue", low=0.0, high=1.0),
    "augment.grey": Field(0.0, "share of pictures turned grey", low=0.0, high=1.0),
    "augment.randaugment": Field(0, "operations drawn at random for each picture", low=0, high=10),
    "augment.magnitude": Field(9.0, "of these operations, of 10", low=0.0, high=10.0),
    "augment.erase": Field(0.0, "share of pictures in which a random rectangle is erased", low=0.0, high=1.0),
    "test_views": Field(1, "views averaged in evaluation: 1; 2, the mirrored one too; 10, crops too", low=1, high=10),
    "batch_size": Field(64, "training examples a step, over all devices", low=1),
    "eval_batch_size": Field(256, "examples an evaluation step, over all devices", low=1),
    # Pictures with boxes around objects.
    "detect.classes": Field((), "names of the classes, in their order; empty takes those of the training part"),
    "detect.width": Field(64, "channels of the head, a multiple of 8", low=8),
    "detect.min_visibility": Field(0.3, "share of a box that a crop must leave for it to be kept", low=0.0, high=1.0),
    "detect.max_detections": Field(100, "boxes of a picture at most, the surest ones", low=1),
    "detect.nms_iou": Field(0.6, "IoU above which the less sure of two boxes of a class is dropped", low=0.0, high=1.0),
    "detect.score_threshold": Field(0.3, "least score of a box that predictions show", low=0.0, high=1.0),
    # Pictures of people, verified and identified.
    "faces.embedding": Field(128, "values of an embedding; 0 takes the network's features as they are", low=0),
    "faces.loss": Field("arcface", "with which people are told apart in training", arcface.LOSSES),
    "faces.scale": Field(64.0, "s, factor on the cosines of arcface", low=1.0),
    "faces.margin": Field(0.5, "m of arcface in radians", low=0.0, high=1.5),
    "faces.test_identities": Field(
        0.25, "people who are tested and never trained on: a share, or from 1 on a number", low=0.0
    ),
    "faces.test_file": Field("", "file that names them instead, one a line, as LFW's people.txt"),
    "faces.pairs": Field("", "file of pairs to verify, as LFW's pairs.txt; it names the people to test"),
    "faces.split_seed": Field(0, "draws the people to test: the same for every `seed`", low=0),
    "faces.min_images": Field(0, "people with fewer are left out; 0: nobody, and one picture is an error", low=0),
    "faces.gallery": Field(1, "pictures of each person that are known when the others are identified", low=1),
    "faces.known": Field("", "folder of the people that --mode=predict knows; empty for data.dir"),
    # A world to act in, and PPO; batch_size counts the steps of all worlds between two updates.
    "rl.env": Field("CartPole-v1", "environment of gymnax, such as Pendulum-v1 or Breakout-MinAtar"),
    "rl.env_params": Field((), "pairs (parameter, value) in which it differs, such as ('gravity', 12.0)"),
    "rl.total_timesteps": Field(300_000, "steps of training, all worlds together, that an epoch counts", low=1),
    "rl.num_envs": Field(16, "copies of the world that are acted in at once", low=1),
    "rl.ppo_epochs": Field(10, "over what was collected, at each update", low=1),
    "rl.minibatches": Field(4, "optimizer steps in a pass", low=1),
    "rl.gamma": Field(0.99, "gamma, of later rewards", low=0.0, high=1.0),
    "rl.gae_lambda": Field(0.95, "lambda, of the advantages", low=0.0, high=1.0),
    "rl.clip": Field(0.2, "share by which an action's probability may move at an update", low=0.0),
    "rl.value_coef": Field(0.5, "of the value's squared error in the loss", low=0.0),
    "rl.entropy_coef": Field(0.01, "weight of the policy's entropy in the loss", low=0.0),
    "rl.reward_scale": Field(1.0, "factor on rewards while training", low=1e-6),
    "rl.normalize": Field(True, "bring observations to mean 0 and variance 1"),
    "rl.kickstart": Field(0.0, "weight of the divergence from the source's policy in the loss", low=0.0),
    "rl.kickstart_share": Field(0.5, "of training after which that weight has fallen to 0", low=0.0, high=1.0),
    "rl.episodes": Field(32, "of an evaluation", low=1),
    # What trains, how, and for how long.
    "freeze.recipe": Field("all", "what trains", freeze.NAMES),
    "freeze.stages": Field(1, "parts of the network, from the end, that last_n_stages trains", low=1),
    "freeze.rules": Field((), "pairs (regex over leaf paths, 'frozen' or a group); not empty, they replace the recipe"),
    "freeze.batch_stats": Field(
        "auto", "BatchNorm uses running statistics: where frozen, nowhere, everywhere", BATCH_STATS_MODES
    ),
    "optim.batch_norm_momentum": Field(0.9, MOMENTUM_DOC, low=0.0, high=0.9999),
    "freeze.verify": Field(False, "hash what is frozen before and after each phase; a change ends the run"),
    "optim.name": Field("adam", "optimizer; with weight_decay adam is AdamW", ("adam", "sgd")),
    "optim.lr": Field(1e-3, "peak learning rate", low=0.0),
    "optim.schedule": Field("constant", "learning rate over a phase, after the warm-up", SCHEDULES),
    "optim.warmup": Field(0.0, "share of a phase in which the rate rises linearly", low=0.0, high=1.0),
    "optim.weight_decay": Field(0.0, "of kernels", low=0.0),
    "optim.momentum": Field(0.9, "of sgd", low=0.0, high=1.0),
    "optim.epsilon": Field(1e-8, "of adam (Keras has 1e-7)", low=0.0),
    "optim.clip_norm": Field(0.0, "largest norm of the trained leaves' gradients; 0 for no clipping", low=0.0),
    "optim.layer_decay": Field(1.0, "factor on the rate for each part further from the head", low=0.0, high=1.0),
    "optim.lr_multipliers": Field((), "pairs (group of the freeze rules, factor on its rate)"),
    "optim.sam": Field(0.0, "radius of sharpness-aware minimisation, 0.05 say; two passes a step; 0 for none", low=0.0),
    "optim.accumulate": Field(1, "parts of a batch whose gradients are computed one after another, for memory", low=1),
    "optim.ema": Field(0.0, "share kept by the running average of weights that is then tested", low=0.0, high=0.99999),
    "epochs": Field(10.0, "passes over the training part where there are no phases; 0 only tests", low=0.0),
    "phases": Field((), "dicts with the fields of PHASE_FIELDS, run one after another"),
    "patience": Field(0, "evaluations of the last phase without a better one that end the run; 0: never", low=0),
    "wise_ft": Field(False, "test the best mixture, on validation, of first and last weights (arXiv:2109.01903)"),
    # Work on frozen layers, see tasks/feature_cache.py.
    "cache.features": Field(
        "auto", "compute outputs of frozen first layers once where nothing is augmented", CACHE_MODES
    ),
    "cache.views": Field(
        0, "augmented views of a picture, computed once, that epochs take in turn; 0: always new ones", low=0
    ),
    "cache.dir": Field("", "folder of these outputs; empty for features/ in the cache folder"),
    "cache.gigabytes": Field(8.0, "that they may take", low=0.0),
    # Against overfitting; each is off at 0, with its paper in transfer/regularizers.py.
    "regularize.dropout": Field(0.0, "share of features dropped before the head", low=0.0, high=0.95),
    "regularize.drop_path": Field(0.0, "share of examples that skip the last residual block", low=0.0, high=0.95),
    "regularize.label_smoothing": Field(0.0, "probability spread evenly over the classes", low=0.0, high=1.0),
    "regularize.class_weights": Field(
        "", "factors on the loss of each class's examples: balanced (N / (K N_k)), or numbers such as '1,3'"
    ),
    "regularize.mixup": Field(0.0, "alpha of the Beta distribution; 0.2 is usual", low=0.0),
    "regularize.cutmix": Field(0.0, "alpha of the Beta distribution; 1 is usual", low=0.0),
    "regularize.endpoints": Field((), "maps that distill and delta compare; empty for the last two"),
    "regularize.stochastic_norm": Field(0.0, "share of BatchNorm channels on running statistics", low=0.0, high=1.0),
    # Learning without labels: in phases with objective "pretext", or beside the labels.
    "pretext.name": Field("", "what is learned", ("", "rotation", "simclr", "simsiam", "masked")),
    "pretext.weight": Field(0.0, "of its loss beside that of the labels; 0: in phases of its own only", low=0.0),
    "pretext.temperature": Field(0.1, "of simclr", low=1e-3),
    "pretext.width": Field(128, "outputs of the projector of simclr and simsiam", low=2),
    "pretext.crop": Field(0.3, "least share of the area in a view", low=0.05, high=1.0),
    "pretext.jitter": Field(0.4, "strength of colour jitter in a view", low=0.0, high=1.0),
    "pretext.mask_prob": Field(0.15, "of a text's tokens that are hidden to be guessed", low=0.01, high=0.9),
    # Several devices, always each with its share of a batch.
    "parallel.state": Field(
        "replicated",
        "parameters and optimizer state: whole on each device, or a part (FSDP)",
        ("replicated", "sharded"),
    ),
    # What is written down.
    "save_every": Field(1.0, "epochs between checkpoints, each after an evaluation on the validation part", low=1e-6),
    "min_checkpoint_interval": Field(
        10.0, "seconds for which no checkpoint follows another, but for the best so far and a phase's last", low=0.0
    ),
    "eval_checkpoint": Field("last", "checkpoint to test: the last, or the best on validation", ("last", "best")),
    "test_train": Field(False, "test the training part too: its distance from the test part shows overfitting"),
    "metrics": Field((), "of pictures beside accuracy: auc, sensitivity, ece; auc with an interval over groups"),
    "positive": Field("", "class whose finding counts as positive; empty: the last of two, of more each in turn"),
    "specificity": Field(0.9, "at which the metric sensitivity is read off", low=0.0, high=1.0),
    "score": Field("accuracy", "metric on validation by which the best checkpoint is chosen", ("accuracy", "auc")),
    "calibrate": Field(False, "fit a temperature to validation; predictions use it (arXiv:1706.04599)"),
    "log_every": Field(20, "steps between rows of training metrics", low=1),
}


class Fields(Mapping[str, Field]):
    """All fields by path: those of the table above, and a strength for each regularizer that is registered."""

    def __getitem__(self, path: str) -> Field:
        if path in _FIXED_FIELDS:
            return _FIXED_FIELDS[path]
        group, _, name = path.partition(".")
        if group != "regularize" or name not in REGULARIZERS:
            raise KeyError(path)
        return Field(0.0, REGULARIZERS[name].doc, low=0.0)

    def __iter__(self) -> Iterator[str]:
        yield from _FIXED_FIELDS
        yield from (f"regularize.{name}" for name in REGULARIZERS)

    def __len__(self) -> int:
        return len(_FIXED_FIELDS) + len(REGULARIZERS)


FIELDS = Fields()

# Of one entry of ``phases``; name and epochs must be there, what is left out is taken from the whole configuration.
PHASE_FIELDS = {
    "name": Field("", "for logs"),
    "epochs": Field(1.0, "length of the phase in passes over the training part", low=1e-6),
    "objective": Field("supervised", "learn from labels, or from all examples without them", ("supervised", "pretext")),
    "recipe": Field("all", "what trains", freeze.NAMES),
    "stages": Field(1, "of last_n_stages, as freeze.stages", low=1),
    "rules": Field((), "instead of a recipe, as freeze.rules"),
    "batch_stats": Field("auto", "as freeze.batch_stats", BATCH_STATS_MODES),
    "lr_scale": Field(1.0, "factor on optim.lr", low=0.0),
    "layer_decay": Field(1.0, "as optim.layer_decay", low=0.0, high=1.0),
    "lr_multipliers": Field((), "as optim.lr_multipliers"),
}


def flatten_config(config: Any, fields: Mapping[str, Field], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested configuration by dotted path; a dict that is itself a field is not entered."""
    values = {}
    for key, value in config.items():
        path = prefix + key
        if isinstance(value, ConfigDict) and path not in fields:
            values.update(flatten_config(value, fields, path + "."))
        else:
            values[path] = value
    return values


def check_known(path: str, fields: Mapping[str, Field], prefix: str = "config.") -> None:
    """Refuse a path that is no field, with the nearest one or the fields of its group."""
    if path not in fields:
        group = path.rpartition(".")[0]
        siblings = [field for field in fields if field.rpartition(".")[0] == group]
        matches = difflib.get_close_matches(path, fields, n=1, cutoff=0.85)
        advice = f"did you mean {matches[0]!r}?" if matches else f"choose one of {', '.join(siblings or fields)}"
        raise UserError(f"unknown field {prefix}{path}; {advice}")


def check_value(name: str, value: Any, field: Field) -> None:
    """Refuse a value of the wrong type or out of range; ``name`` is the field's full name."""
    default = field.default
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        types = (int, float) if isinstance(default, float) else int
        if not isinstance(value, types) or isinstance(value, bool) or not math.isfinite(value):
            raise UserError(f"{name}={value!r} is not a finite number ({field.doc})")
        if field.low is not None and value < field.low:
            raise UserError(f"{name}={value} must be at least {field.low:g} ({field.doc})")
        if field.high is not None and value > field.high:
            raise UserError(f"{name}={value} must be at most {field.high:g} ({field.doc})")
    elif isinstance(default, tuple):
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{name}={value!r} is not a tuple ({field.doc})")
    elif not isinstance(value, (type(default), ConfigDict) if isinstance(default, dict) else type(default)):
        raise UserError(f"{name}={value!r} is not of type {type(default).__name__} ({field.doc})")
    choices = field.choices() if callable(field.choices) else field.choices
    if choices and value not in choices:
        hint = f"; {IMPORT_HINT}" if callable(field.choices) else ""  # there may be some of the user's own
        raise UserError(f"{name}={value!r} is unknown; {nearest(str(value), choices)}{hint}")
