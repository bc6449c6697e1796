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


def read(path: Path, windows: Sequence[Any] = ()) -> np.ndarray:
    """Return a DICOM file as a picture uint8 (H, W, 3).

    Args:
        path: of a file with one frame.
        windows: three for the three channels, or one for all, see ``levels``; none takes the window that the file
            names (PS3.3, C.11.2.1.2), or where it names none its least and largest value. Colour has no use for them.

    Without ``windows`` MONOCHROME1 is inverted, as its viewers show it; Hounsfield units mean the same in every file.

    Raises:
        UserError: no DICOM file, a damaged one, one of several frames, one without pictures, one whose compression
            needs a library that is not installed, or windows for a file that is not CT.
    """
    data, pixels = _stored(path)
    if pixels.ndim == 3 or data.PhotometricInterpretation == "PALETTE COLOR":
        return _colours(path, data, pixels)
    values = _grey(path, data, pixels)
    if not windows:
        return np.repeat(_own_window(path, data, values)[..., None], 3, axis=-1)
    if data.get("Modality") != "CT":
        kind = data.get("Modality") or "nothing"
        raise UserError(
            f"{path} says it is {kind}, not CT, so it has no Hounsfield units; set --config.data.windows='()'"
        )
    shown = [through(values, *window) for window in levels(windows)]
    return np.stack(shown if len(shown) == 3 else shown * 3, axis=-1)


def measure(path: Path) -> tuple[int, int]:
    """Return the height and width of a DICOM file from its header."""
    data = _header(path)
    with _told(path):
        return int(data.Rows), int(data.Columns)


def patient(path: Path) -> str:
    """Return whose picture it is: the patient's number, or where that is absent the study's."""
    data = _header(path)
    return str(data.get("PatientID") or data.get("StudyInstanceUID") or "")


def study(path: Path) -> str:
    """Return the StudyInstanceUID of a file, empty if it has none."""
    return str(_header(path).get("StudyInstanceUID") or "")


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
    """Return stored values (H, W) times slope plus intercept, or as a table has them: of CT, Hounsfield units."""
    from pydicom.pixels.processing import apply_modality_lut

    with _told(path):
        return np.asarray(apply_modality_lut(pixels, data), np.float64)


def _own_window(path: Path, data: Any, values: np.ndarray) -> np.ndarray:
    """Return values (H, W) as the file wants them shown, uint8: through its window, its table, or as they are."""
    import pydicom
    from pydicom.pixels.processing import apply_voi, apply_windowing

    with _told(path):
        if "WindowCenter" in data and "WindowWidth" in data:
            window = pydicom.Dataset()  # of 8 bits, without a slope: what comes out is 0 to 255
            window.PixelRepresentation, window.BitsStored, window.PhotometricInterpretation = 0, 8, "MONOCHROME2"
            for name in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
                if name in data:
                    setattr(window, name, data[name].value)
            shown = np.rint(apply_windowing(values, window)).astype(np.uint8)
        else:
            if "VOILUTSequence" in data:
                values = np.asarray(apply_voi(np.rint(values).astype(np.int32), data), np.float64)
            low, high = values.min(), values.max()
            shown = through(values, (low + high) / 2, max(high - low, 1e-9))
        return 255 - shown if data.PhotometricInterpretation == "MONOCHROME1" else shown


def _colours(path: Path, data: Any, pixels: np.ndarray) -> np.ndarray:
    """Return colours (H, W, 3) as uint8, of 16 bits the high byte."""
    from pydicom.pixels.processing import apply_color_lut

    with _told(path):
        colours = apply_color_lut(pixels, data) if pixels.ndim == 2 else pixels
        bits = 8 * colours.dtype.itemsize if pixels.ndim == 2 else int(data.BitsStored)
        return (colours[..., :3] >> max(bits - 8, 0)).astype(np.uint8)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes of pydicom into a UserError that names it."""
    try:
        yield
    except Exception as error:  # on damaged bytes pydicom raises errors of any kind
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"cannot read {path} as DICOM ({why}); replace or remove it") from error
