"""An error for users is one short line, whatever stood in the file that caused it."""

import pickle

import pytest

from tl_jax.utils.errors import Diverged, UserError, combine_errors

pytestmark = pytest.mark.fast


def test_line_breaks_of_a_name_do_not_break_the_line():
    assert str(UserError("file 'a\n\x1b[2Jb' is\tbad")) == "file 'a [2Jb' is bad"


def test_a_name_as_long_as_a_file_is_shortened():
    message = str(UserError(f"column {'x' * 70_000} is unknown; rename it"))
    assert message == f"column {'x' * 40}...{'x' * 20} is unknown; rename it"


def test_a_long_list_keeps_its_beginning_and_what_to_do():
    message = str(UserError("have " + ", ".join(map(str, range(10_000))) + "; choose one"))
    assert len(message) <= 2000 and message.startswith("have 0, 1, ") and message.endswith("9999; choose one")


def test_usual_messages_stay_as_they_are_also_in_another_process():
    text = "/data/two  blanks/x.png: cannot decode; remove it"
    assert str(UserError(text)) == text
    assert str(pickle.loads(pickle.dumps(Diverged(text)))) == text


def test_letters_that_no_terminal_can_write_are_replaced():
    assert str(UserError("file \udcff.png")) == "file ?.png"


def test_several_errors_are_one_line_with_the_first_five_and_what_to_do_once():
    errors = [UserError(f"{k}.png is cut short; replace or remove it") for k in range(7)]
    shown = " | ".join(f"{k}.png is cut short" for k in range(5))
    want = f"set: 7 of 9 images cannot be read: {shown} | and 2 more; replace or remove it"
    assert str(combine_errors("set", errors, "7 of 9 images cannot be read")) == want
    assert combine_errors("set", errors[:1], "1 of 9 images cannot be read") is errors[0]


def test_an_error_without_an_action_keeps_its_reason_among_several():
    errors = [UserError("a.png is no image"), UserError("b.png is cut short; replace it")]
    assert (
        str(combine_errors("set", errors, "2 files"))
        == "set: 2 files: a.png is no image | b.png is cut short; replace it"
    )
