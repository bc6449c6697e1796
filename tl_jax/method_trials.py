"""Ways to train, tried on folds of the examples, and compared with a linear probe there.

What counts is the log loss, with the temperature that is best for each (arXiv:1706.04599), for what has been trained
longer is surer of itself. Of a few dozen held-out examples it says far more than how many are right.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.config import recipe, schema, validate
from tl_jax.data.dataset import Split, select_rows
from tl_jax.metrics import classification
from tl_jax.restore import make_task
from tl_jax.tasks.probe_strength import START_LOSS, Fold
from tl_jax.tasks.run_record import RunRecord
from tl_jax.train import sharding
from tl_jax.train.evaluate import extract
from tl_jax.train.logging import say
from tl_jax.train.run_config import RunConfig
from tl_jax.train.state import TrainState, initial_states, stream_key
from tl_jax.train.step import Stepper, make_optimizer_init
from tl_jax.train.task import TASKS, Task
from tl_jax.transfer import freeze
from tl_jax.transfer.weight_averaging import interpolate
from tl_jax.utils.errors import Diverged, UserError

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the trained weights in the mixture with the probe
RATES = {"adam": (1e-4, 3e-4), "sgd": (1e-2, 3e-2)}  # of layers that should stay near the source
NEW_PART_RATES = {"adam": (3e-4, 1e-3), "sgd": (3e-2, 1e-1)}  # of few values, new ones or such as may move far
MIN_CROP_AREA, VIEWS = 0.5, 8  # of an image that a crop keeps, and crops of each
MIN_CROPPED = 64  # pixels a side of the network's input; crops of 16 pixels cost a fitted head 6 points on digits
WIDE, MAX_HEAD_RATE = 1280, 0.02  # features of MobileNetV2, for which rates were chosen; Adam's largest rate
NO_TIME = "there was no time to try more than a linear probe; no layer is fine-tuned unless config.budget is raised"
CHECK_EVERY = 10  # steps, of those that are taken one by one
# What else a validation part is for; and what is switched off in trials, which have none.
NEEDS_VALIDATION = {"patience": 0, "eval_checkpoint": "last", "metrics": (), "calibrate": False}

Changes = tuple[tuple[str, Any], ...]  # fields of a configuration and their values


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


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What a candidate, mixed with the probe, says of held-out examples.

    Attributes:
        probabilities: (N, K) by the share of the trained weights; 0 is the probe.
        labels: (N,).
    """

    probabilities: Mapping[float, np.ndarray]
    labels: np.ndarray

    def accuracy(self, share: float) -> float:
        """Return how often the likeliest class is right."""
        return float((self.probabilities[share].argmax(1) == self.labels).mean())

    @functools.cached_property
    def gains(self) -> dict[float, np.ndarray]:
        """By how much the log loss of each share is less than the probe's, in nats, for each example (N,)."""
        found = {share: calibrated_log_likelihoods(each, self.labels) for share, each in self.probabilities.items()}
        return {share: each - found[0.0] for share, each in found.items() if share}

    @property
    def best_share(self) -> float:
        """The share with the least log loss, of equals the largest."""
        return max(self.gains, key=lambda share: (self.gains[share].mean(), share))

    @property
    def best_gains(self) -> np.ndarray:
        """The gains of the best share (N,)."""
        return self.gains[self.best_share]


