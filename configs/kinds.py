"""Which fields belong to which kind of task: pictures, boxes on them, people, texts, policies."""

from collections.abc import Callable
from typing import Any

from configs.base import FIELDS, Config
from configs.fields import OF_PICTURES
from configs.fields import SOURCES as PUBLISHED
from tl_jax import models

SOURCES = tuple(dict.fromkeys((*PUBLISHED, "tl_jax", "random")))  # of image networks
Refused = dict[str, Any]  # what is wrong with a configuration, and whether it is

# Fields, or groups of them, that mean something for one kind of task only.
ONLY = {
    "pictures": (
        "augment.", "cache.views", "data.gigabytes", "data.max_pixels", "data.outside", "data.range",
        "init.layout", "input.crop", "input.interpolation", "input.scaling", "input.size", "model.channels",
        "optim.norm_momentum", "pretext.crop", "pretext.jitter",
        "pretext.temperature", "pretext.width", "regularize.co_tuning", "regularize.cutmix", "regularize.delta",
        "regularize.drop_path", "regularize.mixup", "regularize.stochastic_norm", "test_views",
    ),
    "texts": ("data.text", "data.columns", "input.length", "pretext.share"),
    "policies": ("init.take", "init.surgery", "rl."),
}  # fmt: skip
# What a policy, which has no examples, no labels and no classes, does not know.
SUPERVISED = (
    "adapt.", "cache.", "data.", "init.head", "init.strength", "input.", "model.channels", "model.dtype",
    "model.endpoint", "model.num_classes", "optim.accumulate", "optim.sam", "parallel.", "pretext.", "regularize.",
    "test_train", "wise_ft", "eval_batch_size",
)  # fmt: skip
CACHE = ("cache.dir", "cache.gigabytes", "cache.views")  # but not cache.features=off, which nothing cached meets
# What guessing words, which has no labels and no cached features, does not know; nor have tags such features.
NOT_MASKED = (*CACHE, "init.head", "init.strength", "regularize.", "wise_ft")
NOT_TOKENS = CACHE
# What is measured of pictures that have a class each, and how files of them are read.
CLASSIFIED = (
    "calibrate", "data.fit", "data.group", "data.windows", "metrics", "positive", "regularize.class_weights", "score",
    "specificity",
)  # fmt: skip
# What a detector does not know: one label for each picture, or a change to it that boxes cannot follow.
NOT_DETECTION = (
    "augment.crop_pad", "augment.erase", "augment.magnitude", "augment.randaugment", "augment.rotate", "cache.",
    "data.per_class", "init.head", "init.strength", "input.crop", "input.interpolation", "model.num_classes",
    "pretext.", "regularize.bss", "regularize.co_tuning", "regularize.cutmix", "regularize.delta", "regularize.dropout",
    "regularize.label_smoothing", "regularize.mixup", "regularize.stochastic_norm", "test_views", "wise_ft",
)  # fmt: skip
# What needs a class for each example that is tested, or takes other labels than one person a picture.
NOT_FACES = (
    "data.test_examples", "init.strength", "model.num_classes", "regularize.co_tuning", "regularize.cutmix",
    "regularize.delta", "regularize.mixup",
)  # fmt: skip


def kind(config: Config, changed: Callable[..., bool]) -> Refused:
    """Whether what is set belongs to the kind of task."""
    task, guess = config.task, config.pretext.name == "masked"
    sort = "pictures" if task in OF_PICTURES else {"policy": "policies"}.get(task, "texts")
    networks = {"pictures": models.names(), "texts": tuple(models.TEXT), "policies": (models.POLICY,)}[sort]
    sources = {"texts": ("huggingface", "tl_jax", "random"), "policies": ("tl_jax", "random")}.get(sort, SOURCES)
    foreign = tuple(path for other, paths in ONLY.items() if other != sort for path in paths)
    foreign += SUPERVISED if sort == "policies" else ("freeze.batch_stats",) if sort == "texts" else ()
    foreign += () if task == "image" else CLASSIFIED
    foreign += NOT_DETECTION if task == "detection" else ("detect.",)
    foreign += NOT_FACES if task == "faces" else ("faces.",)
    foreign += {"masked": NOT_MASKED, "tokens": NOT_TOKENS}.get(task, ())
    idle = [path for path in FIELDS if path.startswith(foreign) and changed(path)]
    return {
        f"model.name={config.model.name} is no network for task={task}; take one of {', '.join(networks)}": (
            config.model.name not in networks
        ),
        f"{(idle or [''])[0]} has no effect with config.task={task}": idle,
        f"init.source={config.init.source} has nothing for task={task}; take one of {', '.join(sources)}": (
            config.init.source not in sources
        ),
        f"pretext.name={config.pretext.name} is not for task={task}": (
            config.pretext.name and (sort == "pictures") == guess
        ),
        "pretext.name has no effect with config.task=masked, which guesses words anyway": guess and task == "masked",
        f"init.head={config.init.head} is not for task={task}, whose head reads every word; take new or keep": (
            task in ("tokens", "masked") and config.init.head in ("logistic", "ridge")
        ),
        "data.per_class is for tasks with a label for each example; take data.train_examples": (
            config.data.per_class and task in ("tokens", "masked")
        ),
        f"data.text={config.data.text} must name one column, or two": len(config.data.text) not in (1, 2),
        "init.path must name the export of a policy, with config.init.source=tl_jax": (
            sort == "policies" and (config.init.source == "tl_jax") != bool(config.init.path)
        ),
        "init.take and init.surgery need config.init.source=tl_jax": (
            config.init.source != "tl_jax" and changed("init.take", "init.surgery")
        ),
        "rl.kickstart needs a source: config.init.source=tl_jax": (
            config.init.source != "tl_jax" and changed("rl.kickstart")
        ),
        "rl.kickstart_share has an effect with config.rl.kickstart only": (
            not config.rl.kickstart and changed("rl.kickstart_share")
        ),
    }


def faces(config: Config, changed: Callable[..., bool]) -> Refused:
    """Whether what is set for pictures of people goes together."""
    faces, task = config.faces, config.task
    return {
        f"init.head={config.init.head} fits classes, and task=faces has embeddings; take new or keep": (
            task == "faces" and config.init.head in ("logistic", "ridge")
        ),
        "faces.pairs and config.faces.test_file both name the people to test; leave one out": (
            faces.pairs and faces.test_file
        ),
        "faces.test_people and split_seed have no effect beside config.faces.pairs or test_file": (
            (faces.pairs or faces.test_file) and changed("faces.test_people", "faces.split_seed")
        ),
        "faces.scale and margin are those of config.faces.loss=arcface": (
            faces.loss != "arcface" and changed("faces.scale", "faces.margin")
        ),
    }
