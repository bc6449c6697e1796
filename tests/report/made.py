"""Result files of runs that never were, with figures that are known."""

import io
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ["<b>cat</b>", "dog", "a & b"]
COUNTS = [[18, 2, 0], [3, 15, 2], [0, 1, 19]]  # rows are labels


def picture(side: int = 16) -> str:
    """Return a small picture as a data URI."""
    buffer = io.BytesIO()
    shades = np.random.default_rng(side).integers(0, 255, (side, side, 3))
    Image.fromarray(shades.astype(np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()


def details(**changes: Any) -> dict[str, Any]:
    """Return ``test_details.json`` of a classifier of pictures; a change to None leaves a key out."""
    rows = [[i, k, COUNTS[i][k]] for i in range(3) for k in range(3) if COUNTS[i][k]]
    whole = {
        "classes": CLASSES,
        "examples": 60,
        "confusion": rows,
        "calibration": {
            "ece": 0.0625, "confidence": [0, 0.5, 0.9], "accuracy": [0, 0.4, 0.95], "share": [0, 0.25, 0.75],
        },
        "mistakes": [{"label": CLASSES[0], "prediction": "dog", "probability": 0.987, "picture": picture()}],
    }  # fmt: skip
    return {name: value for name, value in (whole | changes).items() if value is not None}


def summary(accuracy: float = 52 / 60, seed: int = 0) -> dict[str, Any]:
    """Return ``summary.json`` of a run."""
    return {
        "config_name": "made", "seed": seed, "steps": 40, "tested_step": 40, "examples_evaluated": 60,
        "score": "accuracy", "metrics": {"loss": 0.4321, "accuracy": accuracy},
        "examples": {"train": 30, "validation": 0, "test": 60},
        "seconds": {"data": 0.5, "features": 0.0, "compile": 2.25, "train": 3.5, "eval": 0.75, "total": 7.0},
        "parameters": {"trainable": 1200, "frozen": 80_000}, "peak_memory_bytes": 512 * 2**20, "devices": ["cpu"],
        "machine": {"system": "Linux", "processor": "x86_64", "cores": 2}, "versions": {"tl_jax": "0", "jax": "0.9.9"},
        "commit": "abc1234",
    }  # fmt: skip


NETWORK = {
    "phases": ["head", "all"],
    "parts": [
        {"name": "stem", "parameters": 1000, "trained": [0, 0]},
        {"name": "stage1", "parameters": 79_000, "trained": [0, 79_000]},
        {"name": "head", "parameters": 1200, "trained": [1200, 1200]},
    ],
}
FACTS = {
    "weights": "/somewhere/else/net.safetensors", "weights_sha256": "0123456789abcdef" * 4, "data": "animals",
    "tested": "the <i>test</i> part", "spec": {"licence": "CC-BY 4.0"},
}  # fmt: skip


def write(folder: Path, seed: int = 0, accuracy: float = 52 / 60, **files: Any) -> Path:
    """Write the files of a run to ``folder``; ``files`` are others by name, None for none."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": s, "split": "train", "loss": 2 / s, "accuracy": s / 50, "lr": 0.1} for s in range(10, 41, 10)]
    rows += [{"step": s, "split": "validation", "loss": 3 / s, "accuracy": s / 60} for s in (20, 40)]
    whole = {
        "config": {"name": "made", "seed": seed, "optim": {"lr": 0.5}},
        "summary": summary(accuracy, seed),
        "facts": FACTS,
        "test_details": details(),
        "network": NETWORK,
    }
    for name, content in (whole | files).items():
        if content is not None and name != "metrics":
            (folder / f"{name}.json").write_text(json.dumps(content))
    if files.get("metrics", True) is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
