"""Images in npz files in the format of MedMNIST (Yang et al. 2023, doi:10.1038/s41597-022-01721-8), or downloaded."""

import zipfile
from pathlib import Path

import numpy as np

from tl_jax.data import duplicates
from tl_jax.data.dataset import Dataset, Split, find_splits, parse_split, with_test_split
from tl_jax.data.labels import class_indices
from tl_jax.data.registry import DatasetOptions, register_dataset
from tl_jax.data.value_range import ValueRange, find_range, print_range, refuse_unused_range, to_uint8
from tl_jax.utils.claims import NPZ_ERRORS, npz_members, read_npy
from tl_jax.utils.download import cache_dir, fetch
from tl_jax.utils.errors import UserError

# OrganAMNIST, axial CT slices of abdominal organs, 28 pixels or as in the name; CC BY 4.0. MD5 from medmnist 3.0.2.
URL = "https://zenodo.org/records/10519652/files/{name}.npz?download=1"
SETS = {
    "organamnist": "68e3f8846a6bd62f0c9bf841c0d9eacc",
    "organamnist_64": "2dcccc29b88e6da5a01161ef20cda288",
    "organamnist_128": "eeae80d0a227a8d099027e1b3cfd3b60",
    "organamnist_224": "50747347e05c87dd3aaf92c49f9f3170",
}
ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right",
    "liver", "lung-left", "lung-right", "pancreas", "spleen",
)  # fmt: skip
LAYOUT = "train_images (N, H, W) or (N, H, W, 3), train_labels (N, 1), the same for test, and optionally val"
IMAGES_SUFFIX = "_images"


@register_dataset(*SETS)
def load_published(options: DatasetOptions) -> Dataset:
    """MedMNIST's CT slices of organs, 28 pixels wide or as the name says, downloaded on first use."""
    name = options.name
    hint = "or set config.data.name=npz and config.data.dir=FILE"
    path = cache_dir() / "data" / f"{name}.npz"
    return read_npz(fetch(URL.format(name=name), path, f"md5:{SETS[name]}", hint=hint), ORGANS)


@register_dataset("npz", fields=("range",), layout=LAYOUT)
def load_npz(options: DatasetOptions) -> Dataset:
    """Images in an npz file with the arrays of MedMNIST's files."""
    return read_npz(Path(options.folder), value_range=options.decoding.value_range)


def read_npz(path: Path, classes: tuple[str, ...] = (), value_range: ValueRange | None = None) -> Dataset:
    """Read an npz file with ``{train,val,test}_images`` and ``_labels``; grey is repeated to three channels.

    Splits may have any name in ``SPLIT_NAMES``, such as ``valid_images``; a single other split besides train is the
    test split. A warning reports an image in two splits, or with two labels in train.

    Args:
        path: path of the file.
        classes: K names; empty for the numbers 0 to K - 1.
        value_range: values that become 0 and 255, of images that are not uint8; None uses the minimum and maximum.

    Raises:
        UserError: no such file, a damaged one, other names, shapes or types, or labels that do not match.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no file {path}; set config.data.dir to an npz file with {LAYOUT}")
    arrays = _read_arrays(path)
    arrays, value_range = _scale_images(path, arrays, value_range)
    split_names = find_splits(
        [name.removesuffix(IMAGES_SUFFIX) for name in arrays if name.endswith(IMAGES_SUFFIX)], path
    )
    names = with_test_split(split_names)
    test_origin = "test" if "test" in split_names else names.get("test", "")
    class_names = classes or _default_classes(path, arrays.get(f"{names.get('train')}_labels"))
    splits = {split: _make_split(path, arrays, name, len(class_names)) for split, name in names.items()}
    if missing := {"train", "test"} - set(splits):
        raise UserError(f"{path} has no {max(missing)}_images; use an npz file with {LAYOUT}")
    labels = {split: split_data.labels for split, split_data in splits.items()}
    duplicates.report_duplicate_rows(
        path.stem, {split: arrays[f"{name}{IMAGES_SUFFIX}"] for split, name in names.items()}, labels
    )
    return Dataset(
        path.stem, splits["train"], splits["test"], class_names, test_origin, splits.get("validation"), value_range
    )


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file that are named after splits."""

    def check(key: str, dtype: np.dtype) -> None:
        if dtype.kind not in "biuf":
            raise ValueError(f"{key} has type {dtype}, not numbers")

    try:
        with zipfile.ZipFile(path) as archive:
            members = [(key, info) for key, info in npz_members(path, archive) if parse_split(key.rpartition("_")[0])]
            return {key: read_npy(key, archive, info, check) for key, info in members}
    except NPZ_ERRORS as error:
        raise UserError(f"cannot read {path} ({' '.join(str(error).split())}); use an npz file with {LAYOUT}") from None


def _default_classes(path: Path, labels: np.ndarray | None) -> tuple[str, ...]:
    """Return the numbers from 0 to the largest training label as class names."""
    count = int(labels.max()) + 1 if labels is not None and labels.dtype.kind in "iu" and labels.size else 1
    if labels is not None and count > labels.size:
        raise UserError(
            f"{path}: train has the label {count - 1:,}, so there would be more classes than its {labels.size:,} "
            "examples; number the classes 0 to K - 1"
        )
    return tuple(map(str, range(count)))


def _scale_images(
    path: Path, arrays: dict[str, np.ndarray], limits: ValueRange | None
) -> tuple[dict[str, np.ndarray], ValueRange | None]:
    """Return the arrays with images as uint8, and the value range used for that, None for uint8."""
    images = {name: array for name, array in arrays.items() if name.endswith(IMAGES_SUFFIX)}
    deep = {name: array for name, array in images.items() if array.dtype != np.uint8 and array.dtype.kind in "iuf"}
    if not deep:
        if limits:
            refuse_unused_range(path.name)
        return arrays, None
    if len(deep) < len(images):
        raise UserError(f"{path} has images of uint8 and of other types; save all with the same type")
    scale_range = limits or find_range(path.name, deep.values())
    print_range(path.name, sum(map(len, deep.values())), scale_range, bool(limits))
    return arrays | {name: to_uint8(array, scale_range) for name, array in deep.items()}, scale_range


def _make_split(path: Path, arrays: dict[str, np.ndarray], name: str, classes: int) -> Split:
    images, labels = arrays[f"{name}_images"], arrays.get(f"{name}_labels")
    colour = images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (images.ndim == 3 or colour) or not len(images):
        raise UserError(
            f"{path}: {name}_images has type {images.dtype} {images.shape}; save uint8 (N, H, W) or (N, H, W, 3)"
        )
    if labels is None or labels.size != len(images) or labels.dtype.kind not in "iu":
        given = "absent" if labels is None else f"{labels.dtype} {labels.shape}"
        raise UserError(
            f"{path}: {name}_labels is {given}, for {len(images)} images; save one integer per image, (N, 1)"
        )
    images = images if colour else np.broadcast_to(images[..., None], (*images.shape, 3))  # no copy
    return Split(images, class_indices(labels.reshape(-1), classes, f"{path}, {name}"))
