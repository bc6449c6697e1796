"""Image inputs of predictions: files, folders, lists of files, arrays. A damaged input carries its error."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from tl_jax.data.dataset import WORKERS
from tl_jax.data.decode import Decoding, decode_file
from tl_jax.data.image_folder import list_images
from tl_jax.data.text import Columns, read_unlabelled
from tl_jax.train.task import as_list
from tl_jax.utils.errors import UserError

LISTS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl"}  # tables with a file column
FILE_COLUMN = Columns(text=("file",))


class ImageInput(NamedTuple):
    """An image to predict: its name, and its file, its pixels uint8 (H, W, 3), or the error of reading it."""

    name: str
    source: Path | np.ndarray | UserError


Decoded = list[tuple[ImageInput, Any]]  # with the fitted image, or its UserError


def list_inputs(inputs: Any, outside: bool = False) -> list[ImageInput]:
    """Return the images of ``inputs`` without decoding them.

    Args:
        inputs: one or several of: image files, folders (searched recursively), tables with a column ``file`` (CSV,
            TSV or JSON Lines, with paths relative to the table), arrays uint8 (H, W, 3), (H, W) or (N, H, W, 3), or
            Pillow images.
        outside: see ``data.walker.Walk``.

    Raises:
        UserError: No input is given, or one is of another type.
    """
    images: list[ImageInput] = []
    for value in as_list(inputs):
        if isinstance(value, str | Path):
            path = Path(os.path.expanduser(value))
            is_list = path.suffix.lower() in LISTS and path.is_file()
            images += _read_list(path) if is_list else (ImageInput(str(f), f) for f in list_images(path, outside))
        else:
            images += [ImageInput(f"image {i}", pixels) for i, pixels in enumerate(_pixels(value), start=len(images))]
    if not images:
        raise UserError("no inputs; pass images, or folders of images")
    return images


def _read_list(path: Path) -> Iterator[ImageInput]:
    """Yield the images listed in a table."""
    for row in read_unlabelled(path, LISTS[path.suffix.lower()], FILE_COLUMN):
        if isinstance(row, UserError):
            yield ImageInput("", row)
        else:
            file = path.parent / row.text
            yield ImageInput(str(file), file)


def _pixels(value: Any) -> Sequence[np.ndarray]:
    """Return the images (H, W, 3) of an array or a Pillow image."""
    if hasattr(value, "convert"):
        return [_pillow_pixels(value)]
    if not isinstance(value, np.ndarray):
        raise UserError(f"input of type {type(value).__name__}: not supported; pass files, folders or image arrays")
    pixels = np.repeat(value[..., None], 3, axis=-1) if value.ndim == 2 else value
    if value.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3 or not pixels.size:
        raise UserError(
            f"input array {value.dtype} {value.shape}: not an image; pass uint8 (H, W, 3), (H, W) or (N, H, W, 3)"
        )
    return [pixels] if pixels.ndim == 3 else list(pixels)


def _pillow_pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels as ``decode_file`` would: upright, with transparency on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or ";" in image.mode:
        raise UserError(f"Pillow image of mode {image.mode}: more than 8 bits are not supported; pass the file")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def read_pixels(image: ImageInput, decoding: Decoding) -> np.ndarray:
    """Return the pixels uint8 (H, W, 3) of an image. Raises its error if it cannot be read."""
    if isinstance(image.source, UserError):
        raise image.source
    return decode_file(image.source, decoding) if isinstance(image.source, Path) else image.source


def decode_batches(
    images: Sequence[ImageInput], decoding: Decoding, batch_size: int, fit: Callable[[np.ndarray], Any]
) -> Iterator[Decoded]:
    """Yield batches of ``batch_size`` images, in order, with ``fit`` applied to their pixels uint8 (H, W, 3).

    Threads decode the next batch while the caller uses the current one, so two batches are in memory.
    """

    def decode(image: ImageInput) -> Any:
        try:
            return fit(read_pixels(image, decoding))
        except UserError as error:
            return error

    pool, ahead = ThreadPoolExecutor(WORKERS), deque()
    try:
        for first in range(0, len(images), batch_size):
            batch = images[first : first + batch_size]
            ahead.append((batch, pool.map(decode, batch)))
            if len(ahead) > 1:
                yield _finish(*ahead.popleft())
        yield from (_finish(*entry) for entry in ahead)
    finally:
        pool.shutdown(cancel_futures=True)


def _finish(batch: Sequence[ImageInput], results: Iterator[Any]) -> Decoded:
    return list(zip(batch, results, strict=True))


def predict_rows(
    images: Sequence[ImageInput],
    decoding: Decoding,
    batch_size: int,
    fit: Callable[[np.ndarray], Any],
    predict: Callable[[list[ImageInput], list[Any]], Iterable[Mapping[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each image, in order: its name, and its prediction or the error of a damaged image.

    Args:
        images: see ``list_inputs``.
        decoding, batch_size, fit: see ``decode_batches``.
        predict: takes the readable images of a batch and their fitted pixels; yields predictions.
    """
    for batch in decode_batches(images, decoding, batch_size, fit):
        readable = [pair for pair in batch if not isinstance(pair[1], UserError)]
        predictions = iter(predict(*map(list, zip(*readable, strict=True))) if readable else ())
        for image, decoded in batch:
            says = {"error": str(decoded)} if isinstance(decoded, UserError) else next(predictions)
            yield {"input": image.name, **says}
