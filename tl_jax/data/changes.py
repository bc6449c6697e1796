"""Whether the files of a data set have changed, for what is kept of it in memory."""

import hashlib
import os

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
    sha, seen, folders = hashlib.sha256(), set(), [os.path.dirname(top) or "." if os.path.isfile(top) else top]
    while folders:
        folder = folders.pop()
        if (real := os.path.realpath(folder)) in seen:  # by a link, perhaps to a folder above
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_dir():
                        folders.append(entry.path)
                    else:
                        found = entry.stat()
                        sha.update(repr((entry.path, found.st_size, found.st_mtime_ns)).encode(errors="replace"))
        except OSError:  # whoever reads the files says what is wrong with them
            continue
    return sha.hexdigest()
