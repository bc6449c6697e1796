"""Read data sets damaged at random, in a process of its own: ``python -m tests.data.damage READER FIRST COUNT``.

Each seed from FIRST on damages one file of a small valid set. Its number is printed before the set is read, so that a
process that died, hung or took too much memory has named the culprit. What is neither a value nor a ``UserError`` of
one line ends the process, and so does a file that is opened outside the set.
"""

import importlib
import io
import json
import os
import random
import re
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.data.boxed import some
from tests.data.prepared import CLASSES, TEXT, image_feature, png, prepare
from tests.pretrained.damage import SECONDS, cut, flip, guard, limit, lose, peak, swap
from tl_jax.data import cifar
from tl_jax.utils.errors import UserError

RNG = np.random.default_rng(0)
NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"9" * 30, b"9" * 5000, b"1000000000", b"0.5", b"1e-320", b"true")
WORDS = (
    b"../../../../../../etc/passwd",
    b"/etc/passwd",
    b"\xff\xfe",
    b"\0",
    b"\xe2\x80\x8b",
    b"\xc2\xa0",
    b"x" * 70000,
)
WORDS += (
    b"x" * 70000,
    b"null",
    b"[",
    b"{",
    b'"',
    b"[" * 3000,
    b"{}",
    b"[]",
    b'""',
    b"\t",
    b"\r\n",
    b"\xef\xbb\xbf",
    b"<a>" * 2000,
)
DECODED = 1 << 30  # bytes of memory: an image may have as many pixels as Pillow allows
ROOT = Path(__file__).parents[2]
SYSTEM = ("/usr", "/lib", "/proc", "/dev", "/sys")
READABLE = tuple(dict.fromkeys((sys.prefix, sys.base_prefix, str(ROOT), *sys.path[1:], *SYSTEM)))


class Reader(NamedTuple):
    """How a data set is made, which of its files is damaged, and how it is read."""

    make: Callable[[Path], None]
    files: tuple[str, ...]
    read: Callable[[Path], Any]


def photo(path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (12, 10, 3)).astype(np.uint8)).save(path, **options)


def photos(folder: Path, ending: str = "png") -> None:
    for part, count in (("train", 3), ("test", 2)):
        for name in "ab":
            for i in range(count):
                photo(folder / part / name / f"{i}.{ending}")


def make_dicom(folder: Path) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.Modality, data.PatientID, data.StudyInstanceUID = "CT", "P", generate_uid()
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 8, 8, 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.RescaleSlope, data.RescaleIntercept, data.WindowCenter, data.WindowWidth = 1, -1024, 40, 400
    data.PixelData = RNG.integers(0, 3000, (8, 8)).astype(np.uint16).tobytes()
    data.save_as(folder / "x.dcm", enforce_file_format=True)


def make_coco(folder: Path) -> None:
    for part in ("train", "test"):
        photo(folder / part / "a.png")
        images = [{"id": 1, "file_name": "a.png", "width": 10, "height": 12}]
        boxes = [{"id": i, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 6], "iscrowd": 0} for i in range(2)]
        content = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "cat"}]}
        (folder / part / "_annotations.coco.json").write_text(json.dumps(content))


def make_index(folder: Path) -> None:
    rows = [f"{k}{i}.png,{'ab'[k]},{'test' if i > 2 else 'train'},p{k}{i}" for k in range(2) for i in range(5)]
    for row in rows:
        photo(folder / row.split(",")[0])
    (folder / "index.csv").write_text("\n".join(["file,label,split,patient", *rows]) + "\n")


def make_npz(folder: Path) -> None:
    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        return RNG.integers(0, 255, (count, 8, 8)).astype(np.uint8), (np.arange(count) % 2)[:, None]

    arrays: dict[str, Any] = {}
    for name, count in (("train", 6), ("val", 4), ("test", 4)):
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = part(count)
    np.savez(folder / "set.npz", **arrays)


TABLES = {
    "tsv": "text\tlabel\ngood film\tpos\nbad film\tneg\nfine\tpos\npoor, very\tneg\n" * 1,
    "csv": 'text,label\n"good, film",pos\nbad film,neg\nfine,pos\n"a ""b""",neg\n',
    "jsonl": "".join(json.dumps({"text": f"text {i}", "label": "ab"[i % 2]}) + "\n" for i in range(6)),
    "conll": "EU B-ORG\nrejects O\n\nPeter B-PER\nBlack I-PER\n\nLondon B-LOC\n. O\n\n" * 2,
}


