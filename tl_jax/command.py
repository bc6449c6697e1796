"""Commands: absl parses the flags, and what the user can mend is said in one line."""

import sys
from collections.abc import Callable
from typing import Any

from absl import app

from tl_jax.errors import UserError


def run(main: Callable[[list[str]], None], **how: Any) -> None:
    """Call ``main`` by ``absl.app.run``; exit with 2 and a line on an error of the user's, with 130 on Ctrl-C.

    Args:
        main: takes what is left of the arguments.
        how: further arguments of ``app.run``, such as ``flags_parser``.
    """
    try:
        app.run(main, **how)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        sys.exit(130)
