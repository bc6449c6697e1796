"""Lines about a data set that a user should see, on stderr."""

import functools
import sys

from tqdm import tqdm


@functools.cache
def say_once(text: str) -> None:
    """Write a line without breaking a progress bar; once a process, however often the data set is read."""
    tqdm.write(text, file=sys.stderr)
