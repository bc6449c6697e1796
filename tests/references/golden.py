"""A few numbers that peers compute from weights of ``draw``, stored for machines without any peer.

``golden.json.xz`` holds a list of cases; ``python -m tests.references.make_golden`` writes it where the peers are.
"""

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).with_name("golden.json.xz")
ENTRIES = 16
SEED = 0


def read() -> list[dict[str, Any]]:
    """Return the cases, each with

    source, name, top: what was built, with or without its head.
    size: (H, W) of its two pictures.
    variables: (name, shape) of each variable, named as in files of the source and in the order of its files.
    values: endpoint -> ``entries`` of its reference in float64.
    """
    return json.loads(lzma.decompress(PATH.read_bytes()))


def write(cases: list[dict[str, Any]]) -> None:
    """Store the cases."""
    PATH.write_bytes(lzma.compress(json.dumps(cases, separators=(",", ":")).encode(), preset=9))


def entries(value: np.ndarray) -> np.ndarray:
    """Return ``ENTRIES`` entries of an array, from its first to its last."""
    return value.ravel()[np.linspace(0, value.size - 1, ENTRIES).astype(int)]
