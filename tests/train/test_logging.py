"""Commands log without PyTorch, which tensorboardX imports where it is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast
SCRIPT = """
import pathlib, sys
from tl_jax import cli
from tl_jax.train.logging import Log
cli.import_tensorboard()
log = Log(pathlib.Path(sys.argv[1]), 0, 1, False)
log.row(1, "train", {"loss": 0.5})
log.close()
assert "torch" not in sys.modules
import torch  # still there for whoever wants it
"""


def test_torch_is_not_imported_and_not_hidden_after(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    paths = [str(tmp_path), str(Path(__file__).parents[2])]
    script = f"import sys; sys.path[:0] = {paths}\n{SCRIPT}"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.stderr.strip() == "torch was imported"  # by the last line alone
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    events = list((tmp_path / "tensorboard").iterdir())
    assert len(events) == 1 and b"train/loss" in events[0].read_bytes()
