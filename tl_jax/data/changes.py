"""Whether the files of a data set have changed, for what is kept of it in memory."""

import contextlib
import hashlib
import os

from tl_jax.data.split_names import split_of
from tl_jax.data.walker import is_within

OWN_FILES = ("folder", "index", "npz", "voc", "coco", "tsv", "csv", "jsonl", "conll", "lines")  # data that users edit


def stamp(name: str, data_dir: str) -> str:
    """Return what changes if a file below ``data_dir`` does: a hash of all paths, sizes and times.

    Args:
        name: of the data, ``config.data.name``. Prepared sets, which nobody edits, have no stamp: "".
        data_dir: folder, or file, of the data; for a file all files beside it count.
    """
    if not data_dir or name not in OWN_FILES:
        return ""
    top = os.path.expanduser(data_dir)
    top = os.path.dirname(top) or "." if os.path.isfile(top) else top
    sha, seen, folders, root = hashlib.sha256(), set(), [top], os.path.realpath(top)
    while folders:
        folder = folders.pop()
        if (real := os.path.realpath(folder)) in seen:  # by a link, perhaps to a folder above
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_dir():
                        if not entry.is_symlink() or _is_followed(entry.path, top, root):
                            folders.append(entry.path)
                    else:
                        with contextlib.suppress(OSError):  # a link that leads nowhere
                            found = entry.stat()
                            sha.update(repr((entry.path, found.st_size, found.st_mtime_ns)).encode(errors="replace"))
        except OSError:  # whoever reads the files says what is wrong with them
            continue
    return sha.hexdigest()


def _is_followed(link: str, top: str, root: str) -> bool:
    """Whether a link to a folder is followed: not to one above or, below the folders of classes, to one outside.

    Those would take in whole disks. With ``data.outside`` they are read all the same, but their changes go unnoticed
    until the next start.
    """
    real, folder = os.path.realpath(link), os.path.dirname(link)
    laid_out = folder == top or (os.path.dirname(folder) == top and _holds_folders(os.path.basename(folder)))
    return is_within(real, root) or (laid_out and not is_within(root, real))


def _holds_folders(name: str) -> bool:
    return split_of(name) is not None or name in ("images", "annotations")
