"""How far a source is from a target, and how well features serve a task: pure functions of features and labels."""

from tl_jax.distance.datasets import otdd
from tl_jax.distance.domains import label_overlap, proxy_a
from tl_jax.distance.information import task2vec, task2vec_distance
from tl_jax.distance.gaussians import frechet
from tl_jax.distance.neighbours import knn
from tl_jax.distance.pairs import energy, mmd
from tl_jax.distance.probes import logistic_probe, ridge_probe
from tl_jax.distance.similarity import linear_cka
from tl_jax.distance.sliced import sliced_wasserstein

__all__ = [
    "energy",
    "frechet",
    "knn",
    "label_overlap",
    "linear_cka",
    "logistic_probe",
    "mmd",
    "otdd",
    "proxy_a",
    "ridge_probe",
    "sliced_wasserstein",
    "task2vec",
    "task2vec_distance",
]
