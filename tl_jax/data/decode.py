"""Decode image files, and encoded images of TFDS records, with several threads.

Records have 8 bits, 16 bits, or floats stored as four channels.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from tl_jax.data import dicom, value_range
from tl_jax.data.dataset import WORKERS, EncodedImages, cached_array, cached_or_encoded, fit_image
from tl_jax.data.value_range import ValueRange
from tl_jax.utils.errors import UserError, combine_errors
from tl_jax.utils.progress import progress_bar

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp")
ENDINGS = (*IMAGE_ENDINGS, *dicom.ENDINGS)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")  # accepted content of a file, whatever its suffix
DEEP_MODE = ";16B"  # suffix of the raw mode of PNG with 16 bits
# Operation that makes a stored image upright, by EXIF orientation.
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Decoding(NamedTuple):
    """Options of decoding.

    Attributes:
        windows: windows of DICOM files, see ``dicom.read_dicom``.
        value_range: range of images with more than 8 bits, see ``value_range``; None if unknown.
        max_pixels: largest number of pixels of an image; 0 for Pillow's limit.
        from_run: whether ``value_range`` is that of a trained run, which other images must use.
        outside: whether files outside the data folder are read, see ``walker.PathGuard``.
    """

    windows: tuple[Any, ...] = ()
    value_range: ValueRange | None = None
    max_pixels: int = 0
    from_run: bool = False
    outside: bool = False


DEFAULT_DECODING = Decoding()


class Headers(NamedTuple):
    """Headers of N files.

    Attributes:
        sizes: int (N, 2), height and width of the upright image.
        orientations: int (N,), EXIF orientation, 1 to 8.
        deep: bool (N,), whether the image has more than 8 bits per channel and needs a range; False for DICOM.
    """

    sizes: np.ndarray
    orientations: np.ndarray
    deep: np.ndarray


def decode_all(
    name: str,
    files: Sequence[Path],
    size: int,
    max_bytes: float,
    decoding: Decoding = DEFAULT_DECODING,
    fit_mode: str = "crop",
    shape: tuple[int, int] | None = None,
) -> np.ndarray | EncodedImages:
    """Return all images uint8 (N, H, W, 3), decoded by several threads or read from the cache.

    Images of one size keep it; others are fitted to ``size`` with ``fit_mode``, see ``dataset.fit_image``. Modes other
    than "crop" also fit images of one size that are not square. With a ``shape`` (H, W), all images are fitted to it.
    Other arguments are those of ``decode_into``.
    """
    sizes = read_headers(name, files, decoding).sizes
    height, width = map(int, sizes[0])
    same = (sizes == sizes[0]).all()
    if same and ((height, width) == shape if shape else fit_mode == "crop" or height == width):
        return decode_into(name, files, (height, width), lambda image: image, max_bytes, decoding=decoding)
    height, width = shape or (size, size)
    fit = lambda image: fit_image(image, (width, height), fit_mode)  # noqa: E731
    return decode_into(name, files, (height, width), fit, max_bytes, (fit_mode,), decoding)


def decode_into(
    name: str,
    files: Sequence[Path],
    shape: tuple[int, int],
    transform: Callable[[np.ndarray], np.ndarray],
    max_bytes: float,
    options: tuple[Any, ...] = (),
    decoding: Decoding = DEFAULT_DECODING,
) -> np.ndarray | EncodedImages:
    """Return all images uint8 (N, H, W, 3), decoded and transformed.

    Args:
        name: name of the data set, for the progress bar and messages.
        files: N image files.
        shape: (H, W) of the transformed images.
        transform: (h, w, 3) -> (H, W, 3).
        max_bytes: size limit of decoded images on disk.
        options: description of ``transform``, unless ``shape`` determines it.
        decoding: options of decoding.

    Raises:
        UserError: files cannot be decoded; it gives their number, and reasons for the first ones. A data set that is
            not cached is decoded, and raises it, when it is read.
    """

    def decode_one(file: Path) -> np.ndarray:
        pixels = transform(decode_file(file, decoding))
        if pixels.shape[:2] != shape:  # the header contradicts the content
            raise UserError(f"cannot decode {file} (its size differs from its header); save it again")
        return pixels

    def decode_each() -> Iterator[np.ndarray]:
        for result in _map_files(f"reading {name}", decode_one, files):
            if isinstance(result, UserError):
                raise_damaged(name, files, decoding)
                raise result
            yield result[None]

    lock = threading.Lock()

    def decode_row(row: int) -> np.ndarray:
        try:
            return decode_one(files[row])
        except UserError as error:
            with lock:  # one thread searches for all damage; the others wait
                if not damaged:
                    damaged.append(find_damaged(name, files, decoding))
            raise damaged[0] or error from None

    damaged: list[UserError | None] = []
    full_shape = (len(files), *shape, 3)
    windows = dicom.parse_windows(decoding.windows) if any(map(is_dicom, files)) else ()
    all_options = (*options, *windows, *(("range", decoding.value_range) if decoding.value_range else ()))
    return cached_or_encoded(
        _resolve_files(name, files, decoding), full_shape, decode_each, decode_row, max_bytes, all_options
    )


def read_headers(name: str, files: Sequence[Path], decoding: Decoding = DEFAULT_DECODING) -> Headers:
    """Return the headers of all files, cached on disk.

    Raises:
        UserError: as ``decode_into``; all files are then checked for damage.
    """

    def rows() -> Iterator[np.ndarray]:
        for result in _map_files(f"checking {name}", lambda file: _read_header(file, decoding), files):
            if isinstance(result, UserError):
                raise_damaged(name, files, decoding)
                raise result
            yield np.asarray([result])

    options = "headers", decoding.max_pixels or Image.MAX_IMAGE_PIXELS
    table = cached_array(_resolve_files(name, files, decoding), options, (len(files), 4), np.int32, rows)
    return Headers(table[:, :2], table[:, 2], table[:, 3] > 0)


def with_value_range(name: str, files: Sequence[Path], decoding: Decoding) -> Decoding:
    """Return ``decoding`` with the value range of the images, if any of them has more than 8 bits.

    The range is the configured one, or else the minimum and maximum over all files. That of a run is kept.

    Raises:
        UserError: a range is configured but no image needs one, or a file cannot be read.
    """
    if decoding.from_run:
        return decoding
    deep_files = [file for file, needed in zip(files, read_headers(name, files, decoding).deep, strict=True) if needed]
    stated = decoding.value_range
    if not deep_files:
        if stated and (decoding.windows or not any(map(is_dicom, files))):
            value_range.refuse_unused_range(name)
        return decoding
    if not stated:

        def compute_limits() -> Iterator[np.ndarray]:
            limits = []
            for result in _map_files(f"range of {name}", lambda file: _value_limits(file, decoding), deep_files):
                if isinstance(result, UserError):
                    raise_damaged(name, files, decoding)
                    raise result
                limits.append(result)
            yield np.asarray([value_range.find_range(name, [np.asarray(limits)])])

        low, high = cached_array(
            [file.resolve() for file in deep_files], "value range", (1, 2), np.float64, compute_limits
        )[0].tolist()
        decoding = decoding._replace(value_range=(low, high))
    assert decoding.value_range
    others = len(files) - len(deep_files) - sum(map(is_dicom, files))
    value_range.print_range(name, len(deep_files), decoding.value_range, bool(stated), others)
    return decoding


def find_damaged(name: str, files: Sequence[Path], decoding: Decoding) -> UserError | None:
    """Decode all files; return one error for those that cannot be decoded, or None."""
    decoding = decoding._replace(value_range=decoding.value_range or (0.0, 1.0))  # any range will do

    def attempt(file: Path) -> None:
        decode_file(file, decoding)

    results = _map_files(f"checking {name} for damage", attempt, sorted(files))
    errors = [result for result in results if isinstance(result, UserError)]
    return combine_errors(name, errors, f"{len(errors)} of {len(files)} images cannot be read") if errors else None


def raise_damaged(name: str, files: Sequence[Path], decoding: Decoding) -> None:
    """Raise one error for all files that cannot be decoded, if any."""
    if error := find_damaged(name, files, decoding):
        raise error


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, by its suffix, or if that is no image's, by its first bytes."""
    ending = path.suffix.lower()
    return ending in dicom.ENDINGS or (ending not in IMAGE_ENDINGS and dicom.has_dicom_header(path))


