"""Damaged checkpoints: noticed, put aside, and the one before taken; what was saved earlier is not lost."""

import shutil

import pytest

from tests.train import tiny
from tests.train.test_loop import PACE, fit
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.state import digest
from tl_jax.train.workdir import read_json
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a run of 12 steps, with checkpoints 9 and 12, and the digest of its parameters."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, digest(fit(folder).state.variables)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


def largest(folder):
    """Return the largest file of weights of a checkpoint."""
    return max((folder / "variables").rglob("d/*"), key=lambda path: path.stat().st_size)


def flip(path):
    """Change a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def unseal(folder):
    (folder / "checkpoints.json").write_text("{}")


DAMAGES = {
    "flipped": lambda run: flip(largest(run / "checkpoints" / "12")),
    "gone": lambda run: largest(run / "checkpoints" / "12").unlink(),
    "short": lambda run: largest(run / "checkpoints" / "12").write_bytes(b""),
    "half written": lambda run: (unseal(run), shutil.rmtree(run / "checkpoints" / "12" / "variables" / "d")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_one_before_is_taken(finished, copy, capsys, name):
    DAMAGES[name](copy)
    again = fit(copy)
    assert again.resumed_from == 9
    assert digest(again.state.variables) == finished[1]
    said = capsys.readouterr().err
    assert "WARNING: checkpoint 12 is damaged: " in said and str(copy / "damaged" / "12") in said
    assert (copy / "damaged" / "12").is_dir()


def test_with_none_left_the_run_starts_anew(finished, copy, capsys):
    for step in ("9", "12"):
        flip(largest(copy / "checkpoints" / step))
    again = fit(copy)
    assert again.resumed_from == 0 and digest(again.state.variables) == finished[1]
    assert capsys.readouterr().err.count("is damaged") == 2


def test_a_sound_checkpoint_without_a_seal_is_taken(copy, capsys):
    unseal(copy)
    assert fit(copy).resumed_from == 12
    assert "damaged" not in capsys.readouterr().out
    assert set(read_json(copy / "checkpoints.json")) == {"9", "12"}  # sealed now


@pytest.mark.parametrize("which", ["best", "latest"])
def test_a_damaged_checkpoint_is_refused_whoever_opens_it(copy, which):
    state = fit(copy).state
    checkpoints = Checkpoints(copy / "checkpoints", tiny.task(), cleanup=False)
    step = getattr(checkpoints, which)()
    flip(largest(copy / "checkpoints" / str(step)))
    with pytest.raises(
        UserError, match=rf"checkpoints/{step}: the checkpoint is damaged: .* has changed .*eval_checkpoint="
    ):
        checkpoints.restore(step, state, opt_state=False, for_eval=True)
    checkpoints.close()


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("damage", [b"\xb7", b"{", b""])
def test_scores_that_are_damaged_choose_no_checkpoint(finished, copy, capsys, damage, sealed):
    scores = copy / "checkpoints" / "9" / "metrics" / "metrics"
    scores.write_bytes(damage + scores.read_bytes()[: 5 if damage else 0])
    if not sealed:
        unseal(copy)
    with pytest.raises(UserError, match="checkpoints/9: the checkpoint is damaged: metrics/metrics "):
        Checkpoints(copy / "checkpoints", tiny.task(), cleanup=False)
    again = fit(copy)
    assert again.resumed_from == 12 and digest(again.state.variables) == finished[1]
    assert "WARNING: checkpoint 9 is damaged: metrics/metrics " in capsys.readouterr().err


def test_a_digit_of_a_score_that_has_changed_is_noticed(copy):
    scores = copy / "checkpoints" / "9" / "metrics" / "metrics"
    text = scores.read_text()
    scores.write_text(text[:-2] + str(9 - int(text[-2])) + text[-1])
    with pytest.raises(UserError, match="checkpoints/9: the checkpoint is damaged: metrics/metrics has changed"):
        Checkpoints(copy / "checkpoints", tiny.task(), cleanup=False)


def test_seals_go_with_their_checkpoints(finished):
    kept = {path.name for path in (finished[0] / "checkpoints").iterdir() if path.name.isdigit()}
    assert set(read_json(finished[0] / "checkpoints.json")) == kept and PACE.save == 3
