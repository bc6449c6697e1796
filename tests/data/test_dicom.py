"""DICOM files that are written here: Hounsfield units and windows by hand, and whatever may be wrong with a file."""

import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels import apply_windowing
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from tests.data.test_image_folder import draw
from tl_jax.data import decode, dicom, image_folder, tfds
from tl_jax.data.decode import Decoding
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
STORED = np.array([[0, 24, 424], [1024, 1064, 2824]], np.uint16)  # HU = stored - 1024, below


def write(path: Path, pixels: np.ndarray = STORED, syntax=ExplicitVRLittleEndian, **changes) -> Path:
    """Write a CT slice of stored values uint16 (H, W), with attributes as ``changes`` says, None for without."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.Modality, data.PatientID, data.PhotometricInterpretation = "CT", "p1", "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 1, 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = pixels.tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    if syntax == RLELossless:
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.compress(RLELossless)
    elif syntax.is_encapsulated:
        data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
        data["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path)
    return path


def test_hounsfield_units_and_windows_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm")
    # Hounsfield units: -1024, -1000, -600; 0, 40, 1800
    picture = dicom.read_dicom(path, ("lung", "brain", (0, 2000)))
    assert picture.shape == (2, 3, 3) and picture.dtype == np.uint8
    # lung, -1350 to 150: (-1024 + 1350) / 1500 of 255 is 55.42; -600 lies in the middle; 0 at 0.9
    assert picture[..., 0].tolist() == [[55, 60, 128], [230, 236, 255]]
    assert picture[..., 1].tolist() == [[0, 0, 0], [0, 128, 255]]  # brain, 0 to 80
    assert picture[..., 2].tolist() == [[0, 0, 51], [128, 133, 255]]  # -1000 to 1000: 400 / 2000 of 255 is 51
    one = dicom.read_dicom(path, ("bone",))
    assert (one[..., 0] == one[..., 2]).all()
    slope = write(tmp_path / "b.dcm", RescaleSlope=2, RescaleIntercept=-1000)
    # -1000, -952, -152: 48 and 848 of 2000 above the window's lower end
    assert dicom.read_dicom(slope, ((0, 2000),))[0, :, 0].tolist() == [0, 6, 108]


def test_windows_are_those_of_pydicom(tmp_path: Path) -> None:
    values = np.linspace(-2000, 3000, 501)
    for level, width in dicom.WINDOWS.values():
        data = pydicom.Dataset()
        data.WindowCenter, data.WindowWidth, data.VOILUTFunction = level, width, "LINEAR_EXACT"
        data.PixelRepresentation, data.BitsStored, data.PhotometricInterpretation = 0, 8, "MONOCHROME2"
        expected = np.rint(apply_windowing(values, data))
        np.testing.assert_array_equal(dicom.apply_window(values, level, width), expected)


def test_other_files_show_their_own_window_and_monochrome1_is_inverted(tmp_path: Path) -> None:
    ramp = np.arange(0, 300, 3, dtype=np.uint16).reshape(10, 10)
    plain = {"Modality": "CR", "RescaleSlope": None, "RescaleIntercept": None}
    shown = dicom.read_dicom(write(tmp_path / "a.dcm", ramp, **plain))
    np.testing.assert_array_equal(shown[..., 0], np.rint(ramp / 297 * 255))
    inverted = dicom.read_dicom(write(tmp_path / "b.dcm", ramp, PhotometricInterpretation="MONOCHROME1", **plain))
    np.testing.assert_array_equal(inverted, 255 - shown)
    # PS3.3, C.11.2.1.2.1: 0 up to 99.5 - 50, 255 from 99.5 + 50 on, (99 - 99.5) / 100 + 0.5 of 255 is 126.2
    window = {"WindowCenter": [100, 7], "WindowWidth": [101, 9]}  # the first of two
    own = dicom.read_dicom(write(tmp_path / "c.dcm", ramp, **window, **plain))[..., 0]
    assert own[ramp < 49.5].max() == 0 and own[ramp > 149.5].min() == 255 and own[ramp == 99].item() == 126
    dim = dicom.read_dicom(write(tmp_path / "d.dcm", ramp, WindowCenter=300, WindowWidth=601, **plain))[..., 0]
    assert dim.max() == round(((297 - 299.5) / 600 + 0.5) * 255)  # what is darker than its window stays so
    units = dicom.read_dicom(write(tmp_path / "e.dcm", WindowCenter=40, WindowWidth=81))[..., 0]  # of Hounsfield units
    assert units.tolist() == [[0, 0, 0], [2, 129, 255]]  # (0 - 39.5) / 80 + 0.5 of 255 is 1.6
    swapped = write(tmp_path / "f.dcm", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(dicom.read_dicom(swapped, ("bone",)), dicom.read_dicom(tmp_path / "e.dcm", ("bone",)))
    with pytest.raises(UserError, match="b.dcm has Modality CR, not CT, .*set config.data.windows='\\(\\)'"):
        dicom.read_dicom(tmp_path / "b.dcm", ("lung",))


def test_colours_of_8_and_16_bits_and_of_a_palette(tmp_path: Path) -> None:
    colours = np.arange(24, dtype=np.uint16).reshape(2, 4, 3) * 2000
    grey = {"Modality": "US", "RescaleSlope": None, "RescaleIntercept": None}
    about = {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0, "Rows": 2, **grey}
    wide = write(tmp_path / "a.dcm", colours, Columns=4, **about)
    np.testing.assert_array_equal(dicom.read_dicom(wide, ("lung",)), colours // 256)
    numbers = np.array([[0, 1], [2, 1]], np.uint16)
    tables = {f"{c}PaletteColorLookupTableDescriptor": [3, 0, 16] for c in ("Red", "Green", "Blue")}
    entries = {"Red": (0, 65535, 256), "Green": (512, 0, 0), "Blue": (0, 0, 1024)}
    data = {f"{c}PaletteColorLookupTableData": np.array(e, "<u2").tobytes() for c, e in entries.items()}
    few = write(tmp_path / "b.dcm", numbers, PhotometricInterpretation="PALETTE COLOR", **tables, **data, **grey)
    red, one, two = [0, 2, 0], [255, 0, 0], [1, 0, 4]
    assert dicom.read_dicom(few).tolist() == [[red, one], [two, one]]


def test_a_compressed_file_equals_the_plain_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 3000, (20, 20), np.uint16)
    plain, packed = write(tmp_path / "a.dcm", pixels), write(tmp_path / "b.dcm", pixels, RLELossless)
    assert pydicom.dcmread(packed).file_meta.TransferSyntaxUID == RLELossless
    np.testing.assert_array_equal(dicom.read_dicom(plain, ("lung",)), dicom.read_dicom(packed, ("lung",)))


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.dcm").read_bytes()
    (tmp_path / "text.dcm").write_text("hello")
    (tmp_path / "short.dcm").write_bytes(whole[:-3])
    write(tmp_path / "bare.dcm", PixelData=None)
    write(tmp_path / "many.dcm", np.stack([STORED] * 2), NumberOfFrames=2)
    write(tmp_path / "jpegls.dcm", syntax=JPEGLSLossless)
    for name, message in {
        "text": "cannot read .*text.dcm as DICOM",
        "short": "cannot read .*short.dcm as DICOM",
        "absent": "cannot read .*absent.dcm as DICOM",
        "bare": "bare.dcm has no image",
        "many": "many.dcm has 2 frames",
        "jpegls": "jpegls.dcm is compressed as JPEG-LS Lossless.*pip install pylibjpeg",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            dicom.read_dicom(tmp_path / f"{name}.dcm", ("lung",))
        assert "\n" not in str(caught.value)


def test_a_series_with_differing_sizes_is_fitted_and_patients_stay_together(tmp_path: Path) -> None:
    for name in ("ill", "well"):
        for patient in range(5):
            for i in range(3):
                size = (12, 10) if i else (16, 16)
                pixels = np.full(size, 1024 + 40 * (name == "ill"), np.uint16)
                write(tmp_path / name / f"series{patient}" / f"{i}.dcm", pixels, PatientID=f"{name}{patient}")
    source = tfds.load("folder", str(tmp_path), size=8, windows=("brain",))
    assert source.classes == ("ill", "well") and source.test_origin == "a fifth held out"
    assert source.train.inputs.shape[1:] == (8, 8, 3) and len(source.train.labels) + len(source.test.labels) == 30
    assert np.unique(source.test.inputs[source.test.labels == 0]).tolist() == [128]
    assert source.train.groups is not None and source.test.groups is not None
    assert not set(source.train.groups) & set(source.test.groups)
    assert np.bincount(source.test.labels).tolist() == [3, 3]  # one of five patients of each, three slices each
    other = tfds.load("folder", str(tmp_path), size=8, windows=((40, 160),))  # kept under another key
    assert np.unique(other.test.inputs[other.test.labels == 1]).tolist() == [64]


def test_a_corrupt_slice_in_a_folder_is_named(tmp_path: Path) -> None:
    draw(tmp_path, {"green": 5, "red": 5})
    (tmp_path / "red" / "x.dcm").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot read .*red/x.dcm as DICOM"):
        image_folder.read_folder(tmp_path)


@pytest.mark.parametrize("tag", [b"\x08\0\x60\0CS", b"\x10\0\x20\0LO", b"\x20\0\x0d\0UI", b"\x28\0\x04\0CS"])
def test_a_damaged_attribute_is_one_line_wherever_it_is_asked_for(tmp_path: Path, tag: bytes) -> None:
    """pydicom converts attributes when they are asked for, not when a file is read."""
    path = write(tmp_path / "a.dcm", PatientID=None if tag[0] == 0x20 else "p1", StudyInstanceUID=generate_uid())
    content = path.read_bytes()
    assert content.count(tag) == 1
    path.write_bytes(content.replace(tag, tag[:-1] + b"\x7f"))
    refused = 0
    for read in (
        lambda: dicom.read_dicom(path, ("lung",)),
        lambda: dicom.read_patient(path),
        lambda: dicom.read_study(path),
    ):
        try:
            read()
        except UserError as error:
            refused += 1
            assert "a.dcm as DICOM (NotImplementedError" in str(error)
    assert refused


def test_windows_that_are_none() -> None:
    for windows, message in (
        (("lungs",), "did you mean 'lung'"),
        (("lung", "bone"), "must be one window, three"),
        (((40,),), r"windows: \(40,\) is no pair \(level, width\)"),
        (((40, 0),), "with a width above 0"),
    ):
        with pytest.raises(UserError, match=message):
            dicom.parse_windows(windows)


PLAIN = {"Modality": "CR", "RescaleSlope": None, "RescaleIntercept": None}


def bare(path: Path, pixels: np.ndarray, syntax=ExplicitVRLittleEndian, mark: bool = False, **changes) -> Path:
    """Write a file without preamble and, unless ``mark``, without DICM and the meta information."""
    data = pydicom.dcmread(write(path, pixels, syntax, **changes))
    if mark:
        path.write_bytes(path.read_bytes()[128:])
        return path
    data.file_meta, data.preamble = FileMetaDataset(), None
    implicit = syntax == ImplicitVRLittleEndian
    pydicom.dcmwrite(path, data, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    return path


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_files_without_preamble_mark_or_transfer_syntax_are_read(tmp_path: Path, syntax) -> None:
    want = dicom.read_dicom(write(tmp_path / "whole.dcm", STORED, syntax), ("lung",))
    for name in ("raw", "raw.dcm"):
        path = bare(tmp_path / name, STORED, syntax)
        assert path.read_bytes()[128:132] != b"DICM"
        np.testing.assert_array_equal(decode.decode_file(path, Decoding(("lung",))), want)
    marked = bare(tmp_path / "marked", STORED, syntax, mark=True)
    assert marked.read_bytes()[:4] == b"DICM"
    np.testing.assert_array_equal(decode.decode_file(marked, Decoding(("lung",))), want)
    data = pydicom.dcmread(tmp_path / "whole.dcm")
    del data.file_meta.TransferSyntaxUID
    implicit = syntax == ImplicitVRLittleEndian
    path = tmp_path / "without.dcm"
    pydicom.dcmwrite(path, data, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(dicom.read_dicom(path, ("lung",)), want)


def test_dicom_without_an_ending_is_known_by_its_bytes(tmp_path: Path) -> None:
    rows = ["file,label"]
    for i in range(12):
        name = f"IM{i:04}" if i % 2 else f"1.2.840.{i}"
        write(tmp_path / name, STORED + i, PatientID=f"p{i}")
        rows.append(f"{name},{'ab'[i < 6]}")
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    source = tfds.load("index", str(tmp_path), windows=("lung",))
    assert len(source.train.labels) + len(source.test.labels) == 12
    assert source.train.groups is not None  # the patients
    for name, content in (("notes.txt", b"hello"), ("empty", b""), ("x.png", b"\x08\x00\x05\x00CS")):
        (tmp_path / name).write_bytes(content)
        assert not decode.is_dicom(tmp_path / name)
    assert not decode.is_dicom(tmp_path / "absent") and not decode.is_dicom(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": 100, "WindowWidth": 0},
        {"WindowCenter": 100, "WindowWidth": ""},
        {"RescaleSlope": "", "RescaleIntercept": ""},
        {"VOILUTSequence": []},
        {"PixelPaddingValue": ""},
    ],
)
def test_an_attribute_without_a_value_counts_as_absent(tmp_path: Path, changes) -> None:
    ramp = np.arange(0, 300, 3, dtype=np.uint16).reshape(10, 10)
    want = dicom.read_dicom(write(tmp_path / "a.dcm", ramp, **PLAIN))
    np.testing.assert_array_equal(dicom.read_dicom(write(tmp_path / "b.dcm", ramp, **(PLAIN | changes))), want)


def test_padding_does_not_count_and_is_black(tmp_path: Path) -> None:
    ramp = np.arange(100, 400, 3, dtype=np.uint16).reshape(10, 10)
    filled = ramp.copy()
    filled[0], filled[1] = 63536, 63530
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        kind = PLAIN | {"PhotometricInterpretation": photometric}
        want = dicom.read_dicom(write(tmp_path / "part.dcm", np.ascontiguousarray(ramp[2:]), **kind))
        about = kind | {"PixelPaddingValue": 63536, "PixelPaddingRangeLimit": 63530}
        got = dicom.read_dicom(write(tmp_path / "filled.dcm", filled, **about))
        assert (got[:2] == 0).all()
        np.testing.assert_array_equal(got[2:], want)
    hidden = dicom.read_dicom(write(tmp_path / "ct.dcm", filled, PixelPaddingValue=63536), ("lung",))
    assert (hidden[0] == 0).all() and (hidden[1] == 255).all()
    signed = (ramp.astype(np.int16) - 2000).copy()
    signed[0] = -32768
    write(
        tmp_path / "signed.dcm",
        signed.view(np.uint16),
        **(PLAIN | {"PixelRepresentation": 1, "PixelPaddingValue": -32768}),
    )
    got = dicom.read_dicom(tmp_path / "signed.dcm")
    assert (got[0] == 0).all() and got[1, 0, 0] == 0 and got[9, 9, 0] == 255
    everywhere = write(tmp_path / "all.dcm", np.full((4, 4), 7, np.uint16), **(PLAIN | {"PixelPaddingValue": 7}))
    assert (dicom.read_dicom(everywhere) == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"RescaleIntercept": None},
            "has no RescaleIntercept, so its Hounsfield units are unknown; .*windows='\\(\\)'",
        ),
        ({"RescaleSlope": None, "RescaleIntercept": None}, "has no RescaleSlope and no RescaleIntercept"),
        ({"RescaleSlope": "", "RescaleIntercept": ""}, "has no RescaleSlope and no RescaleIntercept"),
        ({"RescaleType": "MGML"}, "has RescaleType 'MGML', so it has no Hounsfield units"),
    ],
)
def test_ct_without_hounsfield_units_is_not_windowed(tmp_path: Path, changes, message: str) -> None:
    path = write(tmp_path / "a.dcm", **changes)
    with pytest.raises(UserError, match=message):
        dicom.read_dicom(path, ("lung",))
    assert dicom.read_dicom(path).max() == 255  # as it is


def test_a_stated_range_takes_the_place_of_the_files_own_window(tmp_path: Path) -> None:
    for i in range(10):
        pixels = np.full((4, 4), 100 * i, np.uint16)
        write(tmp_path / "ab"[i % 2] / f"{i}.dcm", pixels, PatientID=f"p{i}", WindowCenter=1, WindowWidth=2, **PLAIN)
    source = image_folder.read_folder(tmp_path, 4, value_range=(0.0, 1000.0))
    found = sorted(int(each[0, 0, 0]) for part in (source.train, source.test) for each in part.inputs)
    assert found == [round(25.5 * i) for i in range(10)]
    with pytest.raises(UserError, match="config.data.range has no effect"):
        image_folder.read_folder(tmp_path, 4, windows=("lung",), value_range=(0.0, 1000.0))
    same = write(tmp_path / "ct" / "a.dcm", np.full((4, 4), 1024 + 300, np.uint16))  # 300 Hounsfield units
    seen, ranged = Decoding(((100, 900),)), Decoding(value_range=(100.0, 900.0))
    kept = [decode.decode_all("ct", [same], 4, 1e9, rules)[0, 0, 0, 0] for rules in (seen, ranged, seen)]
    assert kept == [184, 64, 184]  # (300 - 100) / 900 + 0.5, and (300 - 100) / 800


def test_advice_on_compression_is_that_of_pydicom(tmp_path: Path) -> None:
    for uid, message in {
        "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000.*no installed library reads; .*pylibjpeg-openjpeg$",
        "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless.*pylibjpeg-libjpeg, or save it uncompressed .gdcmconv --raw",
        "1.2.840.10008.1.2.4.100": "compressed as MPEG2.*, which pydicom cannot decode; export it uncompressed",
    }.items():
        path = write(tmp_path / f"{uid}.dcm", syntax=pydicom.uid.UID(uid))
        with pytest.raises(UserError, match=message) as caught:
            dicom.read_dicom(path, ("lung",))
        if packages := re.findall("pylibjpeg[-a-z]*", str(caught.value)):
            named = str(pydicom.pixels.get_decoder(uid).missing_dependencies)
            assert all(package in named for package in packages)


def test_a_file_with_too_many_pixels_is_refused(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / "ab"[i % 2] / f"{i}.dcm", np.full((8, 8), 1024 + i, np.uint16), PatientID=f"p{i}")
    with pytest.raises(UserError, match="more than 63 pixels.*config.data.max_pixels"):
        image_folder.read_folder(tmp_path, 8, windows=("lung",), max_pixels=63)
    assert len(image_folder.read_folder(tmp_path, 8, windows=("lung",), max_pixels=64).train.labels) == 8
