"""DICOM files as pictures: Hounsfield units of CT seen through windows, or grey values as the file shows them."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax.errors import UserError, nearest

ENDINGS = (".dcm", ".dicom")

# (level, width) in Hounsfield units, as https://radiopaedia.org/articles/windowing-ct lists them; "soft_tissue" lies
# within the range that it gives for head and neck (width 350 to 400, level 20 to 60).
WINDOWS = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "soft_tissue": (40.0, 400.0),
    "abdomen": (50.0, 400.0),
    "liver": (30.0, 150.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "stroke": (40.0, 40.0),
}


def levels(windows: Sequence[Any]) -> tuple[tuple[float, float], ...]:
    """Return the (level, width) of windows, each a key into ``WINDOWS`` or such a pair itself.

    Raises:
        UserError: an unknown name, no pair with a width above 0, or neither none, one nor three of them.
    """
    if len(windows) not in (0, 1, 3):
        raise UserError(f"config.data.windows={tuple(windows)!r} must be one window, three (the channels), or none")
    found = []
    for each in windows:
        if isinstance(each, str) and each not in WINDOWS:
            raise UserError(f"config.data.windows has {each!r}; {nearest(each, WINDOWS)}, or write (level, width)")
        try:
            level, width = map(float, WINDOWS[each] if isinstance(each, str) else each)
        except (TypeError, ValueError):
            level, width = 0.0, 0.0
        if not width > 0:
            raise UserError(f"config.data.windows has {each!r}, which is no (level, width) with a width above 0")
        found.append((level, width))
    return tuple(found)


def through(values: np.ndarray, level: float, width: float) -> np.ndarray:
    """Return values seen through a window, uint8 of the same shape.

    ``level - width / 2`` and less is 0, ``level + width / 2`` and more 255, and between them it rises evenly (the
    function LINEAR_EXACT of DICOM PS3.3, C.11.2.1.3.2).
    """
    share = (np.asarray(values, np.float64) - level) / width + 0.5
    return np.rint(255 * np.clip(share, 0.0, 1.0)).astype(np.uint8)


def hounsfield(path: Path) -> np.ndarray:
    """Return the values (H, W) of a grey DICOM file, stored values times slope plus intercept: of CT, Hounsfield units.

    Raises:
        UserError: as ``read``.
    """
    return _grey(path, *_stored(path))


def read(path: Path, windows: Sequence[Any] = ()) -> np.ndarray:
    """Return a DICOM file as a picture uint8 (H, W, 3).

    Args:
        path: of a file with one frame.
        windows: three for the three channels, or one for all, see ``levels``; none takes the window that the file
            names, stretched between the least and the largest of its values. Colour has no use for them.

    What MONOCHROME1 stores is inverted: bright is dense whatever the file.

    Raises:
        UserError: no DICOM file, a damaged one, one of several frames, one without pictures, one whose compression
            needs a library that is not installed, or windows for a file that is not CT.
    """
    data, pixels = _stored(path)
    if int(data.get("SamplesPerPixel", 1)) == 3:
        return np.asarray(pixels, np.uint8)
    values = _grey(path, data, pixels)
    if windows:
        if data.get("Modality") != "CT":
            kind = data.get("Modality") or "nothing"
            raise UserError(
                f"{path} says it is {kind}, not CT, so it has no Hounsfield units; set --config.data.windows='()'"
            )
        shown = [through(values, *window) for window in levels(windows)]
    else:
        from pydicom.pixels.processing import apply_voi_lut

        with _told(path):
            values = np.asarray(apply_voi_lut(values if "WindowCenter" in data else pixels, data), np.float64)
        low, high = values.min(), values.max()
        shown = [through(values, (low + high) / 2, max(high - low, 1e-9))]
    picture = np.stack(shown if len(shown) == 3 else shown * 3, axis=-1)
    return 255 - picture if data.PhotometricInterpretation == "MONOCHROME1" else picture


def measure(path: Path) -> tuple[int, int]:
    """Return the height and width of a DICOM file from its header."""
    data = _header(path)
    with _told(path):
        return int(data.Rows), int(data.Columns)


def patient(path: Path) -> str:
    """Return whose picture it is: the patient's number, or where that is absent the study's."""
    data = _header(path)
    return str(data.get("PatientID") or data.get("StudyInstanceUID") or "")


def _header(path: Path) -> Any:
    import pydicom  # a quarter of a second, which other pictures need not wait for

    with _told(path):
        return pydicom.dcmread(path, stop_before_pixels=True)


def _stored(path: Path) -> tuple[Any, np.ndarray]:
    """Return the data set and the stored values of a file."""
    import pydicom
    from pydicom.pixels.decoders.base import get_decoder

    with _told(path):
        data = pydicom.dcmread(path)
        frames, syntax = int(data.get("NumberOfFrames") or 1), data.file_meta.TransferSyntaxUID
        decoder = get_decoder(syntax) if syntax.is_encapsulated else None
    if frames > 1:
        raise UserError(f"{path} has {frames} frames; store each as a file of its own")
    if "PixelData" not in data:
        raise UserError(f"{path} has no picture (no PixelData); leave it out")
    if decoder and not decoder.is_available:
        raise UserError(
            f"{path} is compressed as {syntax.name}, which no installed library reads; "
            "pip install pylibjpeg pylibjpeg-libjpeg, or store it uncompressed (gdcmconv --raw IN OUT)"
        )
    with _told(path):
        return data, data.pixel_array


def _grey(path: Path, data: Any, pixels: np.ndarray) -> np.ndarray:
    from pydicom.pixels.processing import apply_modality_lut

    with _told(path):
        return np.asarray(apply_modality_lut(pixels, data), np.float64)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes of pydicom into a UserError that names it."""
    try:
        yield
    except Exception as error:  # on damaged bytes pydicom raises errors of any kind
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"cannot read {path} as DICOM ({why}); replace or remove it") from error
