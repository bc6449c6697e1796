"""Labelled images from a folder with one subfolder per class."""

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
from tl_jax.data.image_list import FileList, build_dataset, with_dicom_groups
from tl_jax.data.registry import IMAGE_FILES, DatasetOptions, register_dataset
from tl_jax.data.value_range import ValueRange
from tl_jax.data.walker import Walk, normalize_unicode, subfolders
from tl_jax.utils.errors import UserError, nearest

LAYOUT = "FOLDER/CLASS/IMAGE, or FOLDER/train/CLASS/IMAGE and FOLDER/test/CLASS/IMAGE"

ClassFiles = dict[str, list[Path]]  # class -> image files


def read_folder(
    folder: Path,
    size: int = 224,
    max_bytes: float = DECODED_BYTES,
    windows: tuple[Any, ...] = (),
    group: str = "",
    fit: str = "crop",
    value_range: ValueRange | None = None,
    max_pixels: int = 0,
    outside: bool = False,
) -> Dataset:
    """Read ``folder/CLASS/IMAGE``, or the same below ``folder/train`` and other folders named after splits.

    Folders of splits may have any name in ``SPLIT_NAMES``, in any case: ``Training`` and ``Testing``, ``val``, ``dev``,
    ... A single other split next to ``train`` is the test split; two are what their names say. Without another split, a
    fixed fifth of each class is held out for testing.

    A class has all images in its folder and in the folders below it. Classes and files are sorted by name; names that
    differ only in their Unicode form are one class. Hidden and system files are skipped, and so are links below a class
    to folders outside the data, unless ``outside``. A log line lists other skipped files by suffix and number. Images
    are rotated as their EXIF says, grey is repeated, and transparent pixels become white. Images of one size are kept,
    others are fitted to ``size``.
    Decoded, they take N * H * W * 3 bytes on disk; above ``max_bytes``, they are decoded on every read. A log line
    reports an identical image file in two splits, or in two classes of train.

    Images of one group stay in one split, see ``image_list.with_dicom_groups``.

    Args:
        folder: folder of the data, which also names the data set.
        size, max_bytes, fit: see ``DatasetOptions``.
        windows, value_range, max_pixels, outside: see ``Decoding``.
        group: a column of ``folder/index.csv``, or "study" or "none"; empty groups DICOM files by patient.

    Raises:
        UserError: the folder has another layout, two folders of one split, fewer than two classes, a class without
            images or too small to hold any out, an image that cannot be decoded, or a group in two splits.
    """
    decoding = Decoding(windows, value_range, max_pixels, outside=outside)
    return load_folder(DatasetOptions("folder", str(folder), size, max_bytes, decoding, fit, group))


FIELDS = (*IMAGE_FILES, "group", "outside", "windows")  # of the configuration


@register_dataset("folder", fields=FIELDS, layout=LAYOUT)
def load_folder(options: DatasetOptions) -> Dataset:
    """Images in one folder per class, optionally below folders for splits."""
    folder = Path(options.folder).expanduser()
    walk = Walk(folder, options.decoding.outside)
    split_files, test_origin = _find_split_files(folder, walk, min_classes=1 if options.as_one_split else 2)
    name, classes = folder.resolve().name, tuple(split_files["train"])
    splits = {split: FileList(*_flatten(files, classes)) for split, files in split_files.items()}
    if walk.has_broken_links:
        raise_damaged(name, [file for file_list in splits.values() for file in file_list.files], options.decoding)
    group = image_list.known_group(folder / image_list.INDEX_NAME, options)
    has_index_groups = bool(group) and image_list.has_column(folder, group)
    if has_index_groups:
        walk.unskip(folder / image_list.INDEX_NAME)
    walk.report()
    if has_index_groups:
        splits = {
            split: files._replace(groups=image_list.read_groups(folder, files.files, group))
            for split, files in splits.items()
        }
    else:
        splits = with_dicom_groups(name, splits, group)
    return build_dataset(name, splits, classes, test_origin, options)


def read_single_split(
    folder: Path, size: int, max_bytes: float = DECODED_BYTES, decoding: Decoding = DEFAULT_DECODING
) -> tuple[Split, list[Path], tuple[str, ...], ValueRange | None]:
    """Read ``folder/CLASS/IMAGE`` as one split.

    Arguments and errors are those of ``read_folder``; ``decoding`` holds the options of decoding.

    Returns:
        N images in the order of classes and names, their files, K class names, and the range of values.
    """
    folder = _check_folder(folder)
    if (names := [path.name for path in subfolders(folder)]) and all(map(parse_split, names)):
        raise UserError(
            f"{folder}: {', '.join(names)} are names of splits, but the data are split here; pass one folder with "
            "PERSON/IMAGE, or one of these"
        )
    walk = Walk(folder, decoding.outside)
    class_files = _find_class_files(folder, walk)
    name, (files, labels) = folder.resolve().name, _flatten(class_files, tuple(class_files))
    if walk.has_broken_links:
        raise_damaged(name, files, decoding)
    walk.report()
    duplicates.report_duplicate_files(name, {"train": files}, {"train": labels})
    decoding = with_value_range(name, files, decoding)
    return (
        Split(decode_all(name, files, size, max_bytes, decoding), labels),
        files,
        tuple(class_files),
        decoding.value_range,
    )