def make_table(kind: str) -> Callable[[Path], None]:
    ending = "txt" if kind == "conll" else kind

    def make(folder: Path) -> None:
        for part in ("train", "test"):
            (folder / f"{part}.{ending}").write_text(TABLES[kind])

    return make


def read_table(kind: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from tl_jax.data import text

        return text.read_text_dataset(folder, kind)

    return read


def read_folder(folder: Path) -> Any:
    from tl_jax.data import image_folder as folders

    return folders.read_folder(folder, 8).train.inputs[:]


def read_dicom(folder: Path) -> Any:
    from tl_jax.data import dicom

    return (
        dicom.read_dicom(folder / "x.dcm"),
        dicom.read_dicom(folder / "x.dcm", ("lung",)),
        dicom.read_patient(folder / "x.dcm"),
    )


def read_voc(folder: Path) -> Any:
    from tl_jax.data import voc

    return voc.read_voc(folder, 8).train.inputs[:]


def read_coco(folder: Path) -> Any:
    from tl_jax.data import coco

    return coco.read_coco(folder, 8).train.inputs[:]


def read_index(folder: Path) -> Any:
    from tl_jax.data import image_list
    from tl_jax.data.registry import DatasetOptions

    return image_list.load_index(folder, DatasetOptions("index", size=8, group="patient")).train.inputs[:]


def read_npz(folder: Path) -> Any:
    from tl_jax.data import medmnist

    return np.asarray(medmnist.read_npz(folder / "set.npz").train.inputs[:])


def make_deep(folder: Path) -> None:
    """Images of 16 bits, by which the range of values of the set is found."""
    photos(folder)
    for part in ("train", "test"):
        for i in range(2):
            Image.fromarray(RNG.integers(0, 65535, (12, 10)).astype(np.uint16)).save(folder / part / "a" / f"{i}.png")


def make_gif(folder: Path) -> None:
    """A GIF, which is read whatever its ending."""
    photos(folder)
    Image.fromarray(RNG.integers(0, 255, (12, 10)).astype(np.uint8)).save(folder / "train/a/0.png", "gif")


def make_tfds(folder: Path) -> None:
    rows = [{"image": png(i), "label": i % 2} for i in range(4)]
    prepare(folder, {"train": rows[:3], "test": rows[2:]}, {"image": image_feature(8, 8, 3), "label": CLASSES})


def read_tfds(folder: Path) -> Any:
    from tl_jax.data import tfds

    return tfds.load("odd", str(folder), 8).train.inputs[:]


def make_tfds_texts(folder: Path) -> None:
    rows = [{"text": f"text {i}".encode(), "label": i % 2} for i in range(6)]
    prepare(folder, {"train": rows, "test": rows[:2]}, {"text": TEXT, "label": CLASSES})


def read_tfds_texts(folder: Path) -> Any:
    from tl_jax.data import text_datasets

    return text_datasets.load("odd", str(folder))


TFDS = tuple(
    f"odd/1.0.0/{name}"
    for name in (
        *["odd-train.array_record-00000-of-00001"] * 3,
        *("dataset_info.json", "features.json") * 2,
        "label.labels.txt",
    )
)
CIFAR = cifar.ARCHIVES["cifar10"]


def make_cifar(folder: Path) -> None:
    files = {
        name: RNG.integers(0, 10, 2 * 3073).astype(np.uint8).tobytes()
        for each in CIFAR.splits.values()
        for name in each
    }
    files[CIFAR.labels[0].file] = "\n".join("abcdefghij").encode()
    with tarfile.open(folder / "set.tar.gz", "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{CIFAR.folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def read_cifar(folder: Path) -> Any:
    return cifar.read_archive(folder / "set.tar.gz", CIFAR)


def make_faces(folder: Path) -> None:
    for name in ("Ann", "Bo", "Cy", "Di"):
        for i in (1, 2, 3):
            photo(folder / "set" / name / f"{name}_{i:04d}.png")
    (folder / "pairs.txt").write_text("2\t1\nAnn\t1\t2\nAnn\t1\tBo\t2\nBo\t1\t3\nBo\t1\tCy\t2\n")
    (folder / "people.txt").write_text("2\nAnn\t3\nBo\t3\n")


def read_faces(folder: Path) -> Any:
    from tl_jax.data import faces

    album = faces.read_faces(folder / "set", 8)
    listed = faces.read_pairs(folder / "pairs.txt")
    cut = faces.SplitOptions(2, faces.read_identities(folder / "people.txt"), 0, 0.0, 0, 0)
    return faces.match_pairs(listed, album.files), faces.split_identities(album, cut)[0].train.inputs[:]


def make_deep_npz(folder: Path) -> None:
    """Compressed, with images of floats, another name for validation, and labels of bytes."""
    arrays: dict[str, Any] = {}
    for name, count in (("train", 6), ("valid", 4), ("test", 4)):
        arrays[f"{name}_images"] = RNG.random((count, 8, 8, 3)).astype(np.float32)
        arrays[f"{name}_labels"] = (np.arange(count) % 2).astype(np.uint8)
    np.savez_compressed(folder / "set.npz", **arrays)


INPUTS = {
    "typed.txt": "a film\nanother\n",
    **{f"typed.{kind}": TABLES[kind] for kind in ("tsv", "csv", "jsonl", "conll")},
}


def make_inputs(folder: Path) -> None:
    for name, content in INPUTS.items():
        (folder / name).write_text(content)


def read_inputs(folder: Path) -> Any:
    from tl_jax.data.text import DEFAULT_COLUMNS
    from tl_jax.tasks import text_inputs

    def files(task: str) -> list[str]:
        return [str(folder / name) for name in INPUTS if task == "tokens" or not name.endswith("conll")]

    options = False, DEFAULT_COLUMNS
    return [text_inputs.read_inputs(files(task), task == "tokens", *options) for task in ("tokens", "text")]


def make_pictures(folder: Path) -> None:
    for i, ending in enumerate(IMAGES):
        photo(folder / "some" / f"{i}.{ending}")
    make_dicom(folder / "some")


def read_pictures(folder: Path) -> Any:
    """Return what a prediction says of a folder of images: a damaged one is told beside the others."""
    from tl_jax.data.decode import DEFAULT_DECODING
    from tl_jax.tasks import image_inputs

    images = image_inputs.list_inputs([str(folder / "some")])
    answer = lambda images, pixels: ({} for _ in pixels)  # noqa: E731
    rows = list(image_inputs.predict_rows(images, DEFAULT_DECODING, 2, np.shape, answer))
    if errors := [row["error"] for row in rows if "error" in row]:
        assert len(errors) == 1
        raise UserError(errors[0])
    return rows


IMAGES = {"png": {}, "jpg": {}, "bmp": {}, "webp": {"lossless": True}}
READERS: Mapping[str, Reader] = {
    **{
        ending: Reader(lambda folder, e=ending: photos(folder, e), (f"train/a/0.{ending}",), read_folder)
        for ending in IMAGES
    },
    "png16": Reader(make_deep, ("train/a/0.png",), read_folder),
    "gif": Reader(make_gif, ("train/a/0.png",), read_folder),
    "dicom": Reader(make_dicom, ("x.dcm",), read_dicom),
    "voc": Reader(
        lambda folder: some(folder / "set") and None,
        ("set/Annotations/a.xml", "set/ImageSets/Main/train.txt", "set/JPEGImages/a.png"),
        lambda folder: read_voc(folder / "set"),
    ),
    "coco": Reader(
        make_coco, ("train/_annotations.coco.json", "train/_annotations.coco.json", "train/a.png"), read_coco
    ),
    "index": Reader(make_index, ("index.csv",), read_index),
    "npz": Reader(make_npz, ("set.npz",), read_npz),
    "npz_deep": Reader(make_deep_npz, ("set.npz",), read_npz),
    "tfds": Reader(make_tfds, TFDS, read_tfds),
    "tfds_texts": Reader(make_tfds_texts, TFDS, read_tfds_texts),
    "cifar": Reader(make_cifar, ("set.tar.gz",), read_cifar),
    "faces": Reader(make_faces, ("pairs.txt", "people.txt", "set/Ann/Ann_0001.png"), read_faces),
    "inputs": Reader(make_inputs, tuple(INPUTS), read_inputs),
    "pictures": Reader(make_pictures, tuple(f"some/{i}.{e}" for i, e in enumerate(IMAGES)), read_pictures),
    **{
        kind: Reader(make_table(kind), (f"train.{'txt' if kind == 'conll' else kind}",), read_table(kind))
        for kind in TABLES
    },
}


def number(content: bytes, rng: random.Random) -> bytes:
    """Put another number, or a word, where a number stands."""
    found = list(re.finditer(rb"\d+", content))
    if not found:
        return word(content, rng)
    at = rng.choice(found)
    return content[: at.start()] + rng.choice(NUMBERS + WORDS[:6]) + content[at.end() :]


def word(content: bytes, rng: random.Random) -> bytes:
    """Put a word that means something to some parser where another stands, or between two."""
    found = list(re.finditer(rb"[A-Za-z_.]+", content)) or [re.match(b"", content)]
    at = rng.choice(found)
    assert at is not None
    end = at.end() if rng.random() < 0.7 else at.start()
    return content[: at.start()] + rng.choice(WORDS + NUMBERS) + content[end:]


def repeat(content: bytes, rng: random.Random) -> bytes:
    """Write a line again, elsewhere."""
    lines = content.splitlines(keepends=True) or [b""]
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    return b"".join(lines)


def retype(content: bytes, rng: random.Random) -> bytes:
    """Put a value of another type somewhere into JSON; what is no JSON gets a number."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return number(content, rng)
    node = tree
    while isinstance(node, (dict, list)) and node:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.3:
            if rng.random() < 0.2 and isinstance(node, dict):
                del node[key]
            else:
                node[key] = rng.choice(OTHERS)
            break
        node = node[key]
    return json.dumps(tree).encode()


OTHERS = (None, True, -1, 10**30, 1e308, float("nan"), "", "x" * 300, [], {}, [[]], {"a": 1}, "../x", "/etc/passwd")
KINDS = (flip, cut, lose, swap, number, word, repeat, retype)


watching: list[bool] = []


def outside(folder: Path, cache: Path) -> None:
    """End the process when a file is opened that is neither of the set nor of Python, its packages or the cache."""
    allowed = tuple(map(str, (folder, cache, folder.resolve(), *READABLE)))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.startswith(allowed):
                print(f"opened outside the set: {path}", file=sys.stderr, flush=True)
                os._exit(4)

    watching.append(True)
    sys.addaudithook(watch)


def attempt(reader: Reader, folder: Path) -> bool:
    """Return whether the set was read, and raise whatever a reader must not."""
    try:
        reader.read(folder)
    except UserError as error:
        said = str(error)
        assert "\n" not in said and len(said.encode()) < 3000, said[:3000]
        return False
    return True


def main(name: str, first: int, count: int) -> None:
    reader, cache = READERS[name], Path(tempfile.mkdtemp(prefix="tl_jax_fuzz_"))
    os.environ["TL_JAX_CACHE"] = str(cache)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        reader.make(folder)
        whole = {file: (folder / file).read_bytes() for file in reader.files}
        assert attempt(reader, folder), "the undamaged set is refused"
        for file, content in whole.items():  # so that all is imported
            (folder / file).write_bytes(content[: len(content) // 2])
            attempt(reader, folder)
            (folder / file).write_bytes(content)
        Image.init()  # imports all that Pillow has, which it else does at the first file that is none of the usual ones
        importlib.import_module("sklearn.model_selection")  # which cuts a test part where a set has lost its own
        guard()
        outside(folder, cache)
        done, used = 0, peak()
        for seed in range(first, first + count):
            limit(SECONDS)
            rng = random.Random(f"{name} {seed}")
            file, kinds = rng.choice(reader.files), rng.sample(KINDS, rng.choice((1, 1, 1, 2)))
            content = whole[file]
            for kind in kinds:
                content = kind(content, rng) if content else content
            print(f"{name}: seed {seed}, {file}: {', '.join(kind.__name__ for kind in kinds)}", flush=True)
            (folder / file).write_bytes(content)
            done += attempt(reader, folder)
            (folder / file).write_bytes(whole[file])
            assert peak() - used < DECODED, f"{peak() - used} bytes"
        watching.clear()
        print(f"{name}: {count} files, {done} read, {count - done} refused", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
