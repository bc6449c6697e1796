"""Choose by validation what trains and how fast: ``method="auto"``, which becomes a configuration like any other.

The features of the examples are computed once, and a linear probe is fitted to them whose strength is chosen by folds.
What may do better is tried on the first fold from the fitted head on (LP-FT, arXiv:2202.10054): the last half of the
stages at a few rates, and all of them where that has helped, as gradual unfreezing goes down (arXiv:1801.06146). The
best goes through the other folds, mixed with the probe (WiSE-FT, arXiv:2109.01903). It takes the probe's place only if
it is ahead by more than one standard error of the paired difference: the rule of Breiman et al. 1984, Classification
and Regression Trees, section 3.4.3.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from tl_jax.config import recipe, schema
from tl_jax.data.dataset import Split, select_rows, subsample_train
from tl_jax.restore import make_task
from tl_jax.tasks import head_init
from tl_jax.tasks.run_record import RunRecord
from tl_jax.train import sharding, workdir
from tl_jax.train.evaluate import extract, make_both
from tl_jax.train.logging import say
from tl_jax.train.run_config import AUTO, RunConfig
from tl_jax.train.state import TrainState, initial_state, stream_key
from tl_jax.train.step import Stepper, make_optimizer_init
from tl_jax.train.task import TASKS, Task
from tl_jax.train.workdir import read_json, write_json
from tl_jax.transfer import freeze
from tl_jax.transfer.weight_averaging import interpolate
from tl_jax.utils.errors import Diverged, UserError

FILE = "choice.json"
NUM_EVALUATIONS = 10  # on the validation split while training
MIN_STEPS = 200  # a small set is gone through more often
FOLDS = 3
MAX_EXAMPLES = 3000  # that are looked at; of more a part with the same shares of classes
MAX_CROSS_VALIDATED = 1500  # examples up to which each is held out once; of more the first fold says enough
NO_TIME = "there was no time to try more than a linear probe"
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the trained weights in the mixture with the probe
RATES = (1e-4, 3e-4)  # for Adam, of layers that should stay near the source
EXTREME_STRENGTHS = (1e-6, 1e5)  # to which the grid is extended if its end is the best

Changes = tuple[tuple[str, Any], ...]  # fields of a configuration and their values
Fold = tuple[np.ndarray, np.ndarray]  # rows to train on, and those held out


class Candidate(NamedTuple):
    """A way to train.

    Attributes:
        name: for people.
        changes: of a configuration.
        depth: stages that train, from the end.
    """

    name: str
    changes: Changes
    depth: int


class Probed(NamedTuple):
    """The best linear probe: its strength, and whether each held-out example was right, by fold."""

    strength: float
    hits: list[np.ndarray]


class Comparison(NamedTuple):
    """A mixture of a candidate with the probe, against the probe, on the same held-out examples.

    Attributes:
        share: of the trained weights.
        accuracy: of the mixture.
        gain: accuracy minus the probe's.
        error: standard error of the gain.
    """

    share: float
    accuracy: float
    gain: float
    error: float


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
        write_json(folder / FILE, {"request": _request(config), **choice})
        changes = choice["changes"]
    return schema.freeze(recipe.override(config, (("method", ""), ("budget", ""), *changes)))


def chosen(config: RunConfig, folder: Path) -> RunConfig:
    """Return the configuration that was chosen in a folder, or ``config`` as it is if none was yet."""
    return config if _stored_changes(config, folder) is None else resolve(config, folder)


def record(folder: Path) -> dict[str, Any]:
    """Return what was tried in a folder and why one was chosen, for the summary of its run; {} if nothing was."""
    choice = read_json(folder / FILE)
    return {"choice": {name: choice[name] for name in ("reason", "tried")}} if choice else {}


def _stored_changes(config: RunConfig, folder: Path) -> Changes | None:
    """Return what was chosen in a folder; None if nothing was, or for another configuration that no run has yet.

    Of a run that is there, what is asked for now counts: the run is then refused, or goes on, as any other.
    """
    choice = read_json(folder / FILE)
    asked, before = _request(config), choice.get("request", {})
    if not choice or (asked != before and not (folder / "config.json").is_file()):
        return None
    same = {field for field in asked if asked[field] == before.get(field)}
    return tuple((str(field), value) for field, value in choice["changes"] if f"config.{field}" in same)


def _request(config: RunConfig) -> dict[str, Any]:
    """Return what decides a choice, as JSON has it."""
    values = {f"config.{path}": value for path, value in config.flat().items()}
    kept = {path: value for path, value in values.items() if not path.startswith(workdir.CHANGEABLE)}
    return json.loads(json.dumps(kept, default=str))


def enough_epochs(examples: int, batch_size: int) -> float:
    """Return passes that make a run of ``MIN_STEPS`` steps, and at least the usual number."""
    return max(RunConfig().epochs, math.ceil(MIN_STEPS * batch_size / max(1, examples)))


def choose(config: RunConfig) -> dict[str, Any]:
    """Try ways to transfer on the training and validation examples; return what was tried, the choice and why.

    Returns:
        ``changes`` of the configuration, ``tried``, and ``reason``, for JSON.
    """
    start, limit = time.monotonic(), parse_budget(config.budget)
    pool, folds = _examples(config)
    if not folds:
        changes = (("init.head", "logistic"), ("epochs", 0.0))
        reason = f"a class has fewer than {FOLDS} examples, so nothing can be compared: a linear probe"
        say(f"auto: {reason}")
        return {"changes": changes, "tried": [], "reason": reason}
    probed = _try_probe(config, pool, folds)
    accuracy = _mean(probed.hits)
    held = sum(len(held) for _, held in folds)
    say(f"auto: linear probe, C = {probed.strength:g}: {accuracy:.4f} of {held:,} held-out examples")
    has_epochs = config.epochs != RunConfig().epochs
    epochs = config.epochs if has_epochs else enough_epochs(len(pool.labels), config.batch_size)
    trials = Trials(_with(config, (("epochs", epochs),)), pool, folds, probed, start + limit)
    best = trials.best() if accuracy < 1 else None
    tried = [{"name": "linear probe", "strength": probed.strength, "accuracy": accuracy}, *trials.rows]
    fitted, probe_only = (("init.head", "logistic"), ("init.strength", probed.strength)), (("epochs", 0.0),)
    if best is None:
        reason = "a linear probe knows all held-out examples" if accuracy == 1 else NO_TIME
        changes = probe_only
    else:
        candidate, found = best
        ahead = found.gain > found.error
        gain = f"{100 * found.gain:+.1f} points (standard error {100 * found.error:.1f})"
        reason = f"{candidate.name}, {found.share:.0%} of the way from the probe, against the probe: {gain}"
        reason += "" if ahead else "; that is within one standard error, so the probe stays"
        mixture = (("wise_ft", True), ("wise_ft_share", found.share)) if found.share < 1 else ()
        length = (("epochs", epochs), ("save_every", max(config.save_every, epochs / NUM_EVALUATIONS)))
        changes = (*candidate.changes, *mixture, *length) if ahead else probe_only
    say(f"auto: {reason}; {time.monotonic() - start:.0f} s")
    return {"changes": (*fitted, *changes), "tried": tried, "reason": reason}


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


def _examples(config: RunConfig) -> tuple[Split, list[Fold]]:
    """Return the examples that are looked at, and their folds; no folds if a class is too small."""
    task = TASKS[config.task]
    source = task.load_data(config)
    splits = head_init.split_data(config, source)
    pool = splits["train"]
    if (
        source.validation is None
        and len(splits["validation"].labels)
        and not (config.data.train_examples or config.data.per_class)
    ):
        pool = source.train  # what was held out for validation is used in the same way here
    if len(pool.labels) > MAX_EXAMPLES:
        pool = subsample_train(pool, MAX_EXAMPLES, 0, len(source.classes), config.seed)
    return pool, make_folds(pool, len(source.classes), config.seed)


def make_folds(pool: Split, classes: int, seed: int) -> list[Fold]:
    """Return folds in which classes keep their shares and groups stay together; none if a class is too small.

    Args:
        pool: N examples.
        classes: K.
        seed: of the folds.
    """
    labels, groups = pool.labels, pool.groups
    members = [len(np.unique(np.flatnonzero(labels == k) if groups is None else groups[labels == k]))
               for k in range(classes)]  # fmt: skip
    if min(members) < FOLDS:
        return []
    splitter = (StratifiedKFold if groups is None else StratifiedGroupKFold)(FOLDS, shuffle=True, random_state=seed)
    folds = [(train, held) for train, held in splitter.split(np.zeros(len(labels)), labels, groups)]
    if any(len(np.unique(labels[train])) < classes for train, _ in folds):
        return []
    return folds if len(labels) <= MAX_CROSS_VALIDATED else folds[:1]


def _split_task(config: RunConfig, train: Split, held: Split) -> Task:
    """Return the task that trains on some examples and is tested on others."""
    nothing = select_rows(train, np.empty(0, int))
    return make_task(config, RunRecord(splits={"train": train, "validation": nothing, "test": held}))


def _with(config: RunConfig, changes: Changes) -> RunConfig:
    """Return the configuration with changes, and with what needs a validation split switched off."""
    off = (("method", ""), ("budget", ""), ("patience", 0), ("eval_checkpoint", "last"))
    return schema.freeze(recipe.override(config, (*off, *changes)))


def _try_probe(config: RunConfig, pool: Split, folds: Sequence[Fold]) -> Probed:
    """Fit probes of several strengths to the features; return the best by accuracy, of equals by its loss."""
    task = _split_task(_with(config, (("init.head", "new"),)), pool, select_rows(pool, np.empty(0, int)))
    say(f"auto: features of {len(pool.labels):,} examples ...")
    cache = task.feature_cache
    features = cache.features(initial_state(task, config.seed).variables, cache.splits["train"])
    strengths = [config.init.strength] if config.init.strength else list(head_init.STRENGTHS)
    found = {c: _cross_validate(features, pool.labels, folds, c) for c in strengths}
    while len(strengths) > 1:
        best = max(found, key=lambda c: found[c][1:])
        step = 10.0 if best == max(found) else 0.1 if best == min(found) else 1.0
        if step == 1.0 or not EXTREME_STRENGTHS[0] <= best * step <= EXTREME_STRENGTHS[1]:
            break
        found[best * step] = _cross_validate(features, pool.labels, folds, best * step)
    best = max(found, key=lambda c: found[c][1:])
    return Probed(best, found[best][0])


def _cross_validate(
    features: np.ndarray, labels: np.ndarray, folds: Sequence[Fold], strength: float
) -> tuple[list[np.ndarray], float, float]:
    """Return for each fold who was right, the accuracy, and minus the mean loss."""
    from tl_jax.transferability import probes  # with all scores, which take two seconds to import

    hits, losses = [], []
    for train, held in folds:
        probe = probes.logistic_probe(features[train], labels[train], strength)
        logits = np.asarray(jnp.asarray(features[held]) @ probe.kernel + probe.bias[None], np.float64)
        log_probabilities = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        hits.append(logits.argmax(1) == labels[held])
        losses.append(-log_probabilities[np.arange(len(held)), labels[held]])
    return hits, _mean(hits), -_mean(losses)


def _mean(rows: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(rows).mean())


def candidates(config: RunConfig) -> list[Candidate]:
    """Return the ways to train that are tried after the probe, the cheaper ones first.

    What the user has set, depth or rate, is taken as it is.
    """
    stages = len(TASKS[config.task].stage_names(config))
    half = math.ceil(stages / 2)
    last = ("freeze.recipe", freeze.LAST_N_STAGES), ("freeze.stages", half)
    depths = [(f"last {half} of {stages} stages", last, half, RATES), ("all stages", (), stages, RATES[:1])]
    if not _is_default(config, "freeze.recipe", "freeze.rules"):
        depths = [("what config.freeze lets train", (), stages, RATES)]
    has_norms = "freeze.batch_stats" in TASKS[config.task].fields() and _is_default(config, "freeze.batch_stats")
    norms = (("freeze.batch_stats", "frozen"),) if has_norms else ()
    has_rate = not _is_default(config, "optim.lr")
    return [
        Candidate(f"{name} at {rate:g}", (*changes, *norms, ("optim.lr", rate)), depth)
        for name, changes, depth, rates in depths
        for rate in ([config.optim.lr] if has_rate else rates)
    ]


def _is_default(config: RunConfig, *names: str) -> bool:
    """Whether fields have been left as they were."""
    fields, values = TASKS[config.task].fields(), config.flat()
    return all(values[name] == fields[name].default for name in names)


class Trials:
    """Candidates trained on folds.

    Attributes:
        rows: what was tried, for the record.
    """

    def __init__(self, config: RunConfig, pool: Split, folds: Sequence[Fold], probed: Probed, deadline: float):
        self.config, self.pool, self.folds, self.probed, self.deadline = config, pool, folds, probed, deadline
        self.rows: list[dict[str, Any]] = []
        self._starts: dict[int, tuple[Task, TrainState]] = {}

    def best(self) -> tuple[Candidate, Comparison] | None:
        """Return the best candidate and how it compares with the probe; None if there was no time for any."""
        first: dict[Candidate, dict[float, np.ndarray]] = {}
        for candidate in candidates(self.config):
            if not self._has_time() or not self._may_help(candidate, first):
                break
            try:
                first[candidate] = self._run(candidate, 0)
            except Diverged as e:
                self.rows.append({"name": candidate.name, "error": str(e)})
                say(f"auto: {candidate.name}: {e}")
        if not first:
            return None
        winner = max(first, key=lambda candidate: _best_accuracy(first[candidate]))
        hits = [first[winner]]
        for index in range(1, len(self.folds)):
            if not self._has_time():
                break
            hits.append(self._run(winner, index))
        compared = [self._compare(share, [fold[share] for fold in hits]) for share in SHARES]
        return winner, max(compared, key=lambda found: (found.gain, found.share))

    def _may_help(self, candidate: Candidate, done: Mapping[Candidate, dict[float, np.ndarray]]) -> bool:
        """Whether training fewer stages has helped, or nothing less deep was tried."""
        shallower = [_best_accuracy(hits) for other, hits in done.items() if other.depth < candidate.depth]
        return not shallower or max(shallower) > self.probed.hits[0].mean()

    def _has_time(self) -> bool:
        """Whether another run as long as the longest so far ends before the deadline."""
        longest = max((row["seconds"] for row in self.rows if "seconds" in row), default=0.0)
        return time.monotonic() + longest < self.deadline

    def _compare(self, share: float, hits: Sequence[np.ndarray]) -> Comparison:
        difference = np.concatenate(hits).astype(float) - np.concatenate(self.probed.hits[: len(hits)])
        held = np.concatenate([rows for _, rows in self.folds[: len(hits)]])
        groups = held if self.pool.groups is None else self.pool.groups[held]
        return Comparison(share, _mean(hits), float(difference.mean()), standard_error(difference, groups))

    def _run(self, candidate: Candidate, index: int) -> dict[float, np.ndarray]:
        """Train a candidate on one fold; return who of those held out is right, by share of the trained weights."""
        start = time.monotonic()
        task, state = self._start(index)
        plan = task.plan(_with(self.config, candidate.changes))
        before = state.variables
        trained, seen = train(task, jax.tree.map(jnp.copy, state), plan, self.config.seed)
        hits = {share: right_examples(seen, interpolate(before, trained, share)) for share in SHARES}
        accuracies = {f"{share:g}": float(right.mean()) for share, right in hits.items()}
        seconds = time.monotonic() - start
        best, probe = max(accuracies.values()), float(self.probed.hits[index].mean())
        self.rows.append(
            {"name": candidate.name, "fold": index + 1, "accuracy": best, "shares": accuracies, "probe": probe}
            | {"held_out": len(self.folds[index][1]), "seconds": seconds}
        )
        say(f"auto: {candidate.name}, fold {index + 1}: {best:.4f}, the probe {probe:.4f}; {seconds:.0f} s")
        return hits

    def _start(self, index: int) -> tuple[Task, TrainState]:
        """Return the task of a fold, and its state with the head fitted."""
        if index not in self._starts:
            fitted = (("init.head", "logistic"), ("init.strength", self.probed.strength))
            train_rows, held = self.folds[index]
            task = _split_task(
                _with(self.config, fitted), select_rows(self.pool, train_rows), select_rows(self.pool, held)
            )
            self._starts = {index: (task, initial_state(task, self.config.seed))}  # of one fold at a time
        return self._starts[index]


def _best_accuracy(hits: Mapping[float, np.ndarray]) -> float:
    return max(float(right.mean()) for right in hits.values())


def train(task: Task, state: TrainState, plan: Sequence[Any], seed: int) -> tuple[Any, Task]:
    """Take the steps of a plan in memory; return the variables, and the task as the last phase sees it.

    Raises:
        Diverged: the loss is not finite at the end.
    """
    stream, seen, loss = sharding.replicate(stream_key(seed, "train")), task, 0.0
    for phase in plan:
        seen = task.cache_features(state.variables, phase)
        state = state.replace(opt_state=make_optimizer_init(phase.optim, phase.rules)(state.params))
        stepper = Stepper(phase, seen.objective(phase.objective), state, stream, phase.start)
        now = phase.start
        while now < phase.stop:
            state, rows = stepper.advance(state, now, min(phase.stop, now + stepper.max_steps))
            now += len(rows)
        loss = float(jax.device_get(rows[-1]["sums"]["loss"][0]))
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss} after {int(state.step):,} steps")
    return state.variables, seen


def right_examples(task: Task, variables: Any) -> np.ndarray:
    """Return for each test example, in their order, whether the likeliest class is its own, bool (N,)."""
    function = make_both(task.outputs, _labels)
    probabilities, labels = extract(function, variables, task.eval_batches("test"))
    right = probabilities.argmax(1) == labels
    if task.test_order is None:
        return right
    in_order = np.empty_like(right)
    in_order[task.test_order] = right
    return in_order


def _labels(_: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    return batch["label"]


def standard_error(values: np.ndarray, groups: np.ndarray) -> float:
    """Return the standard error of a mean of values (N,), whose groups (N,) are independent of each other.

    That is the cluster-robust one of Liang and Zeger 1986, with G / (G - 1) for G groups; never 0, as few examples
    that all agree do not prove that others would: half an example is added to each way of disagreeing (Agresti and
    Min 2005, doi:10.1002/sim.1781).
    """
    _, members = np.unique(groups, return_inverse=True)
    sums = np.bincount(members, values - values.mean())
    count = len(sums)
    variance = (sums**2).sum() * count / max(1, count - 1)
    return float(np.sqrt(variance + 1.0) / len(values))
