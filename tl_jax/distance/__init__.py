"""How far a source is from a target, and how well features serve a task: pure functions of features and labels."""

from tl_jax.distance.gaussians import frechet
from tl_jax.distance.neighbours import knn
from tl_jax.distance.otdd import otdd
from tl_jax.distance.pairs import energy, mmd
from tl_jax.distance.probes import logistic_probe, ridge_probe
from tl_jax.distance.similarity import linear_cka

__all__ = ["energy", "frechet", "knn", "linear_cka", "logistic_probe", "mmd", "otdd", "ridge_probe"]
