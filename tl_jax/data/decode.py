"""Decoding of image files and of encoded images in TFDS records, by several threads, once.

Records hold 8 bits, 16 bits, or floats in four channels.
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
from tqdm import tqdm

from tl_jax.data import dicom, value_range
from tl_jax.data.dataset import WORKERS, Encoded, fit, kept, kept_or_encoded
from tl_jax.data.value_range import ValueRange
from tl_jax.utils.errors import UserError, combine_errors

IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp")
ENDINGS = (*IMAGES, *dicom.ENDINGS)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")  # that a file may have inside, whatever its ending
DEEP = ";16B"  # ends the raw mode of PNG with 16 bits
# What brings a stored image upright, by its EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Decoding(NamedTuple):
    """Which image files are read, and how they become pixels.

    Attributes:
        windows: of DICOM files, see ``dicom.read``.
        value_range: of images with more than 8 bits, see ``value_range``; None where it is not known.
        max_pixels: of an image; 0 for Pillow's limit.
        of_run: whether ``value_range`` is that of a trained run, which other images must take as it is.
        outside: whether files outside the data folder are read, see ``walker.Inside``.
    """

    windows: tuple[Any, ...] = ()
    value_range: ValueRange | None = None
    max_pixels: int = 0
    of_run: bool = False
    outside: bool = False


DEFAULT = Decoding()


class Headers(NamedTuple):
    """What the headers of N files say.

    Attributes:
        sizes: int (N, 2), height and width once the image is upright.
        orientations: int (N,), EXIF's, 1 to 8.
        deep: bool (N,), whether the image has more than 8 bits for each channel and needs a range. DICOM does not.
    """

    sizes: np.ndarray
    orientations: np.ndarray
    deep: np.ndarray


def decode_all(
    name: str,
    files: Sequence[Path],
    size: int,
    most_bytes: float,
    decoding: Decoding = DEFAULT,
    how: str = "crop",
) -> np.ndarray | Encoded:
    """Return all images uint8 (N, H, W, 3), decoded by several threads, or once before and kept.

    Where all have the same size they are kept as they are, else all are fitted into ``size``, as ``how`` says (see
    ``dataset.fit``), and where the whole is wanted so are all that are not square; other arguments are those of
    ``decode_into``.
    """
    sizes = inspect(name, files, decoding).sizes
    height, width = map(int, sizes[0])
    if (sizes == sizes[0]).all() and (how == "crop" or height == width):
        return decode_into(name, files, (height, width), lambda image: image, most_bytes, decoding=decoding)
    return decode_into(name, files, (size, size), lambda image: fit(image, size, how), most_bytes, (how,), decoding)


def decode_into(
    name: str,
    files: Sequence[Path],
    shape: tuple[int, int],
    fitted: Callable[[np.ndarray], np.ndarray],
    most_bytes: float,
    how: tuple[Any, ...] = (),
    decoding: Decoding = DEFAULT,
) -> np.ndarray | Encoded:
    """Return all images uint8 (N, H, W, 3) as ``fitted`` makes them of what was decoded.

    Args:
        name: of the set, for the progress bar and messages.
        files: N image files.
        shape: (H, W) of what ``fitted`` returns.
        fitted: (h, w, 3) -> (H, W, 3).
        most_bytes: of decoded images that may be kept on disk.
        how: what ``fitted`` does, where ``shape`` does not say it.
        decoding: how files become pixels.

    Raises:
        UserError: files that cannot be decoded: their number, and the first ones with the reasons. A set that is not
            kept is decoded when it is read, and raises it then.
    """

    def image(file: Path) -> np.ndarray:
        found = fitted(decode(file, decoding))
        if found.shape[:2] != shape:  # a header that contradicts what follows
            raise UserError(f"cannot decode {file} (its size is not that in its header); store it anew")
        return found

    def decoded() -> Iterator[np.ndarray]:
        for result in _attempts(f"reading {name}", image, files):
            if isinstance(result, UserError):
                refuse_damaged(name, files, decoding)
                raise result
            yield result[None]

    lock = threading.Lock()

    def row_of(row: int) -> np.ndarray:
        try:
            return image(files[row])
        except UserError as error:
            with lock:  # several threads may meet damage; one looks for all of it, and the others do not repeat that
                if not damaged:
                    damaged.append(find_damaged(name, files, decoding))
            raise damaged[0] or error from None

    damaged: list[UserError | None] = []
    whole = (len(files), *shape, 3)
    windows = dicom.levels(decoding.windows) if any(map(is_dicom, files)) else ()
    about = (*how, *windows, *(("range", decoding.value_range) if decoding.value_range else ()))
    return kept_or_encoded(_resolved(name, files, decoding), whole, decoded, row_of, most_bytes, about)


def inspect(name: str, files: Sequence[Path], decoding: Decoding = DEFAULT) -> Headers:
    """Return what the headers of all files say; kept, so that another start need not open them.

    Raises:
        UserError: as ``decode_into``; damage behind the headers of other files is looked for then, too.
    """

    def rows() -> Iterator[np.ndarray]:
        for result in _attempts(f"looking at {name}", lambda file: _header(file, decoding), files):
            if isinstance(result, UserError):
                refuse_damaged(name, files, decoding)
                raise result
            yield np.asarray([result])

    about = "headers", decoding.max_pixels or Image.MAX_IMAGE_PIXELS
    table = kept(_resolved(name, files, decoding), about, (len(files), 4), np.int32, rows)
    return Headers(table[:, :2], table[:, 2], table[:, 3] > 0)


def with_range(name: str, files: Sequence[Path], decoding: Decoding) -> Decoding:
    """Return ``decoding`` with the range of a data set's images, if any of them has more than 8 bits.

    It is the stated one, or else reaches from the least to the largest value of all the files. That of a run stays.

    Raises:
        UserError: a range is stated and no image needs one, or a file cannot be read.
    """
    if decoding.of_run:
        return decoding
    deep = [file for file, needed in zip(files, inspect(name, files, decoding).deep, strict=True) if needed]
    stated = decoding.value_range
    if not deep:
        if stated and (decoding.windows or not any(map(is_dicom, files))):
            value_range.refuse_unused(name)
        return decoding
    if not stated:

        def ends() -> Iterator[np.ndarray]:
            found = []
            for result in _attempts(f"range of {name}", lambda file: _ends(file, decoding), deep):
                if isinstance(result, UserError):
                    refuse_damaged(name, files, decoding)
                    raise result
                found.append(result)
            yield np.asarray([value_range.find(name, [np.asarray(found)])])

        low, high = kept([file.resolve() for file in deep], "value range", (1, 2), np.float64, ends)[0].tolist()
        decoding = decoding._replace(value_range=(low, high))
    assert decoding.value_range
    others = len(files) - len(deep) - sum(map(is_dicom, files))
    value_range.say(name, len(deep), decoding.value_range, bool(stated), others)
    return decoding


def find_damaged(name: str, files: Sequence[Path], decoding: Decoding) -> UserError | None:
    """Decode all files and return one error about those that cannot be, None where there is none."""
    decoding = decoding._replace(value_range=decoding.value_range or (0.0, 1.0))  # what it is does not matter here

    def attempt(file: Path) -> None:
        decode(file, decoding)

    results = _attempts(f"looking for other damage in {name}", attempt, sorted(files))
    errors = [result for result in results if isinstance(result, UserError)]
    return combine_errors(name, errors, f"{len(errors)} of {len(files)} images cannot be read") if errors else None


def refuse_damaged(name: str, files: Sequence[Path], decoding: Decoding) -> None:
    """Refuse a set with files that cannot be decoded, all of them in one error."""
    if error := find_damaged(name, files, decoding):
        raise error


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its ending, or if that is no image's, by its first bytes."""
    ending = path.suffix.lower()
    return ending in dicom.ENDINGS or (ending not in IMAGES and dicom.looks_like(path))


