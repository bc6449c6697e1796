"""Read DICOM files as images: Hounsfield units of CT through windows, or grey values as the file displays them."""

import contextlib
import functools
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tl_jax.data import value_range
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.extras import require_extra

T = TypeVar("T")
ENDINGS = (".dcm", ".dicom")
MARK, PREAMBLE = b"DICM", 128  # a complete file has the mark after a preamble of this many bytes
HOUNSFIELD_TYPES = (
    "",
    "HU",
    "HU_MOD",
    "US",
)  # RescaleType of Hounsfield units; some scanners write US (unspecified)

# (level, width) in Hounsfield units from https://radiopaedia.org/articles/windowing-ct; "soft_tissue" is within its
# range for head and neck (width 350 to 400, level 20 to 60).
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


def parse_windows(windows: Sequence[Any]) -> tuple[tuple[float, float], ...]:
    """Return the (level, width) of windows, each a key of ``WINDOWS`` or a pair.

    Raises:
        UserError: an unknown name, not a pair with a width above 0, or another number of windows than 0, 1 or 3.
    """
    if len(windows) not in (0, 1, 3):
        raise UserError(f"config.data.windows={tuple(windows)!r} must be one window, three (the channels), or none")
    parsed = []
    for window in windows:
        if isinstance(window, str) and window not in WINDOWS:
            raise UserError(f"config.data.windows has {window!r}; {nearest(window, WINDOWS)}, or pass (level, width)")
        try:
            level, width = map(float, WINDOWS[window] if isinstance(window, str) else window)
        except (TypeError, ValueError):
            level, width = 0.0, 0.0
        if not width > 0:
            raise UserError(f"config.data.windows: {window!r} is no pair (level, width) with a width above 0; fix it")
        parsed.append((level, width))
    return tuple(parsed)


def apply_window(values: np.ndarray, level: float, width: float) -> np.ndarray:
    """Map values through a window to uint8 of the same shape.

    Values up to ``level - width / 2`` become 0, from ``level + width / 2`` 255, and linear in between (the function
    LINEAR_EXACT of DICOM PS3.3, C.11.2.1.3.2).
    """
    share = (np.asarray(values, np.float64) - level) / width + 0.5
    return np.rint(255 * np.clip(share, 0.0, 1.0)).astype(np.uint8)


