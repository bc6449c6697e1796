"""Labelled pictures from a folder of class folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax.data import duplicates, image_list
from tl_jax.data.dataset import (
    ALL_SPLIT_NAMES,
    DECODED_BYTES,
    Dataset,
    Split,
    find_splits,
    parse_split,
    with_test_split,
)
from tl_jax.data.decode import (
    DEFAULT_DECODING,
    ENDINGS,
    Decoding,
    decode_all,
    is_image,
    raise_damaged,
    with_value_range,
)
from tl_jax.data.image_list import Part, Reading, assemble, with_groups
from tl_jax.data.value_range import ValueRange
from tl_jax.data.walker import Walk, normalize_unicode, subfolders
from tl_jax.utils.errors import UserError, nearest

LAYOUT = "FOLDER/CLASS/PICTURE, or FOLDER/train/CLASS/PICTURE and FOLDER/test/CLASS/PICTURE"

Files = dict[str, list[Path]]  # the image files of each class


def read(
    folder: Path,
    size: int = 224,
    most_bytes: float = DECODED_BYTES,
    windows: tuple[Any, ...] = (),
    group: str = "",
    fit: str = "crop",
    value_range: ValueRange | None = None,
    max_pixels: int = 0,
    outside: bool = False,
) -> Dataset:
    """Read ``folder/CLASS/PICTURE``, or the same below ``folder/train`` and further folders named after splits.

    Splits are known by all names in ``SPLIT_NAMES``, in any case: ``Training`` and ``Testing``, ``val``, ``dev``, ...
    Beside ``train``, a single other split is the test split; of two, each is what its name says. Without another split
    a fifth of each class is held out for testing, the same at every call.

    A class has all images in its folder and in the folders below it. Classes and files are in the order of their names;
    names that differ in their Unicode form only are one class. Hidden and system files are skipped, and so are links
    below a class to folders outside the data, unless ``outside``; one line on stderr says what else is not read, with
    endings and counts. Images are turned as their EXIF says, grey is repeated, and transparent pixels become white. If
    all have one size they are kept as they are, else all are fitted into ``size``.
    Decoded, they take N * H * W * 3 bytes on disk; if that is more than ``most_bytes``, they are decoded each time they
    are read. A line says if two splits share an image, byte for byte, or if one has two classes in train.

    Images of one group are in one split only, see ``image_list.with_groups``.

    Args:
        folder: the name of the set is the folder's.
        size, most_bytes, windows, fit, value_range, max_pixels, outside: see ``Reading``.
        group: a column of ``folder/index.csv``, or "study" or "none"; empty groups DICOM files by patient.

    Raises:
        UserError: no folder of that layout, two folders of one split, fewer than two classes, a class without images or
            too small for a split to be held out, an image that cannot be decoded, a group in two splits.
    """
    folder = Path(folder).expanduser()
    walk = Walk(folder, outside)
    found, tested = _splits(folder, walk)
    classes = tuple(found["train"])
    parts, name = {split: Part(*_listed(files, classes)) for split, files in found.items()}, folder.resolve().name
    if walk.has_broken_links:
        files = [file for part in parts.values() for file in part.files]
        raise_damaged(name, files, Decoding(windows, value_range, max_pixels))
    indexed = bool(group) and image_list.has_column(folder, group)
    if indexed:
        walk.unskip(folder / image_list.NAME)
    walk.report()
    if indexed:
        parts = {s: p._replace(groups=image_list.groups(folder, p.files, group)) for s, p in parts.items()}
    else:
        parts = with_groups(name, parts, group)
    how = Reading(size, most_bytes, windows, group, fit=fit, value_range=value_range, max_pixels=max_pixels)
    return assemble(name, parts, classes, tested, how)


def read_all(
    folder: Path, size: int, most_bytes: float = DECODED_BYTES, rules: Decoding = DEFAULT_DECODING
) -> tuple[Split, list[Path], tuple[str, ...], ValueRange | None]:
    """Read ``folder/CLASS/PICTURE`` as one split; arguments and errors are those of ``read``, ``rules`` those of files.

    Returns:
        The N images in the order of classes and names, their files, the K names of classes, and the range of values.
    """
    folder = _folder(folder)
    if (names := [path.name for path in subfolders(folder)]) and all(map(parse_split, names)):
        raise UserError(
            f"{folder}: {', '.join(names)} are names of splits, which are made here; pass one folder with "
            "PERSON/PICTURE, or one of these"
        )
    walk = Walk(folder, rules.outside)
    found = _classes(folder, walk)
    name, (files, labels) = folder.resolve().name, _listed(found, tuple(found))
    if walk.has_broken_links:
        raise_damaged(name, files, rules)
    walk.report()
    duplicates.report_duplicate_files(name, {"train": files}, {"train": labels})
    rules = with_value_range(name, files, rules)
    return Split(decode_all(name, files, size, most_bytes, rules), labels), files, tuple(found), rules.value_range


def named(inputs: Sequence[str | Path] | str | Path, outside: bool = False) -> list[Path]:
    """Return the image files that a user named, one by one or as folders; ``outside`` as for ``Walk``.

    Raises:
        UserError: none was named, or something that is no path; or as ``pictures``.
    """
    inputs = [inputs] if isinstance(inputs, str | Path) else list(inputs)  # else a path is its letters, "/" first
    if strange := [given for given in inputs if not isinstance(given, str | Path)]:
        raise UserError(f"an input is a {type(strange[0]).__name__}, not a path; pass files or folders of images")
    if not inputs:
        raise UserError("nothing to look at; pass --input=PICTURE or --input=FOLDER, once for each")
    return [file for given in inputs for file in pictures(Path(given), outside)]


def pictures(path: Path, outside: bool = False) -> list[Path]:
    """Return the image files of a folder and of those below it, by name, or the one file that ``path`` is.

    Links to folders outside it are followed if ``outside``, or if they are directly in it.

    Links that lead nowhere are among them: whoever decodes them reports each.

    Raises:
        UserError: no such folder, or no image in it.
    """
    path = path.expanduser()
    if path.is_file():
        if not is_image(path):
            raise UserError(f"{path}: its ending is none of {', '.join(ENDINGS)}; convert it, or check --input")
        return [path]
    if not path.is_dir():
        raise UserError(f"no file or folder {path}; check --input")
    walk = Walk(path, outside)
    folders, files = walk.entries(path)
    parts = {each: [each] for each in files} | {each: walk.images(each) for each in folders}
    found = [file for each in sorted(parts) for file in parts[each]]
    if not found:
        unread = walk.describe_skipped(path)
        raise UserError(
            f"{path} has no images ({', '.join(ENDINGS)}){f', but {unread}' if unread else ''}; check --input"
        )
    walk.report()
    return found


def _folder(folder: Path) -> Path:
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; check --config.data.dir")
    return folder


def _splits(folder: Path, walk: Walk) -> tuple[dict[str, Files], str]:
    """Return the files of ``train``, ``test`` and ``validation`` by class, and which folder the test split is from."""
    named = [path for path in subfolders(_folder(folder)) if parse_split(path.name)]
    splits = find_splits([path.name for path in named if subfolders(path)], folder)
    if not splits:
        if len(named) > 1 and len(named) == len(subfolders(folder)):
            names = ", ".join(path.name for path in named)
            raise UserError(f"{folder}: no class folders in {names}, which are names of splits; the layout is {LAYOUT}")
        return {"train": _classes(folder, walk)}, ""  # a class may be called train
    if "train" not in splits:
        raise UserError(
            f"{folder}: {' and '.join(splits.values())} hold class folders, but there is no train folder beside them; "
            "name one train, or pass the folder that holds the class folders"
        )
    top = folder / splits["train"]
    beside, loose = walk.entries(folder)
    for path in beside:
        if path.name not in splits.values():
            classes = "with class folders " if subfolders(path) else ""
            walk.skip(
                f"folder {classes}beside {top.name}, of no split ({ALL_SPLIT_NAMES})"
                if not parse_split(path.name)
                else f"folder without class folders beside {top.name}",
                path,
            )
    for path in loose:
        walk.skip(f"image beside {top.name}", path)
    found = {split: _classes(folder / name, walk, 2 if split == "train" else 1) for split, name in splits.items()}
    for split, files in found.items():
        if unknown := sorted(set(files) - set(found["train"])):
            where, advice = folder / splits[split] / unknown[0], nearest(unknown[0], found["train"])
            raise UserError(f"{where} is a class that {top} does not have; {advice}")
    return with_test_split(found), with_test_split(splits).get("test", "")


def _classes(folder: Path, walk: Walk, least: int = 2) -> Files:
    """Return the image files of each class folder, in the order of their names; there must be ``least`` classes."""
    folders, loose = walk.entries(folder)
    for path in loose:
        walk.skip("image beside the class folders", path)
    if len(folders) < least:
        names = f": {', '.join(path.name for path in folders)}" if folders else ""
        count = "fewer than two class folders" if least == 2 else "no class folders"
        raise UserError(f"{folder} has {count} ({len(folders)}{names}); the layout is {LAYOUT}")
    classes: Files = {}
    for path in folders:
        files = walk.images(path)
        if not files:
            unread = walk.describe_skipped(path)
            found = f", but {unread}, which are not read" if unread else ""
            raise UserError(
                f"{path} has no images ({', '.join(ENDINGS)}){found}; convert or add some, or remove the folder; "
                f"the layout is {LAYOUT}"
            )
        classes.setdefault(normalize_unicode(path.name), []).extend(files)
    return {name: classes[name] for name in sorted(classes)}


def _listed(files: Files, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    """Return all files of a split, and their labels int32 (N,)."""
    numbers = {name: k for k, name in enumerate(classes)}
    labels = [numbers[name] for name, paths in files.items() for _ in paths]
    return [path for paths in files.values() for path in paths], np.asarray(labels, np.int32)
