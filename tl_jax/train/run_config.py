"""The options of a run that all kinds of tasks have; each kind adds its own in a class of its own, see ``Task``."""

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

AUTO = "auto"  # the method that is chosen by validation


@dataclass(frozen=True)
class RunConfig(Options):
    """What is trained, from what, and how."""

    name: str = option("base", "name of the recipe, for folders and summaries")
    smoke: bool = option(False, "whether the run shows no more than that every part works; its results then say so")
    seed: int = option(
        0, "of the new head, the order and augmentation of examples, and the parts cut from train", low=0
    )
    task: str = option("image", "kind of task, which the recipe decides")
    # What is compared: every arm is run with every seed, and one summary and picture made of all.
    seeds: tuple[int, ...] = option((), "seeds to repeat the run with; empty for the one in `seed`")
    arms: tuple[Any, ...] = option((), "pairs (name, ((field, value), ...)): variants of this configuration to compare")
    ensemble: int = option(
        0, "networks to train, from `seed` on, whose probabilities are averaged (arXiv:1612.01474); 0: one run", low=0
    )
    member: int = option(
        0,
        "which network of an ensemble, from 0; the data are split by the seed of the first, `seed` - `member`",
        low=0,
    )
    method: str = option("", "auto: what trains and how fast is chosen by validation; empty: as fields say", ("", AUTO))
    budget: str = option("", "time that method=auto may take to choose, such as 90s, 10min or 2h; empty: no limit")
    model: ModelConfig = group(ModelConfig)
    adapt: AdapterConfig = group(AdapterConfig)
    init: InitConfig = group(InitConfig)
    data: DataConfig = group(DataConfig)
    freeze: FreezeConfig = group(FreezeConfig)
    optim: OptimConfig = group(OptimConfig)
    regularize: RegularizeConfig = group(RegularizeConfig)
    pretext: PretextConfig = group(PretextConfig)
    batch_size: int = option(64, "training examples a step, over all devices", low=1)
    eval_batch_size: int = option(256, "examples an evaluation step, over all devices", low=1)
    epochs: float = option(10.0, "passes over the training part where there are no phases; 0 only tests", low=0.0)
    min_steps: int = option(0, "steps at least, where epochs of a small set are fewer and there are no phases", low=0)
    phases: tuple[PhaseConfig, ...] = option(
        (), "dicts with the fields of PhaseConfig, run one after another", entries=PhaseConfig
    )
    patience: int = option(0, "evaluations of the last phase without a better one that end the run; 0: never", low=0)
    wise_ft: bool = option(False, "test the best mixture, on validation, of first and last weights (arXiv:2109.01903)")
    wise_ft_share: float = option(
        0.0, "of the last weights in that mixture; 0: the best on validation", low=0.0, high=1.0
    )
    parallel: ParallelConfig = group(ParallelConfig)
    save_every: float = option(
        1.0, "epochs between checkpoints, each after an evaluation on the validation part", low=1e-6
    )
    min_checkpoint_interval: float = option(
        10.0, "seconds for which no checkpoint follows another, but for the best so far and a phase's last", low=0.0
    )
    eval_checkpoint: str = option("last", "checkpoint to test: the last, or the best on validation", ("last", "best"))
    test_train: bool = option(False, "test the training part too: its distance from the test part shows overfitting")
    log_every: int = option(20, "steps between rows of training metrics", low=1)

    @property
    def trains(self) -> bool:
        """Whether anything is trained, after a head that may be fitted."""
        return bool(self.phases or self.epochs)
