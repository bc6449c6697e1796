"""Progress bars: on terminals and in notebooks, and nowhere else."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """Return a ``tqdm`` bar, over items where they are given; ``options`` are those of tqdm."""
    in_notebook = "ipykernel" in sys.modules  # whose output is no terminal, and yet is looked at
    return tqdm(items, **{"disable": False if in_notebook else None, "dynamic_ncols": True, **options})