def is_image(path: Path) -> bool:
    """Return whether ``decode_file`` accepts a file, by its suffix, or for DICOM without one by its first bytes."""
    return path.suffix.lower() in ENDINGS or dicom.has_dicom_header(path)


def decode_file(path: Path, decoding: Decoding = DEFAULT_DECODING) -> np.ndarray:
    """Return an upright image as uint8 (H, W, 3), RGB.

    Raises:
        UserError: the file cannot be decoded, or has more than 8 bits per channel and no range is known.
    """
    if is_dicom(path):
        return dicom.read_dicom(path, decoding.windows, decoding.value_range, _max_pixels(decoding))
    with _open_image(path, str(path), decoding) as image:
        return np.asarray(
            _apply_orientation(_to_rgb(image, path, str(path), decoding.value_range), _orientation(image))
        )


def decode_bytes(encoded: bytes, name: str, decoding: Decoding = DEFAULT_DECODING) -> np.ndarray:
    """Return an image of a record as uint8 (H, W, 3); the EXIF orientation of records is ignored."""
    with _open_image(io.BytesIO(encoded), name, decoding) as image:
        return np.asarray(_to_rgb(image, io.BytesIO(encoded), name, decoding.value_range))


def read_values(encoded: bytes, name: str, decoding: Decoding = DEFAULT_DECODING) -> np.ndarray:
    """Return the values of an image of a record, (H, W) or (H, W, C), with all their bits."""
    with _open_image(io.BytesIO(encoded), name, decoding) as image:
        return _deep_values(image, io.BytesIO(encoded))[0] if _is_deep(image) else np.asarray(image)


