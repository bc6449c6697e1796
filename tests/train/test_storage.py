"""A disk that fails is named; a mistake of the program stays what it is. experiments/faults.py puts in real faults."""

import errno
import os

import pytest

from tl_jax.train import workdir
from tl_jax.train.workdir import RunFolder
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def full(path):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def raised_from(error):
    try:
        try:
            raise error
        except Exception as e:
            raise RuntimeError("while saving") from e
    except RuntimeError as e:
        return e


def test_what_the_system_says_is_found_in_whatever_was_raised(tmp_path):
    home, said = RunFolder(tmp_path), os.strerror(errno.ENOSPC)
    assert home.fault(full(tmp_path / "metrics.jsonl")) == said
    assert home.fault(raised_from(full(tmp_path / "metrics.jsonl"))) == said
    assert home.fault(ValueError(f'RESOURCE_EXHAUSTED: Failed to write "{tmp_path}/d/5": {said}')) == said
    assert home.fault(OSError(errno.EROFS, "x")) == os.strerror(errno.EROFS)  # of a file that is open: no name


def test_what_is_not_of_this_disk_is_not_blamed_on_it(tmp_path):
    home = RunFolder(tmp_path)
    assert home.fault(full("/another/place")) == ""
    assert home.fault(ValueError(f"/another/place: {os.strerror(errno.ENOSPC)}")) == ""
    assert home.fault(FileNotFoundError(errno.ENOENT, "x", str(tmp_path / "f"))) == ""
    assert home.fault(KeyError("lr")) == ""


def test_another_folder_in_its_place_is_noticed(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    home = RunFolder(folder)
    home.check()
    folder.rename(tmp_path / "moved")
    assert "was it moved" in home.fault(FileNotFoundError(errno.ENOENT, "x", str(folder / "f")))
    folder.mkdir()
    with pytest.raises(OSError) as caught:
        home.check()
    assert caught.value.errno == errno.ESTALE and "was it moved" in home.fault(caught.value)


def test_a_run_says_it_in_one_line_and_other_errors_pass(tmp_path):
    with pytest.raises(UserError, match=r"cannot be written: No space left on device; .* resume with the same command"):
        with workdir.exclusive(tmp_path):
            raise full(tmp_path / "summary.json")
    for error in (KeyError("lr"), UserError("wrong")):
        with pytest.raises(type(error), match=error.args[0]):
            with workdir.exclusive(tmp_path):
                raise error
