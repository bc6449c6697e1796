"""Pictures for comparisons with peers, and the comparison."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from tl_jax import pretrained

TOLERANCE = 2e-5  # of the largest value of the reference; float32 errs by 5e-6, an epsilon of 1.001e-5 for 1e-5 by 4e-4


def images(size: tuple[int, int], count: int = 2) -> np.ndarray:
    """Return network inputs (count, *size, 3) of mean 0 and variance 1, the same ones every time."""
    return (12**0.5 * (np.random.default_rng(1).random((count, *size, 3)) - 0.5)).astype(np.float32)


def load(name: str, source: str, path: Path, **options: Any) -> pretrained.Pretrained:
    """Return the network in a file, converted afresh; the file and its conversion, up to a gigabyte, are deleted."""
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, TL_JAX_CACHE=cache):
        net = pretrained.load(name, source, path, **options)
    path.unlink()
    return net


def apply(net: pretrained.Pretrained, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return every endpoint of a loaded network, and its logits where it has a head."""
    # LLVM's optimisations take half of the time to compile, and the convolutions lie in a library anyway.
    options = {"xla_backend_optimization_level": 0}
    first, ends = jax.jit(net.model.apply).lower(net.variables, x).compile(options)(net.variables, x)
    ends = {name: np.asarray(end) for name, end in ends.items()}
    if net.spec.num_classes:
        return {"logits": np.asarray(first), **ends}
    np.testing.assert_array_equal(first, ends["features"])
    return ends


def assert_agrees(
    actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], record: Callable[[str, Any], None]
) -> None:
    """Compare every endpoint, and keep the errors, relative to the largest value of the reference, in the report."""
    assert set(actual) == set(expected)
    errors = {}
    for name, reference in expected.items():
        assert actual[name].shape == reference.shape, name
        errors[name] = float(np.abs(actual[name] - reference).max() / np.abs(reference).max())
        record(name, errors[name])
    print(*(f"{name} {error:.1e}" for name, error in errors.items()))
    assert all(error < TOLERANCE for error in errors.values()), errors  # a NaN fails too
