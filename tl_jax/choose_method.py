"""Choose by validation what trains and how fast: ``method="auto"``, which becomes a configuration like any other.

The features of the examples are computed once, and a linear probe is fitted to them whose strength is chosen by folds.
What may do better is trained on the same folds from the fitted head on (LP-FT, arXiv:2202.10054), and mixed with the
probe (WiSE-FT, arXiv:2109.01903): the last half of the stages at a few rates, and all of them if the last half surely
helps, as gradual unfreezing goes down (arXiv:1801.06146). Images are cropped, and mirrored where that keeps their
class. The best takes the probe's place only if it is ahead by more than one standard error of the paired difference,
after the rule of Breiman et al. 1984, Classification and Regression Trees, section 3.4.3.
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import entr

from tl_jax.config import recipe, validate
from tl_jax.data.dataset import Split, select_rows
from tl_jax.method_trials import (
    NEEDS_VALIDATION,
    Changes,
    Fold,
    Trials,
    is_default,
    may_augment,
    split_task,
    with_changes,
)
from tl_jax.restore import runs_within
from tl_jax.tasks import head_init
from tl_jax.tasks.feature_cache import FeatureCache
from tl_jax.tasks.probe_strength import FOLDS, STRENGTHS, choose_strength, cross_validate, make_folds
from tl_jax.train import workdir
from tl_jax.train.logging import say
from tl_jax.train.run_config import AUTO, RunConfig
from tl_jax.train.state import initial_state
from tl_jax.train.task import TASKS
from tl_jax.train.workdir import read_json, write_json
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import OBJECT, STRING, Field, check_fields

FILE = "choice.json"
MAX_EXAMPLES = 3000  # that are looked at; of more a part with the same shares of classes
MIN_OF_CLASS = 10  # examples that each class keeps there, if it has as many
MAX_MIRRORED, MAX_MIRRORED_BYTES = 300, 5 * 10**8  # examples that are mirrored, and their pixels
MIN_KNOWN_SHARE = 0.05  # of the loss of a guess: a probe that knows less says nothing of mirrored images
MIN_MIRRORED_SHARE = 0.93  # of what a probe knows, that it knows of mirrored images, too
LIST = Field("a list", lambda value: isinstance(value, list))
STATED = {"request": OBJECT, "changes": LIST, "reason": STRING, "tried": LIST}  # what the file of a choice has


class Examples(NamedTuple):
    """Examples that are looked at.

    Attributes:
        pool: N of them.
        folds: of their rows.
        are_part: whether the run has more.
        have_validation: whether those are among them that the run would hold out for validation.
    """

    pool: Split
    folds: list[Fold]
    are_part: bool
    have_validation: bool


def resolve(config: RunConfig, folder: Path) -> RunConfig:
    """Return what ``method="auto"`` becomes in the folder of a run: chosen now, or before if it says so."""
    if config.method != AUTO:
        return config
    changes = _stored_changes(config, folder)
    if changes is None:
        if jax.process_count() > 1:
            raise UserError(
                "config.method=auto chooses in one process; let it do so on one machine, with a part of the data "
                f"perhaps, and set the fields that {FILE} there names"
            )
        folder.mkdir(parents=True, exist_ok=True)
        choice = choose(config)
        chosen_config = _apply(config, choice["changes"])
        write_json(folder / FILE, {"request": _request(config), **choice})
        return chosen_config
    return _apply(config, changes)


def _apply(config: RunConfig, changes: Changes) -> RunConfig:
    return validate.validate(recipe.override(config, (("method", ""), ("budget", ""), *changes)))


def chosen(config: RunConfig, folder: Path) -> RunConfig:
    """Return the configuration that was chosen in a folder, or ``config`` as it is if none was yet."""
    is_open = config.method == AUTO and _stored_changes(config, folder) is None
    return config if is_open else resolve(config, folder)


def record(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Return what was tried in a folder and why ``config`` was chosen, for the summary of its run; {} if it was not."""
    choice, values = _read_choice(folder), config.flat()
    is_chosen = choice and all(values.get(str(field)) == value for field, value in choice["changes"])
    return {"choice": {name: choice[name] for name in ("reason", "tried")}} if is_chosen else {}


def _read_choice(folder: Path) -> dict[str, Any]:
    """Return the content of the file of a choice; {} if there is none."""
    choice = read_json(folder / FILE)
    if choice:
        action = f"delete {FILE}, and what is to be done is chosen anew"
        missing = [name for name in STATED if name not in choice]
        if missing:
            raise UserError(f"{folder / FILE} has no {missing[0]}; {action}")
        check_fields(choice, folder / FILE, STATED, action)
    return choice


