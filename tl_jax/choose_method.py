"""Choose by validation what trains and how fast: ``method="auto"``, which becomes a configuration like any other.

The features of the examples are computed once, and a linear probe is fitted to them whose strength is chosen by folds.
What may do better is tried on the first fold from the fitted head on (LP-FT, arXiv:2202.10054): the last half of the
stages at a few rates, and all of them where that has helped, as gradual unfreezing goes down (arXiv:1801.06146). The
best goes through the other folds, mixed with the probe (WiSE-FT, arXiv:2109.01903). It takes the probe's place only if
it is ahead there by more than one standard error of the paired difference, after the rule of Breiman et al. 1984,
Classification and Regression Trees, section 3.4.3. What counts is whether the likeliest class is right.
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

from tl_jax.config import recipe, schema, validate
from tl_jax.data.dataset import Split, select_rows
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
from tl_jax.utils.json_files import OBJECT, STRING, Field, check_fields

FILE = "choice.json"
FOLDS = 3
MAX_EXAMPLES = 3000  # that are looked at; of more a part with the same shares of classes
MIN_OF_CLASS = 10  # examples that each class keeps there, if it has as many
MAX_CROSS_VALIDATED = 1500  # examples up to which each is held out once; of more two folds say enough
NO_TIME = "there was no time to try more than a linear probe"
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the trained weights in the mixture with the probe
RATES = {"adam": (1e-4, 3e-4), "sgd": (1e-2, 3e-2)}  # of layers that should stay near the source
EXTREME_STRENGTHS = (1e-6, 1e5)  # to which the grid is extended if its end is the best
LIST = Field("a list", lambda value: isinstance(value, list))
CHECK_EVERY = 10  # steps, of those that are taken one by one
STATED = {"request": OBJECT, "changes": LIST, "reason": STRING, "tried": LIST}  # what the file of a choice has

Changes = tuple[tuple[str, Any], ...]  # fields of a configuration and their values
Fold = tuple[np.ndarray, np.ndarray]  # rows to train on, and those held out
Hits = dict[float, np.ndarray]  # share of the trained weights -> which of the held-out examples are right


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


class Comparison(NamedTuple):
    """A mixture of a candidate with the probe, against the probe, on the same held-out examples.

    Attributes:
        candidate: what was trained.
        share: of the trained weights.
        gain: accuracy minus the probe's, on folds that did not choose the candidate.
        error: standard error of the gain.
        is_ahead: whether the gain is more than chance gives.
    """

    candidate: Candidate
    share: float
    gain: float
    error: float
    is_ahead: bool


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
    asked, before = _request(config), choice["request"]
    if asked != before:
        if not (folder / "checkpoints").is_dir():
            return None
        names = ", ".join(field for field in asked if asked[field] != before.get(field))
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
    pool, folds = _examples(config)
    probe_only: Changes = (("init.head", "logistic"), ("epochs", 0.0), ("patience", 0), ("optim.ema", 0.0))
    if not folds:
        members = "examples" if pool.groups is None else "groups of examples"
        reason = f"a class has fewer than {FOLDS} {members}, so nothing can be compared: a linear probe"
        say(f"auto: {reason}")
        return {"changes": probe_only, "tried": [], "reason": reason}
    strength, accuracy = _fit_probe(config, pool, folds)
    held = sum(len(held) for _, held in folds)
    say(f"auto: linear probe, C = {strength:g}: {accuracy:.4f} of {held:,} held-out examples")
    trials = Trials(config, pool, folds, strength, start + limit)
    best = trials.best() if accuracy < 1 else None
    tried = [{"name": "linear probe", "strength": strength, "accuracy": accuracy}, *trials.rows]
    fitted: Changes = (("init.strength", strength),)
    if best is None:
        reason = "a linear probe knows all held-out examples" if accuracy == 1 else trials.why_none()
    else:
        gain = f"{100 * best.gain:+.1f} points (standard error {100 * best.error:.1f})"
        reason = f"{best.candidate.name}, {best.share:.0%} of the way from the probe, against the probe: {gain}"
        reason += "" if best.is_ahead else "; that may be chance, so the probe stays"
    say(f"auto: {reason}; {time.monotonic() - start:.0f} s")
    if best is None or not best.is_ahead:
        return {"changes": (*probe_only, *fitted), "tried": tried, "reason": reason}
    mixture = (("wise_ft", True), ("wise_ft_share", best.share)) if best.share < 1 else ()
    changes = (("init.head", "logistic"), *fitted, *best.candidate.changes, *mixture)
    return {"changes": changes, "tried": tried, "reason": reason}


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
    source = TASKS[config.task].load_data(config)
    splits, classes = head_init.split_data(config, source), len(source.classes)
    pool = splits["train"]
    is_part = config.data.train_examples or config.data.per_class
    if source.validation is None and len(splits["validation"].labels) and not is_part:
        pool = source.train  # what was held out for validation is used in the same way here
    part = _subsample(pool, classes, config.seed)
    if folds := make_folds(part, classes, config.seed):
        return part, folds
    return pool, make_folds(pool, classes, config.seed)


def _subsample(pool: Split, classes: int, seed: int) -> Split:
    """Return about ``MAX_EXAMPLES`` examples of more, in which classes keep their shares, but small ones all."""
    if len(pool.labels) <= MAX_EXAMPLES:
        return pool
    order, share = np.random.default_rng((seed, 4)).permutation(len(pool.labels)), MAX_EXAMPLES / len(pool.labels)
    by_class = [order[pool.labels[order] == k] for k in range(classes)]
    rows = [members[: max(MIN_OF_CLASS, round(share * len(members)))] for members in by_class]
    return select_rows(pool, np.sort(np.concatenate(rows)))


def make_folds(pool: Split, classes: int, seed: int) -> list[Fold]:
    """Return folds in which classes keep their shares and groups stay together; none if a class is too small.

    Args:
        pool: N examples.
        classes: K.
        seed: of the folds.
    """
    labels, groups = pool.labels, pool.groups
    in_class = [labels == k for k in range(classes)]
    members = [int(rows.sum()) if groups is None else len(np.unique(groups[rows])) for rows in in_class]
    if min(members) < FOLDS:
        return []
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    parts = splitter(FOLDS, shuffle=True, random_state=seed % 2**32).split(np.zeros(len(labels)), labels, groups)
    folds = [(train, held) for train, held in parts]
    if any(len(np.unique(labels[train])) < classes for train, _ in folds):
        return []
    return folds if groups is not None or len(labels) <= MAX_CROSS_VALIDATED else folds[:2]


def _split_task(config: RunConfig, train: Split, held: Split) -> Task:
    """Return the task that trains on some examples and is tested on others."""
    nothing = select_rows(train, np.empty(0, int))
    return make_task(config, RunRecord(splits={"train": train, "validation": nothing, "test": held}))


def _with(config: RunConfig, changes: Changes) -> RunConfig:
    """Return the configuration with changes, and with what needs a validation split or more scores switched off."""
    off = {"method": "", "budget": "", "patience": 0, "eval_checkpoint": "last", "metrics": (), "calibrate": False}
    known = tuple((field, value) for field, value in off.items() if field in TASKS[config.task].fields())
    return schema.freeze(recipe.override(config, (*known, *changes)))


def _fit_probe(config: RunConfig, pool: Split, folds: Sequence[Fold]) -> tuple[float, float]:
    """Fit probes of several strengths to the features; return the best by accuracy, of equals by loss, and that."""
    task = _split_task(_with(config, ()), pool, select_rows(pool, np.empty(0, int)))
    say(f"auto: features of {len(pool.labels):,} examples ...")
    cache = task.feature_cache
    features = cache.features(initial_state(task, config.seed).variables, cache.splits["train"])
    strengths = [config.init.strength] if config.init.strength else list(head_init.STRENGTHS)
    found = {c: _cross_validate(features, pool.labels, folds, c) for c in strengths}
    while len(strengths) > 1:
        best = max(found, key=lambda c: found[c])
        step = 10.0 if best == max(found) else 0.1 if best == min(found) else 1.0
        if step == 1.0 or not EXTREME_STRENGTHS[0] <= best * step <= EXTREME_STRENGTHS[1]:
            break
        found[best * step] = _cross_validate(features, pool.labels, folds, best * step)
    best = max(found, key=lambda c: found[c])
    return best, found[best][0]


def _cross_validate(
    features: np.ndarray, labels: np.ndarray, folds: Sequence[Fold], strength: float
) -> tuple[float, float]:
    """Return the accuracy on held-out examples, and minus the mean loss."""
    from tl_jax.transferability import probes  # with all scores, which take two seconds to import

    hits, losses = [], []
    for train, held in folds:
        probe = probes.logistic_probe(features[train], labels[train], strength)
        logits = np.asarray(jnp.asarray(features[held]) @ probe.kernel + probe.bias[None], np.float64)
        log_probabilities = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        hits.append(logits.argmax(1) == labels[held])
        losses.append(-log_probabilities[np.arange(len(held)), labels[held]])
    return float(np.concatenate(hits).mean()), -float(np.concatenate(losses).mean())


def candidates(config: RunConfig, stages: int) -> list[Candidate]:
    """Return the ways to train that are tried after the probe, the cheaper ones first.

    What the user has set to something else than its default, depth or rate, is taken as it is.

    Args:
        config: of the run.
        stages: of the network.
    """
    half, rates = math.ceil(stages / 2), RATES[config.optim.name]
    last = ("freeze.recipe", freeze.LAST_N_STAGES), ("freeze.stages", half)
    depths = [(f"last {half} of {stages} stages", last, half, rates), ("all stages", (), stages, rates[:1])]
    if not _is_default(config, "freeze.recipe", "freeze.rules"):
        depths = [("what config.freeze lets train", (), stages, rates)]
    norms = (("freeze.batch_stats", "frozen"),) if TASKS[config.task].keeps_norms(config) else ()
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

    def __init__(self, config: RunConfig, pool: Split, folds: Sequence[Fold], strength: float, deadline: float):
        self.config, self.pool, self.folds, self.strength, self.deadline = config, pool, folds, strength, deadline
        self.rows: list[dict[str, Any]] = []
        self._loaded: dict[int, tuple[Task, TrainState]] = {}
        # Merged weights of adapters of low rank are none that could be mixed.
        self.shares = SHARES[-1:] if config.adapt.kind in ("lora", "parallel") else SHARES

    def best(self) -> Comparison | None:
        """Return how the best candidate compares with the probe; None if none was trained to its end."""
        first: dict[Candidate, Hits] = {}
        if time.monotonic() >= self.deadline:
            return None
        for candidate in candidates(self.config, len(self._load_fold(0)[0].stages)):
            if self._may_help(candidate, first) and (hits := self._run(candidate, 0)) is not None:
                first[candidate] = hits
        for winner in sorted(first, key=lambda candidate: self._best_accuracy(first[candidate]), reverse=True):
            others = [self._run(winner, index) for index in range(1, len(self.folds))]
            if "error" not in self.rows[-1]:
                return self._compare(winner, first[winner], [hits for hits in others if hits is not None])
        return None

    def why_none(self) -> str:
        """Return in words why there is no best candidate."""
        errors = [row["error"] for row in self.rows if "error" in row]
        return f"what was trained came to nothing, {errors[-1]}: a linear probe" if errors else NO_TIME

    def _best_accuracy(self, hits: Hits) -> float:
        return max(float(hits[share].mean()) for share in self.shares)

    def _may_help(self, candidate: Candidate, done: Mapping[Candidate, Hits]) -> bool:
        """Whether training fewer stages has helped, or nothing less deep was tried."""
        shallower = [hits for other, hits in done.items() if other.depth < candidate.depth]
        return not shallower or any(self._best_accuracy(hits) > hits[0.0].mean() for hits in shallower)

    def _compare(self, candidate: Candidate, first: Hits, others: Sequence[Hits]) -> Comparison:
        """Compare with the probe on the folds that have not chosen the candidate; all have a say in the share.

        If there was time for the first alone, which makes the best of several look good, two standard errors are asked.
        """
        share = max(self.shares, key=lambda share: (np.concatenate([h[share] for h in (first, *others)]).mean(), share))
        tested = list(others) or [first]
        difference = np.concatenate([hits[share].astype(float) - hits[0.0] for hits in tested])
        held = np.concatenate([rows for _, rows in (self.folds[1 : 1 + len(others)] if others else self.folds[:1])])
        groups = held if self.pool.groups is None else self.pool.groups[held]
        gain, error = float(difference.mean()), standard_error(difference, groups)
        return Comparison(candidate, share, gain, error, gain > (1 if others else 2) * error)

    def _run(self, candidate: Candidate, index: int) -> Hits | None:
        """Train a candidate on one fold; None if there is no time, or it came to numbers that are not finite."""
        if time.monotonic() >= self.deadline:
            return None
        start = time.monotonic()
        task, state = self._load_fold(index)
        plan = task.plan(_with(self.config, candidate.changes))
        try:
            trained, seen = train(task, jax.tree.map(jnp.copy, state), plan, self.config.seed, self.deadline)
        except Diverged as e:
            self.rows.append({"name": candidate.name, "fold": index + 1, "error": str(e)})
            say(f"auto: {candidate.name}: {e}")
            return None
        if seen is None:
            return None
        mix = lambda share: interpolate(state.variables, trained, share) if share < 1 else trained  # noqa: E731
        hits = {share: right_examples(seen, mix(share)) for share in (0.0, *self.shares)}
        best, probe, seconds = self._best_accuracy(hits), float(hits[0.0].mean()), time.monotonic() - start
        shares = {f"{share:g}": float(right.mean()) for share, right in hits.items()}
        self.rows.append(
            {"name": candidate.name, "fold": index + 1, "accuracy": best, "shares": shares, "probe": probe}
            | {"held_out": len(self.folds[index][1]), "seconds": seconds}
        )
        say(f"auto: {candidate.name}, fold {index + 1}: {best:.4f}, the probe {probe:.4f}; {seconds:.0f} s")
        return hits

    def _load_fold(self, index: int) -> tuple[Task, TrainState]:
        """Return the task of a fold, and its state with the head fitted."""
        if index not in self._loaded:
            fitted = (("init.head", "logistic"), ("init.strength", self.strength))
            train_rows, held = self.folds[index]
            task = _split_task(
                _with(self.config, fitted), select_rows(self.pool, train_rows), select_rows(self.pool, held)
            )
            self._loaded = {index: (task, initial_state(task, self.config.seed))}  # of one fold at a time
        return self._loaded[index]


def train(
    task: Task, state: TrainState, plan: Sequence[Any], seed: int, deadline: float = math.inf
) -> tuple[Any, Task | None]:
    """Take the steps of a plan in memory; return the variables to test, and the task as the last phase sees it.

    Args:
        task: what is learned.
        state: at the start; its memory is reused.
        plan: phases in steps.
        seed: of everything random.
        deadline: monotonic time at which to stop; the task is then None.

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
            if time.monotonic() >= deadline:
                return state.eval_variables, None
            state, rows = stepper.advance(state, now, min(phase.stop, now + stepper.max_steps))
            now += len(rows)
            if now % CHECK_EVERY == 0:
                jax.block_until_ready(state.step)  # steps are taken while Python goes on
        loss = float(jax.device_get(rows[-1]["sums"]["loss"][0]))
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss} after {int(state.step):,} steps")
    return state.eval_variables, seen


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
    if count < 2:
        return math.inf  # one patient says nothing of others
    variance = (sums**2).sum() * count / (count - 1)
    return float(np.sqrt(variance + 1.0) / len(values))