@contextlib.contextmanager
def _reading(path: Path, advice: str = "") -> Iterator[None]:
    """Turn any error of pydicom on a damaged file into a UserError with its path and ``advice``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pydicom raises errors of any kind on damaged bytes
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"cannot read {path} as DICOM ({why}); replace or remove it{advice}") from error


def _with_path_errors(function: Callable[..., T]) -> Callable[..., T]:
    """Wrap a function of a path so that all errors name it; pydicom converts attributes only on access."""

    @functools.wraps(function)
    def wrapped(path: Path, *args: Any, **options: Any) -> T:
        with _reading(path):
            return function(path, *args, **options)

    return wrapped


@_with_path_errors
def read_dicom(
    path: Path,
    windows: Sequence[Any] = (),
    limits: value_range.ValueRange | None = None,
    max_pixels: int = 0,
) -> np.ndarray:
    """Return a DICOM file as an image uint8 (H, W, 3).

    Without ``windows``, MONOCHROME1 is inverted, as viewers show it; Hounsfield units mean the same in every file.
    Padding pixels (PixelPaddingValue, PixelPaddingRangeLimit) become black and are ignored. An attribute without a
    value counts as missing.

    Args:
        path: path of a file with one frame.
        windows: three for the three channels, or one for all, see ``parse_windows``. Without windows, ``limits`` are
            used, else the window of the file (PS3.3, C.11.2.1.2), else its minimum and maximum. Ignored for colour.
        limits: values that become 0 and 255.
        max_pixels: largest number of pixels; 0 for no limit.

    Raises:
        UserError: the file is no DICOM file, is damaged, has several frames or no image, or needs a decoder that is not
            installed; or windows for a file without Hounsfield units.
    """
    data, pixels = _read_pixels(path, max_pixels)
    if pixels.ndim == 3 or data.PhotometricInterpretation == "PALETTE COLOR":
        return _colours_uint8(path, data, pixels)
    if windows:
        _check_units(path, data)
    values, padding = _grey_values(path, data, pixels), _padding_mask(path, data, pixels)
    if windows:
        channels = [apply_window(values, *window) for window in parse_windows(windows)]
    else:
        channels = [_display_values(path, data, values, padding, limits)]
    image = np.stack(channels if len(channels) == 3 else channels * 3, axis=-1)
    image[padding] = 0
    return image


@_with_path_errors
def read_size(path: Path, max_pixels: int = 0) -> tuple[int, int]:
    """Return the height and width from the header of a DICOM file; refuse more than ``max_pixels`` pixels."""
    data = _read_header(path)
    with _reading(path):
        size = int(data.Rows), int(data.Columns)
    _check_pixels(path, size, max_pixels)
    return size


@_with_path_errors
def read_patient(path: Path) -> str:
    """Return the PatientID, or the StudyInstanceUID if it is missing."""
    data = _read_header(path)
    numbers = (str(data.get(tag) or "").strip() for tag in ("PatientID", "StudyInstanceUID"))  # may be blank
    return next(filter(None, numbers), "")


@_with_path_errors
def read_study(path: Path) -> str:
    """Return the StudyInstanceUID of a file; "" if it has none."""
    return str(_read_header(path).get("StudyInstanceUID") or "")


def has_dicom_header(path: Path) -> bool:
    """Return whether the first bytes are DICOM: the mark, or an element of the first groups."""
    try:
        with path.open("rb") as file:
            head = file.read(PREAMBLE + len(MARK))
    except OSError:
        return False
    if MARK in (head[PREAMBLE:], head[: len(MARK)]):
        return True
    group, element = (int.from_bytes(head[start : start + 2], "little") for start in (0, 2))
    explicit = re.fullmatch(rb"[A-Z]{2}", head[4:6]) is not None
    short = int.from_bytes(head[4:8], "little") <= 64
    return len(head) > 8 and (group, element <= 0x18) in ((2, True), (8, True)) and (explicit or short)


def _read_dataset(path: Path, **options: Any) -> Any:
    """Return the DICOM data set of a file, which may lack preamble, mark or transfer syntax."""
    with require_extra("medical"):
        import pydicom.uid  # takes 0.25 s, only for DICOM

    with _reading(path):
        with path.open("rb") as file:
            head = file.read(PREAMBLE + len(MARK))
        bare = head.startswith(MARK)
        source = io.BytesIO(b"\0" * PREAMBLE + path.read_bytes()) if bare else path
        data = pydicom.dcmread(source, force=True, **options)
        if "TransferSyntaxUID" not in data.file_meta:
            implicit, little = data.original_encoding
            uncompressed: dict[tuple[bool | None, bool | None], pydicom.uid.UID] = {
                (True, True): pydicom.uid.ImplicitVRLittleEndian,
                (False, True): pydicom.uid.ExplicitVRLittleEndian,
                (False, False): pydicom.uid.ExplicitVRBigEndian,
            }
            data.file_meta.TransferSyntaxUID = uncompressed.get((implicit, little), pydicom.uid.ImplicitVRLittleEndian)
        if not (bare or head.endswith(MARK)) and not {"SOPClassUID", "Rows", "PixelData"} & set(data.dir()):
            raise ValueError("it has neither DICOM's mark nor an image")
        return data


def _read_header(path: Path) -> Any:
    return _read_dataset(path, stop_before_pixels=True)


def _read_pixels(path: Path, max_pixels: int) -> tuple[Any, np.ndarray]:
    """Return the DICOM data set and the stored values of a file."""
    data = _read_dataset(path)
    if "PixelData" not in data:
        raise UserError(f"{path} has no image (no PixelData); remove it")
    with _reading(path):
        frames, syntax = int(data.get("NumberOfFrames") or 1), data.file_meta.TransferSyntaxUID
        size = int(data.Rows), int(data.Columns)
        undefined_length = data["PixelData"].is_undefined_length
        compressed, encapsulated = syntax.is_compressed, syntax.is_encapsulated
    if frames > 1:
        raise UserError(f"{path} has {frames} frames; save each as a file")
    _check_pixels(path, size, max_pixels)
    if undefined_length and not compressed:
        raise UserError(f"{path} is compressed, but has no TransferSyntaxUID; export it again")
    advice = _decoder_advice(path, syntax) if encapsulated else ""
    with _reading(path, f"; if it is not damaged, {advice}" if advice else ""):
        return data, data.pixel_array


def _decoder_advice(path: Path, syntax: Any) -> str:
    """Return advice on how to decode a compression, "" for none; refuse one without an installed decoder."""
    with require_extra("medical"):
        from pydicom.pixels.decoders.base import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UserError(
            f"{path} is compressed as {syntax.name}, which pydicom cannot decode; export it uncompressed"
        ) from None
    # Lines such as "pylibjpeg - requires pylibjpeg>=2.0 and pylibjpeg-openjpeg>=2.0", one per alternative.
    lines = (line.partition(" - requires ") for line in decoder.missing_dependencies)
    missing = {name: needed for name, _, needed in lines}
    packages = missing.get("pylibjpeg") or next((names for names in missing.values()), "")
    names = [re.split("[<>=]", name)[0] for name in packages.split(" and ") if name]
    advice = f"pip install {' '.join(names)}" if names else ""
    if "gdcm" in missing:
        advice += ", or save it uncompressed (gdcmconv --raw IN OUT)"
    if not decoder.is_available:
        raise UserError(f"{path} is compressed as {syntax.name}, which no installed library reads; {advice}")
    return advice


def _check_pixels(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    if max_pixels and size[0] * size[1] > max_pixels:
        raise UserError(
            f"{path}: more than {max_pixels:,} pixels; shrink or remove it, or raise config.data.max_pixels"
        )


def _number(data: Any, name: str) -> float | None:
    """Return an attribute, or the first of several values; None if it is missing or empty."""
    value = data.get(name)
    if hasattr(value, "__len__") and not isinstance(value, str):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)


def _check_units(path: Path, data: Any) -> None:
    """Refuse a file whose values cannot be converted to Hounsfield units."""
    modality, rescale_type = data.get("Modality") or "nothing", data.get("RescaleType") or ""
    advice = "set config.data.windows='()'"
    if modality != "CT":
        raise UserError(f"{path} has Modality {modality}, not CT, so it has no Hounsfield units; {advice}")
    if rescale_type not in HOUNSFIELD_TYPES:
        raise UserError(f"{path} has RescaleType {rescale_type!r}, so it has no Hounsfield units; {advice}")
    if data.get("ModalityLUTSequence"):
        return
    with _reading(path):
        slope, intercept = (_number(data, name) for name in ("RescaleSlope", "RescaleIntercept"))
    absent = [
        name for name, missing in (("RescaleSlope", not slope), ("RescaleIntercept", intercept is None)) if missing
    ]
    if absent:
        raise UserError(
            f"{path} has no {' and no '.join(absent)}, so its Hounsfield units are unknown; export it again with "
            f"these attributes, or {advice}"
        )


def _grey_values(path: Path, data: Any, pixels: np.ndarray) -> np.ndarray:
    """Return stored values (H, W) after slope and intercept or lookup table; Hounsfield units for CT."""
    with require_extra("medical"):
        from pydicom.pixels.processing import apply_modality_lut

    with _reading(path):
        if data.get("ModalityLUTSequence"):
            return np.asarray(apply_modality_lut(pixels, data), np.float64)
        slope, intercept = (_number(data, name) for name in ("RescaleSlope", "RescaleIntercept"))
        return np.asarray(pixels, np.float64) * (slope or 1.0) + (intercept or 0.0)


def _padding_mask(path: Path, data: Any, pixels: np.ndarray) -> np.ndarray:
    """Return the mask bool (H, W) of padding pixels: PS3.3, C.7.5.1.1.2."""
    with _reading(path):
        value, limit = (_number(data, name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
        if value is None:
            return np.zeros(pixels.shape, bool)
        # Some files have the other sign: 63536 for -2000 in 16 bits.
        limits = np.array([value, value if limit is None else limit]).astype(np.int64).astype(pixels.dtype)
        return (pixels >= limits.min()) & (pixels <= limits.max())


def _display_values(
    path: Path, data: Any, values: np.ndarray, padding: np.ndarray, limits: value_range.ValueRange | None
) -> np.ndarray:
    """Return values (H, W) for display, uint8: between limits, by the window of the file, or from min to max."""
    with _reading(path):
        if limits:
            shown = value_range.to_uint8(values, limits)
        elif (window := _file_window(data)) is not None:
            with require_extra("medical"):
                from pydicom.pixels.processing import apply_windowing

            shown = np.rint(apply_windowing(values, window)).astype(np.uint8)
        else:
            if data.get("VOILUTSequence"):
                with require_extra("medical"):
                    from pydicom.pixels.processing import apply_voi

                values = np.asarray(apply_voi(np.rint(values).astype(np.int32), data), np.float64)
            visible = values if padding.all() else values[~padding]
            low, high = visible.min(), visible.max()
            shown = apply_window(values, (low + high) / 2, max(high - low, 1e-9))
        return 255 - shown if data.PhotometricInterpretation == "MONOCHROME1" else shown


def _file_window(data: Any) -> Any:
    """Return the window of a file as a data set of 8 bits without a slope; None if it has none."""
    with require_extra("medical"):
        import pydicom

    width = _number(data, "WindowWidth")
    if _number(data, "WindowCenter") is None or width is None or not width > 0:
        return None
    window = pydicom.Dataset()  # its output is 0 to 255
    window.PixelRepresentation, window.BitsStored, window.PhotometricInterpretation = 0, 8, "MONOCHROME2"
    for name in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
        if data.get(name):
            setattr(window, name, data[name].value)
    if width < 1 and data.get("VOILUTFunction", "LINEAR") == "LINEAR":
        window.VOILUTFunction = "LINEAR_EXACT"  # LINEAR needs a width of at least 1
    return window


def _colours_uint8(path: Path, data: Any, pixels: np.ndarray) -> np.ndarray:
    """Return colours (H, W, 3) as uint8; of 16 bits, the high byte."""
    with require_extra("medical"):
        from pydicom.pixels.processing import apply_color_lut

    with _reading(path):
        colours = apply_color_lut(pixels, data) if pixels.ndim == 2 else pixels
        bits = 8 * colours.dtype.itemsize if pixels.ndim == 2 else int(data.BitsStored)
        return (colours[..., :3] >> max(bits - 8, 0)).astype(np.uint8)