def _stored_changes(config: RunConfig, folder: Path) -> Changes | None:
    """Return what was chosen in a folder; None if nothing was, or for a configuration that was not trained.

    Raises:
        UserError: a run is there, for which other fields were asked.
    """
    choice = _read_choice(folder)
    if not choice:
        return None
    if differ := workdir.differences(choice["request"], _request(config), ""):
        if not (folder / "checkpoints").is_dir() and not runs_within(folder):
            return None
        names = ", ".join(text.removeprefix(".") for text in differ)
        raise UserError(f"{folder} was chosen and trained with another {names}; pass another workdir")
    return tuple((str(field), value) for field, value in choice["changes"])


def _request(config: RunConfig) -> dict[str, Any]:
    """Return what decides a choice, as JSON has it."""
    values = {f"config.{path}": value for path, value in config.flat().items()}
    kept = {path: value for path, value in values.items() if not path.startswith(workdir.CHANGEABLE)}
    return json.loads(json.dumps(kept, default=str))


def choose(config: RunConfig) -> dict[str, Any]:
    """Try ways to transfer on the training and validation examples; return what was tried, the choice and why.

    Returns:
        ``changes`` of the configuration, ``tried``, and ``reason``, for JSON.
    """
    start, limit = time.monotonic(), parse_budget(config.budget)
    examples = _examples(config)
    pool, folds = examples.pool, examples.folds
    all_train: Changes = (("data.validation", 0.0),) if _trains_on_all(config, examples) else ()
    probe_only = (*_without_training(config), *all_train)
    if not folds:
        members = "examples" if pool.groups is None else "groups of examples"
        reason = f"a class has too few {members} for {FOLDS} folds, so nothing can be compared: a linear probe"
        say(f"auto: {reason}")
        return {"changes": probe_only, "tried": [], "reason": reason}
    strength, accuracy, mirrored = _fit_probe(config, pool, folds)
    held = sum(len(held) for _, held in folds)
    say(f"auto: linear probe, C = {strength:g}: {accuracy:.4f} of {held:,} held-out examples")
    trials = Trials(config, pool, folds, strength, start + limit, mirrored)
    best = trials.best() if accuracy < 1 else None
    tried = [{"name": "linear probe", "strength": strength, "accuracy": accuracy}, *trials.rows]
    fitted: Changes = (("init.strength", strength),)
    if best is None:
        reason = "a linear probe knows all held-out examples" if accuracy == 1 else trials.why_none()
    else:
        gain = f"log loss {-best.gain:+.3f} (standard error {best.error:.3f})"
        accuracies = "accuracy {1:.1%} and {0:.1%}".format(*best.accuracies)
        mixed = f"{best.candidate.name}, {best.share:.0%} of the way from the probe"
        reason = f"{mixed}, against the probe: {gain}, {accuracies} on held-out examples"
        reason += "" if best.is_ahead else "; that may be chance, so the probe stays"
    say(f"auto: {reason}; {time.monotonic() - start:.0f} s")
    if best is None or not best.is_ahead:
        return {"changes": (*probe_only, *fitted), "tried": tried, "reason": reason}
    mixture = _mixture(best.share, config, examples.are_part)
    changes = (*trials.common, *best.candidate.changes, *mixture, *all_train)
    return {"changes": changes, "tried": tried, "reason": reason}


def _mixture(share: float, config: RunConfig, are_part: bool) -> Changes:
    """Return how probe and trained weights are mixed: as in trials; where more are trained on, as validation says."""
    if share == 1.0:
        return ()
    is_chosen_anew = are_part and config.data.validation > 0
    return ("wise_ft", True), *(() if is_chosen_anew else (("wise_ft_share", share),))


def _without_training(config: RunConfig) -> Changes:
    """Return what makes a configuration one of a probe, without fields that mean something in training only."""
    penalties = [(name, field.default) for name, field in config.fields().items() if name.startswith("regularize.")]
    changed = [(name, default) for name, default in penalties if config.flat()[name] != default]
    return ("init.head", "logistic"), ("epochs", 0.0), ("patience", 0), ("optim.ema", 0.0), *changed


def parse_budget(text: str) -> float:
    """Return the seconds of a budget such as "10min", "2h" or "90s"; infinity for an empty one."""
    units = {"min": 60.0, "h": 3600.0, "s": 1.0}
    if not text:
        return math.inf
    unit = next((unit for unit in units if text.endswith(unit)), "")
    try:
        value = float(text.removesuffix(unit)) * units[unit]
    except (ValueError, KeyError):
        value = math.nan
    if not value > 0:
        raise UserError(f"config.budget={text!r} is no time; write 90s, 10min or 2h")
    return value


