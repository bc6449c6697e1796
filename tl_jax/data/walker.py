"""Find the files of a data set in its folder, without those that systems and tools create.

The data folder, and the folders of splits and classes in it, may be links to other disks. Other links, and paths in
files, may come with untrusted data: they may not lead outside unless ``outside`` is set.
"""

import os
import unicodedata
from pathlib import Path, PurePath

from tl_jax.data.decode import ENDINGS, is_image
from tl_jax.utils.errors import UserError
from tl_jax.utils.log import warn_once

IGNORED_NAMES = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__",
    "thumbs.db", "desktop.ini",
}  # fmt: skip


def is_ignored(name: str) -> bool:
    """Return whether a file or folder name is hidden (``.x``, ``._x``) or created by a system."""
    return name.startswith(".") or name.lower() in IGNORED_NAMES


def has_ignored_part(path: PurePath) -> bool:
    """Return whether any part of a path, relative to the data folder, is ignored."""
    return any(is_ignored(part) for part in path.parts)


HIDDEN, ABOVE, ELSEWHERE = "hidden or system", "linked to a folder above it", "linked to a folder outside it"
LINKED_TWICE = "linked to a folder that another link leads to"
KINDS_SHOWN = 6  # kinds of files in a message


class Walk:
    """A walk through the folders of one data set, which records the skipped files.

    Attributes:
        top: folder of the data set; messages give paths relative to it.
        skipped: kind -> skipped paths; a kind is a suffix such as ".tif", or a description.
        has_broken_links: whether a link with the suffix of an image is broken; such links are listed as images.
    """

    def __init__(self, top: Path, outside: bool = False):
        """Start at ``top``; links below a class folder may lead outside if ``outside``."""
        self.top, self.outside = top, outside
        self.root = os.path.realpath(top)
        self.skipped: dict[str, list[Path]] = {}
        self.has_broken_links = False

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the folders and the image files directly in ``folder``, sorted by name.

        Raises:
            UserError: the folder cannot be read.
        """
        entries = self._scan(folder)
        return [path for path, is_folder in entries if is_folder], [
            path for path, is_folder in entries if not is_folder
        ]

    def images(self, folder: Path) -> list[Path]:
        """Return all image files in ``folder``, searched recursively and sorted by path.

        Links to folders are followed, each folder once, except to a folder above, which would not terminate, and,
        unless ``outside``, to one that is neither in ``folder`` nor in ``top``.

        Raises:
            UserError: a folder cannot be read.
        """
        real = os.path.realpath(folder)
        return self._images(folder, real, frozenset({real, *map(str, Path(real).parents)}), set())

    def _images(self, folder: Path, root: str, ancestors: frozenset[str], visited: set[str]) -> list[Path]:
        files: list[Path] = []
        for path, is_folder in self._scan(folder):
            if not is_folder:
                files.append(path)
            elif not path.is_symlink():
                files += self._images(path, root, ancestors | {os.path.realpath(path)}, visited)
            elif (real := os.path.realpath(path)) in ancestors:
                self.skip(ABOVE, path)
            elif not (self.outside or is_within(real, root) or is_within(real, self.root)):
                self.skip(ELSEWHERE, path)
            elif real in visited:
                self.skip(LINKED_TWICE, path)
            else:
                visited.add(real)
                files += self._images(path, root, ancestors | {real, *map(str, Path(real).parents)}, visited)
        return files

    def skip(self, kind: str, path: Path) -> None:
        """Record that ``path`` is skipped."""
        self.skipped.setdefault(kind, []).append(path)

    def describe_skipped(self, folder: Path) -> str:
        """Return the skipped files below ``folder``, such as "10 .tif, 2 .gif"; "" for none."""
        counts = {kind: sum(folder in path.parents for path in paths) for kind, paths in self.skipped.items()}
        return ", ".join(f"{count} {kind}" for kind, count in _by_count(counts) if count)

    def unskip(self, path: Path) -> None:
        """Remove ``path`` from the skipped files."""
        remaining = {
            kind: [skipped_path for skipped_path in paths if skipped_path != path]
            for kind, paths in self.skipped.items()
        }
        self.skipped = {kind: paths for kind, paths in remaining.items() if paths}

    def report(self) -> None:
        """Warn about skipped files, once per data set."""
        if not self.skipped:
            return
        kinds = _by_count({kind: len(paths) for kind, paths in self.skipped.items()})
        described = [f"{count} {kind} ({self._first(kind)})" for kind, count in kinds[:KINDS_SHOWN]]
        more = [f"{len(kinds) - KINDS_SHOWN} other kinds"] if len(kinds) > KINDS_SHOWN else []
        formats = f"; supported images are {', '.join(ENDINGS)}; convert other formats"
        advice = formats if any(map(_is_ending, kinds)) else ""
        advice += "; set config.data.outside=True to read folders outside it" if ELSEWHERE in self.skipped else ""
        warn_once(f"{self.top}: not read: {', '.join(described + more)}{advice}")

    def _first(self, kind: str) -> str:
        paths = sorted(self.skipped[kind], key=lambda path: (len(path.parts), path))
        return str(paths[0].relative_to(self.top)) + (", ..." if len(paths) > 1 else "")

    def _scan(self, folder: Path) -> list[tuple[Path, bool]]:
        """Return the folders and image files in a folder, sorted by name, and whether each is a folder."""
        try:
            with os.scandir(folder) as entries:
                entries_found = [(entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries]
        except OSError as error:
            raise UserError(f"cannot read {folder} ({error.strerror}); check the path and its permissions") from error
        children = []
        for name, is_folder, linked in sorted(entries_found):
            path = folder / name
            if is_ignored(name):
                self.skip(HIDDEN, path)
            elif is_folder and linked and is_within(self.root, os.path.realpath(path)):
                self.skip(ABOVE, path)
            elif is_folder or is_image(path):
                children.append((path, is_folder))
                self.has_broken_links |= linked and not path.exists()
            else:
                self.skip(path.suffix.lower() or "without suffix", path)
        return children


class PathGuard:
    """Checks that files named in the data are within the data folder after resolving links."""

    def __init__(self, top: Path, outside: bool):
        """Set ``top`` as the data folder; ``outside`` allows files anywhere."""
        self.top, self.outside = top, outside
        self._root = os.path.realpath(top)
        self._folders: dict[Path, str] = {}  # cached, as resolving all would take seconds

    def check(self, file: Path, where: object, place: Path | None = None) -> Path:
        """Return ``file`` if it may be read.

        Args:
            file: an existing file.
            where: the file, optionally with a line, that names it.
            place: folder of the layout in which it was found; it may be a link to another disk.

        Raises:
            UserError: the file is neither in the data folder nor in ``place``.
        """
        if self.outside:
            return file
        real = os.path.realpath(file) if file.is_symlink() or ".." in file.parts else self._folder(file.parent)
        if is_within(real, self._root) or (place and is_within(real, self._folder(place))):
            return file
        raise UserError(
            f"{where}: {file} is outside {self.top}, and untrusted data could name any file; correct it, or set "
            "config.data.outside=True if you trust the data"
        )

    def _folder(self, folder: Path) -> str:
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return self._folders[folder]


def is_within(path: str, folder: str) -> bool:
    """Return whether a path is a folder or in it; both without links."""
    return path == folder or path.startswith(os.path.join(folder, ""))


def subfolders(folder: Path) -> list[Path]:
    """Return the subfolders of a folder, sorted by name, without ignored ones."""
    return Walk(folder).entries(folder)[0]


def normalize_unicode(name: str) -> str:
    """Return a name in one Unicode form (NFC): systems store the "é" of "café" as one or two characters."""
    return unicodedata.normalize("NFC", name)


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file of ``name``, a path relative to ``folder``, in any Unicode form; None for none."""
    if os.path.isfile(path := folder / name):  # False for too long a name, for which Path raises
        return path
    path = folder
    for part in Path(name).parts:
        forms = dict.fromkeys((part, normalize_unicode(part), unicodedata.normalize("NFD", part)))
        existing = next((path / form for form in forms if os.path.exists(path / form)), None)
        if existing is None:
            return None
        path = existing
    return path if path.is_file() else None


def _by_count(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _is_ending(kind: tuple[str, int]) -> bool:
    return kind[0].startswith(".")
