"""Picture files of any size decoded to arrays of one size, by several threads, once."""

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from tl_jax.data import dicom
from tl_jax.data.pictures import WORKERS, Encoded, fit, kept_or_encoded
from tl_jax.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", *dicom.ENDINGS)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")  # that a file may have inside, whatever its ending


def decode_all(
    name: str, files: Sequence[Path], size: int, most_bytes: float, windows: Sequence[Any] = (), how: str = "crop"
) -> np.ndarray | Encoded:
    """Return all pictures uint8 (N, H, W, 3), decoded by several threads, or once before and kept.

    Where all have the same size they are kept as they are, else all are fitted into ``size``, as ``how`` says (see
    ``pictures.fit``), and where the whole is wanted so are all that are not square; other arguments are those of
    ``decode_into``.
    """
    with contextlib.closing(measure_each(files)) as sizes:
        shape = next(sizes)
        same = all(other == shape for other in sizes)  # the first that differs ends it
    if same and (how == "crop" or shape[0] == shape[1]):
        return decode_into(name, files, shape, lambda image: image, most_bytes, windows=windows)
    return decode_into(name, files, (size, size), lambda image: fit(image, size, how), most_bytes, (how,), windows)


def decode_into(
    name: str,
    files: Sequence[Path],
    shape: tuple[int, int],
    fitted: Callable[[np.ndarray], np.ndarray],
    most_bytes: float,
    how: tuple[Any, ...] = (),
    windows: Sequence[Any] = (),
) -> np.ndarray | Encoded:
    """Return all pictures uint8 (N, H, W, 3) as ``fitted`` makes them of what was decoded.

    Args:
        name: of the set, for the progress bar.
        files: N picture files.
        shape: (H, W) of what ``fitted`` returns.
        fitted: (h, w, 3) -> (H, W, 3).
        most_bytes: of decoded pictures that may be kept on disk.
        how: what ``fitted`` does, where ``shape`` does not say it.
        windows: of DICOM files, see ``dicom.read``.
    """

    def picture(file: Path) -> np.ndarray:
        return fitted(decode(file, windows))

    def decoded() -> Iterator[np.ndarray]:
        with _refusing_bombs(), ThreadPoolExecutor(WORKERS) as pool:
            done = pool.map(picture, files)  # the first error cancels what has not begun
            shown = {"leave": False, "disable": None, "mininterval": 0.5, "unit": " pictures"}
            for image in tqdm(done, f"reading {name}", len(files), **shown):
                yield image[None]

    found, whole = [file.resolve() for file in files], (len(files), *shape, 3)
    seen = dicom.levels(windows) if any(map(is_dicom, files)) else ()
    return kept_or_encoded(found, whole, decoded, lambda row: picture(files[row]), most_bytes, (*how, *seen))


def measure_each(files: Sequence[Path]) -> Generator[tuple[int, int], None, None]:
    """Yield the height and width of each picture."""
    with _refusing_bombs(), ThreadPoolExecutor(WORKERS) as pool:
        yield from pool.map(measure, files)


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM file by its name."""
    return path.suffix.lower() in dicom.ENDINGS


def is_image(path: Path) -> bool:
    """Whether a file is one that ``decode`` takes, by its name."""
    return path.suffix.lower() in ENDINGS


def measure(path: Path) -> tuple[int, int]:
    """Return the height and width that ``decode`` will give, from the file's header where that tells."""
    if is_dicom(path):
        return dicom.measure(path)
    with _opened(path) as image:
        width, height = image.size
        turned = width != height and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


def decode(path: Path, windows: Sequence[Any] = ()) -> np.ndarray:
    """Return a picture the right way up as uint8 (H, W, 3), RGB; ``windows`` are those of DICOM files."""
    if is_dicom(path):
        return dicom.read(path, windows)
    with _opened(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits: the high byte, which is what Pillow takes of 16-bit colours
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def _refusing_bombs() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; whatever turns out to be wrong with it is a UserError that names it."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS:,} pixels"
        raise UserError(f"{path} is refused: it has more than {limit}; shrink or remove it") from error
    except Exception as error:  # on damaged bytes decoders raise errors of any kind
        unknown = isinstance(error, UnidentifiedImageError)
        why = f"it is none of {', '.join(FORMATS)}" if unknown else " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot decode {path} ({why}); replace or remove it") from error