def _trains_on_all(config: RunConfig, examples: Examples) -> bool:
    """Whether a validation part has served its purpose once folds have chosen, and the user has not asked for one."""
    are_all_held_out = examples.have_validation and not examples.are_part and len(examples.folds) == FOLDS
    values = config.flat()
    is_wanted = any(values.get(field, off) != off for field, off in NEEDS_VALIDATION.items())
    return are_all_held_out and is_default(config, "data.validation") and not is_wanted


def _examples(config: RunConfig) -> Examples:
    """Return the examples that are looked at; there are no folds if a class is too small."""
    source = TASKS[config.task].load_data(config)
    splits, classes = head_init.split_data(config, source), len(source.classes)
    pool = splits["train"]
    is_part = config.data.train_examples or config.data.per_class
    is_joined = source.validation is None and len(splits["validation"].labels) > 0 and not is_part
    if is_joined:
        pool = source.train  # what was held out for validation is used in the same way here
    part = _subsample(pool, classes, config.seed)
    if not (folds := make_folds(part, classes, config.seed)) and len(pool.labels) <= 2 * MAX_EXAMPLES:
        part, folds = pool, make_folds(pool, classes, config.seed)
    return Examples(part, folds, len(part.labels) < len(pool.labels), is_joined)


def _subsample(pool: Split, classes: int, seed: int) -> Split:
    """Return about ``MAX_EXAMPLES`` examples of more, in which classes keep their shares, but small ones all."""
    if len(pool.labels) <= MAX_EXAMPLES:
        return pool
    order, share = np.random.default_rng((seed, 4)).permutation(len(pool.labels)), MAX_EXAMPLES / len(pool.labels)
    by_class = [order[pool.labels[order] == k] for k in range(classes)]
    rows = [members[: max(MIN_OF_CLASS, round(share * len(members)))] for members in by_class]
    return select_rows(pool, np.sort(np.concatenate(rows)))


def _fit_probe(config: RunConfig, pool: Split, folds: Sequence[Fold]) -> tuple[float, float, bool]:
    """Fit probes to the features; return the strength with the least loss, its accuracy, and whether images may flip.

    That is so if the probe of other images knows the mirrored ones as well.
    """
    task = split_task(with_changes(config, ()), pool, select_rows(pool, np.empty(0, int)))
    say(f"auto: features of {len(pool.labels):,} examples ...")
    cache, variables = task.feature_cache, initial_state(task, config.seed).variables
    features = cache.features(variables, cache.splits["train"])
    strengths = (config.init.strength,) if config.init.strength else STRENGTHS
    best, score = choose_strength(features, pool.labels, folds, strengths)
    mirrored = may_augment(config) and _may_mirror(cache, variables, features, folds, best, config.seed)
    return best, score.accuracy, mirrored


def _may_mirror(
    cache: FeatureCache, variables: Any, features: np.ndarray, folds: Sequence[Fold], strength: float, seed: int
) -> bool:
    """Whether probes know as much of mirrored images as of held-out images as they are, unlike of letters and digits.

    What they know is by how much their log loss is less than that of who knows the shares of classes alone.
    """
    split = cache.splits["train"]
    most = max(1, MAX_MIRRORED_BYTES // split.inputs[:1].nbytes)
    held_out = np.concatenate([held for _, held in folds])
    rows = np.random.default_rng((seed, 5)).permutation(held_out)[: min(MAX_MIRRORED, most)]
    mirrored = features.copy()
    mirrored[rows] = cache.features(variables, _mirror(split, rows))
    parts = [(train, held[np.isin(held, rows)]) for train, held in folds]
    upright, flipped = (score.loss for score in cross_validate(features, split.labels, parts, strength, mirrored))
    guess = float(entr(np.bincount(split.labels[rows]) / len(rows)).sum())
    say(f"auto: log loss of the probe {upright:.3f}, for mirrored images {flipped:.3f}, of a guess {guess:.3f}")
    known = guess - upright
    return known > MIN_KNOWN_SHARE * guess and guess - flipped >= MIN_MIRRORED_SHARE * known


def _mirror(split: Split, rows: np.ndarray) -> Split:
    """Return examples of a split with their images mirrored left to right."""
    part = select_rows(split, rows)
    return part._replace(inputs=np.ascontiguousarray(np.asarray(part.inputs[:])[:, :, ::-1]))
