"""Refuse fields that another field leaves without effect, so that nobody reads a result as theirs."""

from collections.abc import Callable
from typing import Any

from configs.check_measures import LISTED
from configs.fields import FIELDS

TEXT_ROWS = ("lines", "docs", "docs_names", "docs_corpus")  # data without columns
# What moves or compares features, or slows what lies below the head: nothing where the head alone trains.
BELOW_HEAD = (
    "optim.layer_decay", "regularize.bss", "regularize.co_tuning", "regularize.delta", "regularize.distill",
    "regularize.l2_sp", "regularize.stochastic_norm",
)  # fmt: skip
# What draws, or compares, every picture anew in each step.
ANEW = ("mixup", "cutmix", "distill", "delta", "stochastic_norm", "drop_path")
OF_VIEWS = ("simclr", "simsiam")


def effects(config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
    """Return what is wrong with a configuration, and whether it is."""
    return {
        **_training(config, changed),
        **_caching(config, changed),
        **_learning(config, changed),
        **_data(config, changed),
    }


def _training(config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
    recipes, phases = _recipes(config), config.phases
    idle = [path for path in BELOW_HEAD if recipes == {"head"} and changed(path)]
    untrained = [path for path in FIELDS if path.startswith("regularize.") and changed(path)]
    overridden = [
        path for path in ("freeze.batch_stats", "optim.layer_decay", "optim.rates")
        if phases and all(path.partition(".")[2] in phase for phase in phases) and changed(path)
    ]  # fmt: skip
    return {
        f"{(idle or [''])[0]} has no effect where the head alone trains; choose another config.freeze.recipe": idle,
        "regularize.l2_sp has no effect where adapters and the head alone train, which are new; set l2_sp_head": (
            recipes and recipes <= {"head", "adapters"} and changed("regularize.l2_sp")
        ),
        f"{(untrained or [''])[0]} has no effect with config.epochs=0": (
            untrained and not config.epochs and not phases
        ),
        f"optim.momentum is that of config.optim.name=sgd; set it back to {FIELDS['optim.momentum'].default:g}": (
            changed("optim.momentum") and config.optim.name != "sgd"
        ),
        f"optim.epsilon is that of config.optim.name=adam; set it back to {FIELDS['optim.epsilon'].default:g}": (
            changed("optim.epsilon") and config.optim.name != "adam"
        ),
        f"{(overridden or [''])[0]} has no effect: every phase has its own": overridden,
        "phases have batch_stats, and a text network has no BatchNorm; leave it out": (
            config.task in ("text", "tokens", "masked") and any("batch_stats" in phase for phase in phases)
        ),
    }


def _recipes(config: Any) -> set[str]:
    """Return the recipes of the phases that learn from labels; "" stands for rules."""
    phases = [phase for phase in config.phases if phase.get("objective") != "pretext"] or (
        () if config.phases else [{}]
    )
    own = [phase if "recipe" in phase or "rules" in phase else config.freeze for phase in phases]
    return {"" if chosen.get("rules") else chosen.get("recipe", "") for chosen in own}


def _caching(config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
    idle = [path for path in ("cache.dir", "cache.gigabytes", "cache.views") if changed(path)]
    augmented = any(path.startswith("augment.") and changed(path) for path in FIELDS)
    anew = [name for name in ANEW if config.regularize[name]]
    return {
        f"{(idle or [''])[0]} has no effect with config.cache.features=off": idle and config.cache.features == "off",
        "cache.views has no effect where nothing is augmented": config.cache.views and not augmented,
        f"cache.views has no effect beside config.regularize.{(anew or [''])[0]}, which takes every picture anew": (
            config.cache.views and anew
        ),
        "cache.views has no effect beside config.pretext.weight or test_views": (
            config.cache.views and (config.pretext.weight or config.test_views != 1)
        ),
    }


def _learning(config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
    name = config.pretext.name
    supervised = not config.phases or any(phase.get("objective") != "pretext" for phase in config.phases)
    of_views = [path for path in ("pretext.width", "pretext.crop", "pretext.jitter") if changed(path)]
    return {
        f"{(of_views or [''])[0]} is that of config.pretext.name=simclr or simsiam": (
            of_views and name and name not in OF_VIEWS
        ),
        "pretext.weight has no effect: no phase learns from labels": config.pretext.weight and not supervised,
        "detect.visible has an effect with config.augment.resized_crop only": (
            changed("detect.visible") and not config.augment.resized_crop
        ),
    }


def _data(config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
    name = config.data.name
    columns = [path for path in ("data.text", "data.label", "data.columns") if name in TEXT_ROWS and changed(path)]
    return {
        f"data.windows has an effect with config.data.name={', '.join(LISTED)} only, whose files may be DICOM": (
            config.task == "image" and changed("data.windows") and name not in LISTED
        ),
        f"{(columns or [''])[0]} has no effect with config.data.name={name}, which has no columns": (
            config.task in ("text", "tokens", "masked") and columns
        ),
        "data.dir has no effect with config.data.name=scenes, which are drawn; choose voc or coco": (
            config.task == "detection" and name == "scenes" and config.data.dir
        ),
    }
