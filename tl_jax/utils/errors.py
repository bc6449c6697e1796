"""Errors for users, with one line that gives the problem and the next action."""

import difflib
import re
from collections.abc import Iterable, Sequence

MAX_WORD, MAX_LINE = 300, 2000  # characters; names in damaged files can be very long


class UserError(Exception):
    """An error that the user can fix. The message is one line: where it is, what is wrong, and what to do.

    Line breaks in the message are replaced, and long names, as from damaged files, shortened.
    """

    def __init__(self, message: object):
        line = re.sub(r"[\x00-\x1f\x7f\u2028\u2029]+", " ", str(message)).strip()
        line = re.sub(rf"\S{{{MAX_WORD},}}", lambda word: f"{word[0][:40]}...{word[0][-20:]}", line)
        line = line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 300]} ... {line[-295:]}"
        super().__init__(line.encode("utf-8", "replace").decode())


class Diverged(UserError):
    """Training diverged to values that are not finite."""


class Preempted(Exception):
    """SIGTERM arrived while training, and the state was saved; the message gives the place."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the closest of ``choices``, or the list of all if none is close."""
    choices = sorted(choices)
    matches = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"did you mean {matches[0]!r}?" if matches else f"choose one of {', '.join(choices)}"


def join_names(names: Sequence[object], max_names: int) -> str:
    """Return at most ``max_names`` names in one line, such as "a, b and 3 more"."""
    return ", ".join(map(str, names[:max_names])) + (
        f" and {len(names) - max_names:,} more" if len(names) > max_names else ""
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or its type if it is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def combine_errors(where: object, errors: Sequence[UserError], summary: str) -> UserError:
    """Return one error for several: their summary, and the first ones in full.

    Args:
        where: location of the errors, such as the name of a data set.
        errors: at least one; a single one is returned unchanged.
        summary: summary with their number, such as "5 of 40 images cannot be read".
    """
    return errors[0] if len(errors) == 1 else UserError(f"{where}: {summary}: {join_errors(errors)}")


def join_errors(errors: Sequence[UserError], max_errors: int = 5) -> str:
    """Return the first errors ``{what is wrong}; {action}`` in one line: all problems, then the actions."""
    lines = [str(error) for error in errors[:max_errors]]
    if len(errors) == 1:
        return lines[0]
    reasons = [line.rpartition("; ")[0] or line for line in lines]
    actions = dict.fromkeys(line.rpartition("; ")[2] for line in lines if "; " in line)
    more = [f"and {len(errors) - max_errors} more"] if len(errors) > max_errors else []
    return "; ".join([" | ".join(reasons + more), *([", or ".join(actions)] if actions else [])])
