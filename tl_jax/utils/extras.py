"""Optional dependencies: the extras of the package, and the error if one is missing."""

import contextlib
from collections.abc import Iterator

from tl_jax.utils.errors import UserError

# Import names that an extra adds; pyproject.toml has their versions.
EXTRAS = {
    "detection": ("pycocotools", "defusedxml"),
    "distance": ("ott",),
    "export": ("flatbuffers",),
    "medical": ("pydicom",),
    "rl": ("gymnax",),
    "sweeps": ("ray",),
    "text": ("tokenizers", "seqeval", "huggingface_hub"),
    "tfds": ("tensorflow_datasets", "array_record"),
    "tracking": ("tensorboardX",),
}


class MissingExtra(UserError, ImportError):
    """An optional library is not installed."""


@contextlib.contextmanager
def require_extra(extra: str) -> Iterator[None]:
    """Turn a failed import of a library of ``extra`` into an error that tells how to install it.

    Raises:
        MissingExtra: a library of the extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRAS[extra]:
            raise
        raise MissingExtra(
            f"{library} is not installed (extra {extra!r}); pip install 'tl-jax[{extra}]', or pip install "
            f"'.[{extra}]' in a checkout"
        ) from None
