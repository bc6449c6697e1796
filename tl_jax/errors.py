"""The one exception a user is meant to read: it names the offender and the next action."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where, and what to do next."""


class Diverged(UserError):
    """Training came to numbers that are not finite."""


class Preempted(Exception):
    """SIGTERM came while training, and the state was saved; the message says where."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the closest of ``choices``, or the whole list when none is close."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(choices)}"
