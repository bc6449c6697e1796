"""Configuration fields shared by all tasks; each task adds its own in a subclass, see ``Task``."""

from dataclasses import dataclass
from typing import Any

from tl_jax.config.options import Options, group, option
from tl_jax.data.registry import DataConfig
from tl_jax.models import ModelConfig
from tl_jax.pretrained.catalog import InitConfig
from tl_jax.train.sharding import ParallelConfig
from tl_jax.transfer.adapters import AdapterConfig
from tl_jax.transfer.freeze import FreezeConfig
from tl_jax.transfer.optimizer import OptimConfig
from tl_jax.transfer.phases import PhaseConfig
from tl_jax.transfer.regularizers import RegularizeConfig
from tl_jax.transfer.self_supervised import PretextConfig

AUTO = "auto"  # choose the method by validation


@dataclass(frozen=True)
class RunConfig(Options):
    """Configuration of a run."""

    name: str = option("base", "recipe name, used for folders and summaries")
    smoke: bool = option(False, "mark the run as a smoke test, whose results are not meaningful")
    seed: int = option(
        0, "random seed of the new head, example order, augmentation, and the splits taken from train", low=0
    )
    task: str = option("image", "task type, set by the recipe")
    # A comparison runs every arm with every seed and writes one summary and figure.
    seeds: tuple[int, ...] = option((), "seeds to repeat the run with; empty for `seed` alone")
    arms: tuple[Any, ...] = option((), "variants to compare: pairs (name, ((field, value), ...))")
    ensemble: int = option(
        0, "number of networks, seeded from `seed` on, to average (arXiv:1612.01474); 0: a single run", low=0
    )
    member: int = option(
        0,
        "index of this network in an ensemble; data are split by the seed of the first, `seed` - `member`",
        low=0,
    )
    method: str = option(
        "", "auto: choose trained layers and learning rate by validation; empty: as configured", ("", AUTO)
    )
    budget: str = option("", "time limit for method=auto's choice, such as 90s, 10min or 2h; empty: no limit")
    model: ModelConfig = group(ModelConfig)
    adapt: AdapterConfig = group(AdapterConfig)
    init: InitConfig = group(InitConfig)
    data: DataConfig = group(DataConfig)
    freeze: FreezeConfig = group(FreezeConfig)
    optim: OptimConfig = group(OptimConfig)
    regularize: RegularizeConfig = group(RegularizeConfig)
    pretext: PretextConfig = group(PretextConfig)
    batch_size: int = option(64, "training batch size, over all devices", low=1)
    eval_batch_size: int = option(256, "evaluation batch size, over all devices", low=1)
    epochs: float = option(10.0, "passes over the training split if there are no phases; 0 only evaluates", low=0.0)
    min_steps: int = option(0, "minimum number of training steps, for small datasets; ignored with phases", low=0)
    phases: tuple[PhaseConfig, ...] = option(
        (), "training phases, run in order: dicts with the fields of PhaseConfig", entries=PhaseConfig
    )
    patience: int = option(
        0, "evaluations without improvement, in the last phase, before the run stops; 0: never", low=0
    )
    wise_ft: bool = option(
        False, "evaluate a weighted average of initial and final weights, chosen on validation (arXiv:2109.01903)"
    )
    wise_ft_share: float = option(
        0.0, "weight of the final weights in that average; 0: the best on validation", low=0.0, high=1.0
    )
    parallel: ParallelConfig = group(ParallelConfig)
    save_every: float = option(
        1.0, "epochs between checkpoints, each after an evaluation on the validation split", low=1e-6
    )
    min_checkpoint_interval: float = option(
        10.0, "minimum seconds between checkpoints, except for the best so far and the last of a phase", low=0.0
    )
    eval_checkpoint: str = option("last", "checkpoint to evaluate: last, or best on validation", ("last", "best"))
    test_train: bool = option(False, "also evaluate on the training split; the gap to test shows overfitting")
    log_every: int = option(20, "steps between rows of training metrics", low=1)

    @property
    def trains(self) -> bool:
        """Whether anything is trained, after a head that may be fitted."""
        return bool(self.phases or self.epochs)