def is_image(path: Path) -> bool:
    """Whether a file is one that ``decode`` takes: by its ending, or for DICOM without one by its first bytes."""
    return path.suffix.lower() in ENDINGS or dicom.looks_like(path)


def decode(path: Path, decoding: Decoding = DEFAULT) -> np.ndarray:
    """Return an image the right way up as uint8 (H, W, 3), RGB.

    Raises:
        UserError: the file cannot be decoded, or has more than 8 bits for each channel and there is no range.
    """
    if is_dicom(path):
        return dicom.read(path, decoding.windows, decoding.value_range, _limit(decoding))
    with _opened(path, str(path), decoding) as image:
        return np.asarray(_upright(_rgb(image, path, str(path), decoding.value_range), _orientation(image)))


def decode_bytes(encoded: bytes, name: str, decoding: Decoding = DEFAULT) -> np.ndarray:
    """Return an image that a record holds as uint8 (H, W, 3), as it is stored: records are not turned by EXIF."""
    with _opened(io.BytesIO(encoded), name, decoding) as image:
        return np.asarray(_rgb(image, io.BytesIO(encoded), name, decoding.value_range))


def read_values(encoded: bytes, name: str, decoding: Decoding = DEFAULT) -> np.ndarray:
    """Return the values of an image that a record holds, (H, W) or (H, W, C), with all of their bits."""
    with _opened(io.BytesIO(encoded), name, decoding) as image:
        return _values(image, io.BytesIO(encoded))[0] if _is_deep(image) else np.asarray(image)


