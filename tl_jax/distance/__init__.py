"""How far a source is from a target, and how well features serve a task: pure functions of features and labels."""

from tl_jax.distance.challenge import sfda
from tl_jax.distance.coding import transrate
from tl_jax.distance.correlation import parc
from tl_jax.distance.datasets import otdd
from tl_jax.distance.domains import label_overlap, proxy_a
from tl_jax.distance.everything import report
from tl_jax.distance.evidence import logme
from tl_jax.distance.expected import leep, nce
from tl_jax.distance.fisher import h_score, regularized_h_score
from tl_jax.distance.gaussians import frechet
from tl_jax.distance.information import task2vec, task2vec_distance
from tl_jax.distance.mixture import nleep
from tl_jax.distance.neighbours import knn
from tl_jax.distance.overlap import gbc
from tl_jax.distance.pairs import energy, mmd
from tl_jax.distance.probes import LinearProbe, logistic_probe, ridge_probe
from tl_jax.distance.similarity import linear_cka
from tl_jax.distance.sliced import sliced_wasserstein

__all__ = [
    "LinearProbe",
    "energy",
    "frechet",
    "gbc",
    "h_score",
    "knn",
    "label_overlap",
    "leep",
    "linear_cka",
    "logistic_probe",
    "logme",
    "mmd",
    "nce",
    "nleep",
    "otdd",
    "parc",
    "proxy_a",
    "regularized_h_score",
    "report",
    "ridge_probe",
    "sfda",
    "sliced_wasserstein",
    "task2vec",
    "task2vec_distance",
    "transrate",
]
