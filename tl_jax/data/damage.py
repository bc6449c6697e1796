"""Messages about damaged lines of a data file, gathered so that one run names all of them, and notices on stderr."""

import functools
import sys
from pathlib import Path

from tqdm import tqdm

from tl_jax.utils.errors import UserError

FILES_SHOWN = 5


class LineErrors:
    """What is wrong with the lines of one file.

    ``add`` notes a line, ``raise_if_any`` raises one UserError for all of them, if there are any.
    """

    def __init__(self, file: Path):
        self.file = file
        self.lines: list[tuple[int, str, str]] = []  # line, what is wrong, what to do

    def add(self, line: int, problem: str, action: str) -> None:
        """Note what is wrong with a line, and what to do about it."""
        self.lines.append((line, problem, action))

    def raise_if_any(self) -> None:
        """Raise a UserError that names the first lines and the number of all, if there are any."""
        if not self.lines:
            return
        line, problem, action = self.lines[0]
        more = ""
        if len(self.lines) > 1:
            others = "; ".join(f"line {line}: {problem}" for line, problem, _ in self.lines[1:FILES_SHOWN])
            dots = ", ..." if len(self.lines) > FILES_SHOWN else ""
            more = f" ({len(self.lines):,} damaged lines in all; also {others}{dots})"
        raise UserError(f"{self.file}:{line}: {problem}; {action}{more}")


@functools.cache
def print_once(text: str) -> None:
    """Write a line without breaking a progress bar; once a process, however often the data set is read."""
    tqdm.write(text, file=sys.stderr)
