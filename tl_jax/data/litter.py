"""Files and folders that systems and tools leave in data folders, which no reader takes for data."""

from pathlib import PurePath

NAMES = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__",
    "thumbs.db", "desktop.ini",
}  # fmt: skip


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden (``.x``, ``._x``) or left by a system, not by a user."""
    return name.startswith(".") or name.lower() in NAMES


def has_litter(path: PurePath) -> bool:
    """Whether any part of a path, given relative to the data folder, is litter."""
    return any(is_litter(part) for part in path.parts)