def _map_files(description: str, function: Callable[[Path], Any], files: Sequence[Path]) -> Iterator[Any]:
    """Yield the result, or the UserError, of a function for each file, with a progress bar."""

    def attempt(file: Path) -> Any:
        try:
            return function(file)
        except UserError as error:
            return error

    with _bombs_as_errors(), ThreadPoolExecutor(WORKERS) as pool:
        options = {"desc": description, "total": len(files), "leave": False, "mininterval": 0.5, "delay": 1.0}
        try:
            yield from progress_bar(pool.map(attempt, files), unit=" images", **options)
        finally:
            pool.shutdown(cancel_futures=True)  # if the caller stops early


def _resolve_files(name: str, files: Sequence[Path], decoding: Decoding) -> list[Path]:
    """Return the files with links resolved; refuse missing ones."""
    if not all(file.is_file() for file in files):
        raise_damaged(name, files, decoding)
    return [file.resolve() for file in files]


def _read_header(path: Path, decoding: Decoding) -> tuple[int, int, int, int]:
    """Return height, width, orientation and whether the image has more than 8 bits; see ``Headers``."""
    if is_dicom(path):
        return *dicom.read_size(path, _max_pixels(decoding)), 1, 0
    with _open_image(path, str(path), decoding) as image:
        width, height = image.size
        plain = image.format == "PNG" and not any(word in path.read_bytes() for word in (b"xif", b"XIf", b"rientation"))
        orientation = 1 if plain else _orientation(image)  # decodes a PNG entirely
        size = (width, height) if orientation >= 5 else (height, width)
        return *size, orientation, int(_is_deep(image))


def _value_limits(path: Path, decoding: Decoding) -> tuple[float, float]:
    """Return the minimum and maximum of an image, without transparent pixels."""
    with _open_image(path, str(path), decoding) as image:
        values, alpha = _deep_values(image, path)
    visible = values if alpha is None or not alpha.any() else values[alpha > 0]
    return float(visible.min()), float(visible.max())


def _orientation(image: Image.Image) -> int:
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    return orientation if orientation in ORIENTATIONS else 1


def _apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(ORIENTATIONS[orientation]) if orientation in ORIENTATIONS else image


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Return whether an image that is not loaded yet has more than 8 bits per channel."""
    return image.mode.startswith(("I", "F")) or any(str(tile[3]).endswith(DEEP_MODE) for tile in image.tile)


def _deep_values(image: ImageFile.ImageFile, source: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the values (H, W) or (H, W, 3) of an image with more than 8 bits, and its opacity uint8 (H, W)."""
    if image.mode.startswith(("I", "F")):
        return np.asarray(image), None
    (tile,) = image.tile
    mode = str(tile[3])
    if mode.startswith("LA"):  # two bytes of grey and two of opacity, read as four channels
        image.tile = [(*tile[:3], "RGBA")]  # pyright: ignore[reportAttributeAccessIssue]  # accepts tuples
        high, low, opaque, _ = np.moveaxis(np.asarray(image).astype(np.uint16), -1, 0)
        return high << 8 | low, opaque.astype(np.uint8)
    # Pillow keeps only the high bytes of 16-bit colours; with the byte order swapped, it keeps the low ones.
    with Image.open(source, formats=FORMATS) as other:
        other.tile = [(*tile[:3], mode.replace("16B", "16L"))]  # pyright: ignore[reportAttributeAccessIssue]
        low = np.asarray(other)
    high = np.asarray(image)
    values = high[..., :3].astype(np.uint16) << 8 | low[..., :3]
    return values, high[..., 3] if high.shape[-1] == 4 else None


