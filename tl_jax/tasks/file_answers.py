"""Image files that a user names for prediction: the readable ones in batches, the others with their errors."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax.data.decode import Decoding, decode_file
from tl_jax.utils.errors import UserError, combine_errors, join_errors

Failed = tuple[Path, UserError]


def decoded(
    files: Sequence[Path], decoding: Decoding, size: int, errors: list[Failed]
) -> Iterator[tuple[list[Path], list[np.ndarray]]]:
    """Yield at most ``size`` readable files at a time, and their images uint8 (H, W, 3); others join ``errors``.

    Raises:
        UserError: not one of the files can be read; it names the first ones, each with the reason.
    """
    for first in range(0, len(files), size):
        some, images = [], []
        for file in files[first : first + size]:
            try:
                images.append(decode_file(file, decoding))
                some.append(file)
            except UserError as error:
                errors.append((file, error))
        if some:
            yield some, images
    if len(errors) == len(files):
        raise combine_errors("--input", [error for _, error in errors], _count(files, errors))


def readable(files: Sequence[Path], decoding: Decoding) -> tuple[list[Path], list[Failed]]:
    """Return the files that can be read, and the others with their errors; errors are those of ``decoded``."""
    errors: list[Failed] = []
    found = [file for some, _ in decoded(files, decoding, 1, errors) for file in some]
    return found, errors


def rows(
    files: Sequence[Path], found: Mapping[Path, Mapping[str, Any]], errors: Sequence[Failed]
) -> list[dict[str, Any]]:
    """Return a row for each file, in their order: what was found, or the error that kept it from being read."""
    failed = {file: {"error": str(error)} for file, error in errors}
    return [{"input": str(file), **(found[file] if file in found else failed[file])} for file in files]


def summary(files: Sequence[Path], errors: Sequence[Failed]) -> list[str]:
    """Return the line about files that cannot be read, none if there are none."""
    if not errors:
        return []
    return [f"{_count(files, errors)}: {join_errors([error for _, error in errors])}"]


def _count(files: Sequence[Path], errors: Sequence[Failed]) -> str:
    return f"{len(errors)} of {len(files)} files cannot be read"
