"""Optional dependencies: which extra of the package brings a library, and one line that says so if it is missing."""

import contextlib
from collections.abc import Iterator

from tl_jax.utils.errors import UserError

# What an extra brings beyond the base, by the names that are imported; pyproject.toml has their versions.
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
    """A library that only some uses need is not installed."""


@contextlib.contextmanager
def require_extra(extra: str) -> Iterator[None]:
    """Turn the failed import of a library of ``extra`` into a line that says how to install it.

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
            f"{library} is not installed, which the extra {extra!r} brings; pip install 'tl-jax[{extra}]', "
            f"or pip install '.[{extra}]' in a checkout"
        ) from None