def _to_rgb(image: ImageFile.ImageFile, source: Any, name: str, limits: ValueRange | None) -> Image.Image:
    """Convert an opened image to RGB of 8 bits, with white for transparent pixels."""
    rgb: Image.Image = image
    if _is_deep(image):
        values, alpha = _deep_values(image, source)
        if limits is None:
            raise UserError(
                f"{name} has more than 8 bits (values {values.min():g} to {values.max():g}), and no range for them is "
                "known; set config.data.range='(LOW, HIGH)' for training, or save it with 8 bits as the others"
            )
        rgb = Image.fromarray(value_range.to_uint8(values, limits)).convert("RGB")
        if alpha is not None:
            rgb.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
    if rgb.has_transparency_data:
        rgb = rgb.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb)
    return rgb.convert("RGB")


@contextlib.contextmanager
def _bombs_as_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _max_pixels(decoding: Decoding) -> int:
    """Return the largest number of pixels of an image, 0 for no limit; also lowers Pillow's limit to it."""
    if decoding.max_pixels and Image.MAX_IMAGE_PIXELS and decoding.max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = decoding.max_pixels
    return decoding.max_pixels or Image.MAX_IMAGE_PIXELS or 0


@contextlib.contextmanager
def _open_image(source: Any, name: str, decoding: Decoding) -> Iterator[ImageFile.ImageFile]:
    """Open an image, a path or a file; raise a UserError with its name for anything wrong."""
    limit = _max_pixels(decoding)
    too_large = UserError(f"{name}: more than {limit:,} pixels; shrink or remove it, or raise config.data.max_pixels")
    try:
        with Image.open(source, formats=FORMATS) as image:
            if limit and image.width * image.height > limit:
                raise too_large
            yield image
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large from error
    except Exception as error:  # decoders raise errors of any kind on damaged bytes
        unknown = isinstance(error, UnidentifiedImageError)
        why = f"not {', '.join(FORMATS)}" if unknown else " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot decode {name} ({why}); replace or remove it") from error


def decode_record(
    encoded: bytes, floats: bool = False, decoding: Decoding = DEFAULT_DECODING, name: str = "a record"
) -> np.ndarray:
    """Return an image of a record as uint8 (H, W, 3); grey is repeated to three channels.

    Args:
        encoded: JPEG or PNG.
        floats: whether the four channels of a PNG are the bytes of one float32, as in TFDS.
        decoding: with the range of values, for more than 8 bits.
        name: name for messages.
    """
    if not floats:
        return decode_bytes(encoded, name, decoding)
    values, limits = _record_values(encoded, floats, decoding, name), decoding.value_range
    return np.repeat(value_range.to_uint8(values, limits or (0.0, 1.0)), 3, axis=-1)


def with_record_range(
    name: str, dtype: Any, files: list[str], encoded: Callable[[], Iterator[bytes]], count: int, decoding: Decoding
) -> Decoding:
    """Return ``decoding`` with the value range of the images, if they have more than 8 bits: configured, or computed.

    Args:
        name: name of the data set.
        dtype: dtype that the data set declares.
        files: files of the records.
        encoded: () -> all encoded images.
        count: number of images.
        decoding: options of decoding.

    Raises:
        UserError: a range is configured but no image needs one, or an image cannot be decoded.
    """
    floats, stated = dtype == np.float32, decoding.value_range
    first = _record_values(next(encoded()), floats, decoding, name)
    if first.dtype == np.uint8:
        if stated:
            value_range.refuse_unused_range(name)
        return decoding

    def compute_limits() -> Iterator[np.ndarray]:
        values = (_record_values(record, floats, decoding, name) for record in encoded())
        yield np.asarray([value_range.find_range(name, values)])

    if not stated:
        low, high = cached_array(files, "value range", (1, 2), np.float64, compute_limits)[0].tolist()
        decoding = decoding._replace(value_range=(low, high))
    assert decoding.value_range
    value_range.print_range(name, count, decoding.value_range, bool(stated))
    return decoding


def _record_values(encoded: bytes, floats: bool, decoding: Decoding, name: str) -> np.ndarray:
    """Return the values of an image with all their bits; ``floats`` are stored in four channels."""
    values = read_values(encoded, name, decoding)
    if not floats:
        return values
    if values.dtype != np.uint8 or values.ndim != 3 or values.shape[-1] != 4:
        raise UserError(f"{name}: no floats in four channels of bytes, as declared; prepare the data set again")
    return np.ascontiguousarray(values).view("<f4")
