"""Studies as commands: flags are parsed by absl, and what the user can mend is said in one line."""

import sys
from collections.abc import Callable

from absl import app

from tl_jax.errors import UserError


def run(main: Callable[[list[str]], None]) -> None:
    """Parse the flags and call ``main``; exit with 2 and a line on an error of the user's, with 130 on Ctrl-C."""
    try:
        app.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is missing", file=sys.stderr)
        sys.exit(130)
