"""Networks from files of Keras and torchvision compute what these do: stored numbers, so that no peer is needed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.references import compare, golden
from tests.references.draw import draw

pytestmark = pytest.mark.slow


def name_of(case: dict[str, Any]) -> str:
    return f"{case['source']}-{case['name']}-{case['size'][0]}x{case['size'][1]}"


@pytest.mark.parametrize("case", golden.read(), ids=name_of)
def test_golden(case: dict[str, Any], tmp_path: Path) -> None:
    # npz keeps the order of its members, which for Keras' automatic names is all that counts.
    np.savez(
        tmp_path / "model.npz", **{name: draw(name, tuple(shape), golden.SEED) for name, shape in case["variables"]}
    )
    loaded = compare.load(case["name"], case["source"], tmp_path / "model.npz")
    assert bool(loaded.spec.num_classes) == case["top"]
    actual = compare.apply(loaded, compare.images(case["size"]))
    assert set(actual) == set(case["values"])
    for end, expected in case["values"].items():
        error = np.abs(golden.entries(actual[end]) - expected).max() / np.abs(expected).max()
        assert error < compare.TOLERANCE, (end, error)