def calibrated_log_likelihoods(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the logarithm of each label's probability (N,), of probabilities (N, K) at their best temperature."""
    raw = probabilities.astype(np.float64)
    calibrated = classification.apply_temperature(raw, classification.fit_temperature(raw, labels))
    return classification.log_likelihoods(calibrated, labels)


class Comparison(NamedTuple):
    """A mixture of a candidate with the probe, against the probe, on the same held-out examples.

    Attributes:
        candidate: what was trained.
        share: of the trained weights.
        gain: by how much log loss is less than the probe's, where other folds choose candidate and share.
        error: standard error of the gain.
        is_ahead: whether the gain is more than one standard error; two, if a single fold was tried.
        accuracies: of the probe and of the mixture, on the same folds.
    """

    candidate: Candidate
    share: float
    gain: float
    error: float
    is_ahead: bool
    accuracies: tuple[float, float]


Trained = dict[Candidate, list[Answers]]  # of each fold that it was trained on


def split_task(config: RunConfig, train: Split, held: Split) -> Task:
    """Return the task that trains on some examples and is tested on others."""
    nothing = select_rows(train, np.empty(0, int))
    return make_task(config, RunRecord(splits={"train": train, "validation": nothing, "test": held}))


def with_changes(config: RunConfig, changes: Changes) -> RunConfig:
    """Return the configuration with changes, and with what needs a validation split or more scores switched off."""
    off = {"method": "", "budget": "", **NEEDS_VALIDATION}
    known = tuple((field, value) for field, value in off.items() if field in TASKS[config.task].fields())
    return schema.freeze(recipe.override(config, (*known, *changes)))


def augmentation(config: RunConfig, mirrored: bool, examples: int) -> Changes:
    """Return what is done to training images, unless the user has said something of it; () for other inputs.

    A few views of each are drawn once, where that is possible, and so is computed what frozen layers make of them.

    Args:
        config: of the run.
        mirrored: whether a mirrored image is of the same class.
        examples: that are trained on.
    """
    if not may_augment(config):
        return ()
    is_small = 0 < config.flat()["input.size"] < MIN_CROPPED
    crop: Changes = () if is_small else (("augment.resized_crop", MIN_CROP_AREA),)
    flip: Changes = (("augment.flip", True),) if mirrored else ()
    if not (augmented := (*crop, *flip)):
        return ()
    passes = max(config.epochs, config.min_steps * config.batch_size / examples)
    views = min(VIEWS, int(passes) - 1)  # each is met at least once
    options = [(*augmented, ("cache.views", views)), augmented] if views > 1 else [augmented]
    return next((changes for changes in options if _is_allowed(config, changes)), ())


def may_augment(config: RunConfig) -> bool:
    """Whether there are images, and the user has said nothing of their augmentation."""
    names = [name for name in TASKS[config.task].fields() if name.startswith("augment.")]
    return "augment.flip" in names and is_default(config, *names)


def _is_allowed(config: RunConfig, changes: Changes) -> bool:
    """Whether a configuration takes changes, which may contradict others of its fields."""
    try:
        validate.validate(with_changes(config, changes))
    except UserError:
        return False
    return True


def head_rate(config: RunConfig, rate: float) -> float:
    """Return the learning rate of a head for which ``rate`` is right if it reads ``WIDE`` features or more.

    Adam moves each value by about its rate, so that a head needs the larger one the fewer features D it reads: its rate
    goes with 1 / D, as in muP, Yang et al. 2022, arXiv:2203.03466, table 3.
    """
    size = TASKS[config.task].feature_size(config) if config.optim.name == "adam" else 0
    return min(MAX_HEAD_RATE, rate * max(1.0, WIDE / size)) if size else rate


def rates(config: RunConfig, rate: float) -> Changes:
    """Return the learning rates of a fitted head and of the layers below it, which learn at ``rate``."""
    of_head = head_rate(config, rate)
    scale: Changes = (("optim.backbone_lr_scale", rate / of_head),) if of_head > rate else ()
    return ("optim.lr", of_head), *scale


def candidates(config: RunConfig, stages: int) -> list[Candidate]:
    """Return the ways to train that are tried after the probe, the cheaper ones first.

    What the user has set to something else than its default, depth or rate, is taken as it is.

    Args:
        config: of the run.
        stages: of the network.
    """
    half = math.ceil(stages / 2)
    has_new_parts = config.freeze.recipe in freeze.NEW_PARTS_TRAIN
    tried = (NEW_PART_RATES if has_new_parts else RATES)[config.optim.name]
    last = ("freeze.recipe", freeze.LAST_N_STAGES), ("freeze.stages", half)
    depths = [(f"last {half} of {stages} stages", last, half, tried), ("all stages", (), stages, tried[:1])]
    if not is_default(config, "freeze.recipe", "freeze.rules"):
        depths = [("what config.freeze lets train", (), stages, tried)]
    norms = (("freeze.batch_stats", "frozen"),) if TASKS[config.task].keeps_norms(config) else ()
    is_given = not is_default(config, "optim.lr")
    by_groups = not (is_given or has_new_parts) and is_default(config, "optim.backbone_lr_scale")
    return [
        Candidate(
            f"{name} at {rate:g}",
            (*changes, *norms, *(rates(config, rate) if by_groups else (("optim.lr", rate),))),
            depth,
        )
        for name, changes, depth, tried in depths
        for rate in ([config.optim.lr] if is_given else tried)
    ]


def is_default(config: RunConfig, *names: str) -> bool:
    """Whether fields have been left as they were."""
    fields, values = TASKS[config.task].fields(), config.flat()
    return all(values[name] == fields[name].default for name in names)


class Trials:
    """Candidates trained on folds.

    Attributes:
        rows: what was tried, for the record.
        common: what is changed for all candidates.
    """

    def __init__(
        self,
        config: RunConfig,
        pool: Split,
        folds: Sequence[Fold],
        strength: float,
        deadline: float,
        mirrored: bool = False,
    ):
        """Take the examples that are looked at with their folds; ``mirrored`` as of ``augmentation``."""
        self.config, self.pool, self.folds, self.deadline = config, pool, folds, deadline
        weakens = config.trains and config.freeze.recipe not in freeze.NEW_PARTS_TRAIN
        start_loss = config.init.start_loss or (START_LOSS if weakens else 0.0)
        self.common: Changes = (
            ("init.head", "logistic"), ("init.strength", strength), ("init.start_loss", start_loss),
            *augmentation(config, mirrored, len(pool.labels)),
        )  # fmt: skip
        self.rows: list[dict[str, Any]] = []
        self._loaded: dict[int, tuple[Task, TrainState, TrainState]] = {}
        # Merged weights of adapters of low rank are none that could be mixed.
        self.shares = SHARES[-1:] if config.adapt.kind in ("lora", "parallel") else SHARES

    def best(self) -> Comparison | None:
        """Return how the best candidate compares with the probe; None if none was trained to its end.

        The shallowest candidates race first. The deeper ones follow if the best of these is ahead by more than one
        standard error, without any share of the probe: then training more of the network may help further.
        """
        if time.monotonic() >= self.deadline:
            return None
        everyone = candidates(self.config, len(self._load_fold(0)[0].stages))
        shallow = [candidate for candidate in everyone if candidate.depth == everyone[0].depth]
        trained = self._race(shallow, {})
        if trained:
            parts = trained[_leader(trained)]
            leader = join(parts)
            error = standard_error(leader.best_gains, self._groups(len(parts)))
            if leader.best_share == 1.0 and leader.best_gains.mean() > error:
                trained = self._race([candidate for candidate in everyone if candidate not in shallow], trained)
        return self._compare(trained) if trained else None

    def why_none(self) -> str:
        """Return in words why there is no best candidate."""
        errors = [row["error"] for row in self.rows if "error" in row]
        return f"what was trained came to nothing, {errors[-1]}: a linear probe" if errors else NO_TIME

    def _race(self, contenders: Sequence[Candidate], before: Trained) -> Trained:
        """Train candidates fold by fold, of which the better half goes on, as long as there is time.

        After successive halving, Jamieson and Talwalkar 2016, arXiv:1502.07943, with folds for its resource.

        Args:
            contenders: that are trained.
            before: what was trained on all folds, which contenders have to beat.
        """
        running: Trained = {candidate: [] for candidate in contenders}
        dropped: Trained = {}
        for index in range(len(self.folds)):
            for candidate in list(running):
                try:
                    answers = self._run(candidate, index)
                except Diverged as e:
                    self.rows.append({"name": candidate.name, "fold": index + 1, "error": str(e)})
                    say(f"auto: {candidate.name}: {e}")
                    del running[candidate]
                    continue
                if answers is None:  # nobody is judged by a fold more than others
                    done = {candidate: parts[: index or 1] for candidate, parts in running.items() if parts}
                    return {**before, **done}
                running[candidate].append(answers)
            better = self._better_half(running, before)
            dropped |= {candidate: parts for candidate, parts in running.items() if candidate not in better}
            running = better
        return {**before, **running} or dropped  # the latter if what was better has diverged on a later fold

    def _better_half(self, running: Trained, before: Trained) -> Trained:
        """Return the better half of the candidates that are running, of those that beat what was trained before.

        Args:
            running: candidates, trained on the same folds each.
            before: candidates that were trained on all folds.
        """
        if not running:
            return running
        count = len(next(iter(running.values())))
        mean_gains = {
            candidate: join(parts[:count]).best_gains.mean() for candidate, parts in {**before, **running}.items()
        }
        bar = max((mean_gains[candidate] for candidate in before), default=-math.inf)
        ranked = sorted(running, key=lambda candidate: -mean_gains[candidate])[: math.ceil(len(running) / 2)]
        return {candidate: running[candidate] for candidate in ranked if mean_gains[candidate] > bar}

    def _groups(self, folds: int) -> np.ndarray:
        """Return of which groups the held-out examples of the first folds are; each is its own if there are none."""
        held = np.concatenate([rows for _, rows in self.folds[:folds]])
        return held if self.pool.groups is None else self.pool.groups[held]

    def _compare(self, trained: Trained) -> Comparison:
        """Compare the best mixture of the best candidate with the probe.

        The gain on a fold is that of the candidate and the share that the other folds would have chosen, of those that
        were trained on all. The first fold has dropped some of them, which makes its gain a little too large. Of a
        single fold, which has chosen what it tests, two standard errors are asked.
        """
        count = max(map(len, trained.values()))
        together = {candidate: join(parts) for candidate, parts in trained.items() if len(parts) == count}
        gains = {(c, share): each for c, answers in together.items() for share, each in answers.gains.items()}
        best, share = max(gains, key=lambda key: (gains[key].mean(), key[1]))
        fold_of = np.repeat(np.arange(count), [len(part.labels) for part in trained[best]])
        cross_fitted = gains[best, share].copy()
        for fold in range(count if count > 1 else 0):
            is_other = fold_of != fold
            chosen = max(gains, key=lambda key: (gains[key][is_other].mean(), key[1]))
            cross_fitted[~is_other] = gains[chosen][~is_other]
        gain, error = float(cross_fitted.mean()), standard_error(cross_fitted, self._groups(count))
        accuracies = together[best].accuracy(0.0), together[best].accuracy(share)
        return Comparison(best, share, gain, error, gain > (1 if count > 1 else 2) * error, accuracies)

    def _run(self, candidate: Candidate, index: int) -> Answers | None:
        """Train a candidate on one fold; None if there is no time."""
        if time.monotonic() >= self.deadline:
            return None
        start = time.monotonic()
        task, probe, first = self._load_fold(index)
        plan = task.plan(with_changes(self.config, (*self.common, *candidate.changes)))
        trained, seen = train(task, jax.tree.map(jnp.copy, first), plan, self.config.seed, self.deadline)
        if seen is None:
            return None
        mix = lambda share: interpolate(probe.variables, trained, share) if share < 1 else trained  # noqa: E731
        labels = self.pool.labels[self.folds[index][1]]
        answers = Answers({share: predict(seen, mix(share)) for share in (0.0, *self.shares)}, labels)
        if not all(np.isfinite(each).all() for each in answers.probabilities.values()):
            raise Diverged(f"probabilities are not finite after {plan[-1].stop:,} steps")
        self._record(candidate, index, answers, time.monotonic() - start)
        return answers

    def _record(self, candidate: Candidate, index: int, answers: Answers, seconds: float) -> None:
        """Write down and say what came of a trial."""
        share, gain = answers.best_share, float(answers.best_gains.mean())
        accuracy, probe = answers.accuracy(share), answers.accuracy(0.0)
        self.rows.append(
            {"name": candidate.name, "fold": index + 1, "share": share, "loss_gain": gain, "accuracy": accuracy}
            | {"probe": probe, "held_out": len(answers.labels), "seconds": seconds}
        )
        say(
            f"auto: {candidate.name}, fold {index + 1}: log loss {-gain:+.3f} against the probe's, accuracy "
            f"{accuracy:.4f} and {probe:.4f}; {seconds:.0f} s"
        )

    def _load_fold(self, index: int) -> tuple[Task, TrainState, TrainState]:
        """Return the task of a fold, its state with the probe as its head, and the one that training starts from."""
        if index not in self._loaded:
            train_rows, held = self.folds[index]
            task = split_task(
                with_changes(self.config, self.common), select_rows(self.pool, train_rows), select_rows(self.pool, held)
            )
            self._loaded = {index: (task, *initial_states(task, self.config.seed))}  # of one fold at a time
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


def predict(task: Task, variables: Any) -> np.ndarray:
    """Return the probabilities of classes for each test example, in their order, (N, K)."""
    probabilities = extract(task.outputs, variables, task.eval_batches("test"))
    if task.test_order is None:
        return probabilities
    in_order = np.empty_like(probabilities)
    in_order[task.test_order] = probabilities
    return in_order


def _leader(trained: Trained) -> Candidate:
    """Return the best of candidates that were trained on the same folds."""
    return max(trained, key=lambda candidate: join(trained[candidate]).best_gains.mean())


def join(parts: Sequence[Answers]) -> Answers:
    """Return the answers about several folds as one."""
    shares = parts[0].probabilities
    return Answers(
        {share: np.concatenate([part.probabilities[share] for part in parts]) for share in shares},
        np.concatenate([part.labels for part in parts]),
    )


def standard_error(values: np.ndarray, groups: np.ndarray) -> float:
    """Return the standard error of a mean of values (N,), whose groups (N,) are independent of each other.

    That is the cluster-robust one of Liang and Zeger 1986, with G / (G - 1) for G groups; never 0, as few examples
    that all agree do not prove that others would: half an example is added on either side, one unit from the mean (as
    Agresti and Min 2005, doi:10.1002/sim.1781, for shares).
    """
    _, members = np.unique(groups, return_inverse=True)
    sums = np.bincount(members, values - values.mean())
    count = len(sums)
    if count < 2:
        return math.inf  # one patient says nothing of others
    variance = (sums**2).sum() * count / (count - 1)
    return float(np.sqrt(variance + 1.0) / len(values))
