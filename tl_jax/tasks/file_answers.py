"""Image files that a user names for prediction: the readable ones in batches, the others with their errors."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax.data.decode import Decoding, decode_file
from tl_jax.utils.errors import UserError, combine_errors, join_errors

FileError = tuple[Path, UserError]


def decode_batches(
    files: Sequence[Path], decoding: Decoding, batch_size: int, errors: list[FileError]
) -> Iterator[tuple[list[Path], list[np.ndarray]]]:
    """Yield at most ``batch_size`` readable files at a time, and their images uint8 (H, W, 3); others join ``errors``.

    Raises:
        UserError: not one of the files can be read; it names the first ones, each with the reason.
    """
    for first in range(0, len(files), batch_size):
        batch_files, images = [], []
        for file in files[first : first + batch_size]:
            try:
                images.append(decode_file(file, decoding))
                batch_files.append(file)
            except UserError as error:
                errors.append((file, error))
        if batch_files:
            yield batch_files, images
    if len(errors) == len(files):
        raise combine_errors("--input", [error for _, error in errors], _count_errors(files, errors))


def readable_files(files: Sequence[Path], decoding: Decoding) -> tuple[list[Path], list[FileError]]:
    """Return the files that can be read, and the others with their errors; errors are those of ``decode_batches``."""
    errors: list[FileError] = []
    readable_files = [file for batch_files, _ in decode_batches(files, decoding, 1, errors) for file in batch_files]
    return readable_files, errors


def result_rows(
    files: Sequence[Path], results: Mapping[Path, Mapping[str, Any]], errors: Sequence[FileError]
) -> list[dict[str, Any]]:
    """Return a row for each file, in their order: what was found, or the error that kept it from being read."""
    failed = {file: {"error": str(error)} for file, error in errors}
    return [{"input": str(file), **(results[file] if file in results else failed[file])} for file in files]


def error_lines(files: Sequence[Path], errors: Sequence[FileError]) -> list[str]:
    """Return the line about files that cannot be read, none if there are none."""
    if not errors:
        return []
    return [f"{_count_errors(files, errors)}: {join_errors([error for _, error in errors])}"]


def _count_errors(files: Sequence[Path], errors: Sequence[FileError]) -> str:
    return f"{len(errors)} of {len(files)} files cannot be read"