def list_images(path: Path, outside: bool = False) -> list[Path]:
    """Return the image files of a folder, searched recursively and sorted by name, or the file ``path``.

    Links to folders outside it are followed if ``outside``, or if they are directly in it. Broken links are included;
    decoding them reports each.

    Raises:
        UserError: no such folder, or no image in it.
    """
    path = path.expanduser()
    if path.is_file():
        if not is_image(path):
            raise UserError(f"{path}: unknown suffix; convert it to one of {', '.join(ENDINGS)}, or check the input")
        return [path]
    if not path.is_dir():
        raise UserError(f"no file or folder {path}; check the input")
    walk = Walk(path, outside)
    folders, files = walk.entries(path)
    images_by_entry = {entry: [entry] for entry in files} | {entry: walk.images(entry) for entry in folders}
    images = [file for entry in sorted(images_by_entry) for file in images_by_entry[entry]]
    if not images:
        skipped = walk.describe_skipped(path)
        raise UserError(
            f"{path} has no images ({', '.join(ENDINGS)}){f', but {skipped}' if skipped else ''}; check the input"
        )
    walk.report()
    return images


def _check_folder(folder: Path) -> Path:
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; check config.data.dir")
    return folder


def _find_split_files(folder: Path, walk: Walk, min_classes: int) -> tuple[dict[str, ClassFiles], str]:
    """Return the files of ``train``, ``test`` and ``validation`` by class, and the name of the test folder."""
    split_folders = [path for path in subfolders(_check_folder(folder)) if parse_split(path.name)]
    splits = find_splits([path.name for path in split_folders if subfolders(path)], folder)
    if not splits:
        if len(split_folders) > 1 and len(split_folders) == len(subfolders(folder)):
            names = ", ".join(path.name for path in split_folders)
            raise UserError(f"{folder}: no class folders in the splits {names}; arrange the files as {LAYOUT}")
        return {"train": _find_class_files(folder, walk, min_classes)}, ""  # a class may be called train
    if "train" not in splits:
        raise UserError(
            f"{folder}: {' and '.join(splits.values())} have class folders, but there is no train folder; name one of "
            "the folders train, or pass a folder with class folders"
        )
    top = folder / splits["train"]
    other_folders, loose = walk.entries(folder)
    for path in other_folders:
        if path.name not in splits.values():
            classes = "with class folders " if subfolders(path) else ""
            walk.skip(
                f"folder {classes}next to {top.name}, not named after a split ({ALL_SPLIT_NAMES})"
                if not parse_split(path.name)
                else f"folder without class folders next to {top.name}",
                path,
            )
    for path in loose:
        walk.skip(f"image next to {top.name}", path)
    split_files = {
        split: _find_class_files(folder / name, walk, min_classes if split == "train" else 1)
        for split, name in splits.items()
    }
    for split, files in split_files.items():
        if unknown := sorted(set(files) - set(split_files["train"])):
            where, advice = folder / splits[split] / unknown[0], nearest(unknown[0], split_files["train"])
            raise UserError(f"{where}: no such class in {top}; {advice}")
    return with_test_split(split_files), with_test_split(splits).get("test", "")


def _find_class_files(folder: Path, walk: Walk, min_classes: int = 2) -> ClassFiles:
    """Return the image files of each class folder, sorted by name; at least ``min_classes``."""
    folders, loose = walk.entries(folder)
    for path in loose:
        walk.skip("image next to the class folders", path)
    if len(folders) < min_classes:
        names = f": {', '.join(path.name for path in folders)}" if folders else ""
        count = "fewer than two class folders" if min_classes == 2 else "no class folders"
        raise UserError(f"{folder} has {count} ({len(folders)}{names}); arrange the files as {LAYOUT}")
    classes: ClassFiles = {}
    for path in folders:
        files = walk.images(path)
        if not files:
            skipped = walk.describe_skipped(path)
            hint = f", only {skipped}" if skipped else ""
            raise UserError(
                f"{path} has no images ({', '.join(ENDINGS)}){hint}; convert or add some, remove the folder, or "
                f"arrange the files as {LAYOUT}"
            )
        classes.setdefault(normalize_unicode(path.name), []).extend(files)
    return {name: classes[name] for name in sorted(classes)}


def _flatten(files: ClassFiles, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    """Return all files of a split, and their labels int32 (N,)."""
    numbers = {name: k for k, name in enumerate(classes)}
    labels = [numbers[name] for name, paths in files.items() for _ in paths]
    return [path for paths in files.values() for path in paths], np.asarray(labels, np.int32)
