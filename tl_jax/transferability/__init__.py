"""Transferability scores, dataset distances and probes: pure functions of features and labels."""

from tl_jax.transferability.cka import linear_cka
from tl_jax.transferability.frechet import frechet
from tl_jax.transferability.gbc import gbc
from tl_jax.transferability.h_score import h_score, regularized_h_score
from tl_jax.transferability.leep import leep, nce, nleep
from tl_jax.transferability.logme import logme
from tl_jax.transferability.mmd import energy, mmd
from tl_jax.transferability.otdd import otdd
from tl_jax.transferability.parc import parc
from tl_jax.transferability.probes import LinearProbe, knn, logistic_probe, ridge_probe
from tl_jax.transferability.proxy_a_distance import label_overlap, proxy_a
from tl_jax.transferability.report import report
from tl_jax.transferability.sfda import sfda
from tl_jax.transferability.sliced_wasserstein import sliced_wasserstein
from tl_jax.transferability.task2vec import task2vec, task2vec_distance
from tl_jax.transferability.transrate import transrate

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
