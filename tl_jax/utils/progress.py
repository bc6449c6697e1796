"""Progress bars, shown only in terminals and notebooks."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """Return a ``tqdm`` bar, optionally over items; ``options`` are those of tqdm."""
    in_notebook = "ipykernel" in sys.modules  # its output is no terminal
    return tqdm(items, **{"disable": False if in_notebook else None, "dynamic_ncols": True, **options})