def _attempts(what: str, function: Callable[[Path], Any], files: Sequence[Path]) -> Iterator[Any]:
    """Yield the result of a function, or the UserError that it raised, for each file, with a progress bar."""

    def attempt(file: Path) -> Any:
        try:
            return function(file)
        except UserError as error:
            return error

    with _refusing_bombs(), ThreadPoolExecutor(WORKERS) as pool:
        shown = {"leave": False, "disable": None, "mininterval": 0.5, "delay": 1.0, "unit": " images"}
        try:
            yield from tqdm(pool.map(attempt, files), what, len(files), **shown)
        finally:
            pool.shutdown(cancel_futures=True)  # where the first error is enough


def _resolved(name: str, files: Sequence[Path], decoding: Decoding) -> list[Path]:
    """Return the files that links point to, or refuse those that are not there."""
    if not all(file.is_file() for file in files):
        refuse_damaged(name, files, decoding)
    return [file.resolve() for file in files]


def _header(path: Path, decoding: Decoding) -> tuple[int, int, int, int]:
    """Return height, width, orientation and whether there are more than 8 bits; see ``Headers``."""
    if is_dicom(path):
        return *dicom.measure(path, _limit(decoding)), 1, 0
    with _opened(path, str(path), decoding) as image:
        width, height = image.size
        plain = image.format == "PNG" and not any(word in path.read_bytes() for word in (b"xif", b"XIf", b"rientation"))
        orientation = 1 if plain else _orientation(image)  # which decodes a whole PNG to look behind the pixels
        size = (width, height) if orientation >= 5 else (height, width)
        return *size, orientation, int(_is_deep(image))


def _ends(path: Path, decoding: Decoding) -> tuple[float, float]:
    """Return the least and the largest value of an image, of what is not transparent in it."""
    with _opened(path, str(path), decoding) as image:
        values, alpha = _values(image, path)
    seen = values if alpha is None or not alpha.any() else values[alpha > 0]
    return float(seen.min()), float(seen.max())


def _orientation(image: Image.Image) -> int:
    found = image.getexif().get(ExifTags.Base.Orientation)
    return found if found in TURNS else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether an image that is not yet loaded has more than 8 bits for each channel."""
    return image.mode.startswith(("I", "F")) or any(str(tile[3]).endswith(DEEP) for tile in image.tile)


def _values(image: ImageFile.ImageFile, source: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the values (H, W) or (H, W, 3) of an image with more than 8 bits, and its opacity uint8 (H, W)."""
    if image.mode.startswith(("I", "F")):
        return np.asarray(image), None
    (tile,) = image.tile
    mode = str(tile[3])
    if mode.startswith("LA"):  # two bytes of grey and two of opacity, which are read as four channels
        image.tile = [(*tile[:3], "RGBA")]  # pyright: ignore[reportAttributeAccessIssue]  # takes plain tuples, too
        high, low, opaque, _ = np.moveaxis(np.asarray(image).astype(np.uint16), -1, 0)
        return high << 8 | low, opaque.astype(np.uint8)
    # Pillow keeps the high bytes of 16-bit colours. Told that the other byte comes first, it keeps the low ones.
    with Image.open(source, formats=FORMATS) as other:
        other.tile = [(*tile[:3], mode.replace("16B", "16L"))]  # pyright: ignore[reportAttributeAccessIssue]
        low = np.asarray(other)
    high = np.asarray(image)
    values = high[..., :3].astype(np.uint16) << 8 | low[..., :3]
    return values, high[..., 3] if high.shape[-1] == 4 else None


def _rgb(image: ImageFile.ImageFile, source: Any, name: str, limits: ValueRange | None) -> Image.Image:
    """Return an opened image as RGB of 8 bits, on white where it is transparent."""
    shown: Image.Image = image
    if _is_deep(image):
        values, alpha = _values(image, source)
        if limits is None:
            raise UserError(
                f"{name} has more than 8 bits (values {values.min():g} to {values.max():g}), and no range for them is "
                "known; set --config.data.range='(LOW, HIGH)' for training, or store it with 8 bits as the others"
            )
        shown = Image.fromarray(value_range.to_bytes(values, limits)).convert("RGB")
        if alpha is not None:
            shown.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
    if shown.has_transparency_data:
        shown = shown.convert("RGBA")
        shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    return shown.convert("RGB")


@contextlib.contextmanager
def _refusing_bombs() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _limit(decoding: Decoding) -> int:
    """Return the pixels that an image may have, 0 for any number; Pillow's limit follows where it is lower."""
    if decoding.max_pixels and Image.MAX_IMAGE_PIXELS and decoding.max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = decoding.max_pixels
    return decoding.max_pixels or Image.MAX_IMAGE_PIXELS or 0


@contextlib.contextmanager
def _opened(source: Any, name: str, decoding: Decoding) -> Iterator[ImageFile.ImageFile]:
    """Open an image, a path or a file; whatever turns out to be wrong with it is a UserError that names it."""
    limit = _limit(decoding)
    too_large = UserError(
        f"{name} is refused: it has more than {limit:,} pixels; shrink or remove it, or raise --config.data.max_pixels"
    )
    try:
        with Image.open(source, formats=FORMATS) as image:
            if limit and image.width * image.height > limit:
                raise too_large
            yield image
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large from error
    except Exception as error:  # on damaged bytes decoders raise errors of any kind
        unknown = isinstance(error, UnidentifiedImageError)
        why = f"it is none of {', '.join(FORMATS)}" if unknown else " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot decode {name} ({why}); replace or remove it") from error


def decode_record(
    encoded: bytes, floats: bool = False, rules: Decoding = DEFAULT, name: str = "a record"
) -> np.ndarray:
    """Return an image uint8 (H, W, 3); grey is repeated into three channels.

    Args:
        encoded: JPEG or PNG.
        floats: whether the four channels of a PNG are the bytes of one float32, as in TFDS.
        rules: with the range of values, where they have more than 8 bits.
        name: for messages.
    """
    if not floats:
        return decode_bytes(encoded, name, rules)
    values, limits = _record_values(encoded, floats, rules, name), rules.value_range
    return np.repeat(value_range.to_bytes(values, limits or (0.0, 1.0)), 3, axis=-1)


def record_with_range(
    name: str, dtype: Any, files: list[str], encoded: Callable[[], Iterator[bytes]], count: int, rules: Decoding
) -> Decoding:
    """Return ``rules`` with the range of a set's images, if they have more than 8 bits: stated, or from end to end.

    Args:
        name: of the set.
        dtype: that the set declares.
        files: that hold the records.
        encoded: () -> all images.
        count: of these images.
        rules: how images become pixels.

    Raises:
        UserError: a range is stated and no image needs one, or an image cannot be decoded.
    """
    floats, stated = dtype == np.float32, rules.value_range
    first = _record_values(next(encoded()), floats, rules, name)
    if first.dtype == np.uint8:
        if stated:
            value_range.refuse_unused(name)
        return rules

    def ends() -> Iterator[np.ndarray]:
        values = (_record_values(each, floats, rules, name) for each in encoded())
        yield np.asarray([value_range.find(name, values)])

    if not stated:
        low, high = kept(files, "value range", (1, 2), np.float64, ends)[0].tolist()
        rules = rules._replace(value_range=(low, high))
    assert rules.value_range
    value_range.say(name, count, rules.value_range, bool(stated))
    return rules


def _record_values(encoded: bytes, floats: bool, rules: Decoding, name: str) -> np.ndarray:
    """Return the values of an image with all of their bits; ``floats`` are the channels of one each."""
    values = read_values(encoded, name, rules)
    if not floats:
        return values
    if values.dtype != np.uint8 or values.ndim != 3 or values.shape[-1] != 4:
        raise UserError(f"{name} has no floats, four channels of bytes each, as its data set says; prepare it again")
    return np.ascontiguousarray(values).view("<f4")
