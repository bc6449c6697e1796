"""Published tar.gz archives: opened with errors that can be read, and unpacked into a folder whole or not at all."""

import contextlib
import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tl_jax.errors import UserError
from tl_jax.fetch import fetch, locked

DAMAGED = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar.gz; what turns out to be wrong with it while it is read is a UserError that names it."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            yield tar
    except tarfile.FilterError as error:
        raise UserError(f"{path} is refused ({error}): take the archive of its publisher") from error
    except DAMAGED as error:
        raise UserError(f"{path} is a damaged archive ({error}): delete it, it is then downloaded again") from error


def unpacked(url: str, digest: str, folder: Path, *, hint: str = "") -> Path:
    """Return ``folder`` with the content of a tar.gz, which is downloaded and unpacked on the first use.

    The archive stays beside the folder. Processes that want the same folder wait for each other, and what a killed
    one left is removed. A folder that is there is taken for whole.

    Args:
        url, digest, hint: as ``fetch`` takes them.
        folder: where its files go; missing folders are made.

    Raises:
        UserError: a failed download, a damaged archive, one with links, devices or paths that lead out of the folder,
            or a folder that cannot be written.
    """
    if not folder.is_dir():
        with locked(folder):
            if not folder.is_dir():  # else another process made it while we waited
                archive = folder.parent / Path(urlsplit(url).path).name
                _unpack(fetch(url, archive, digest, hint=hint), folder)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise UserError(
            f"Python before 3.11.4 cannot unpack archives safely: unpack {archive} by hand and pass the folder as "
            "--config.data.dir, or use a newer Python"
        )
    staged = folder.with_name(f"incomplete.{folder.name}")
    try:
        shutil.rmtree(staged, ignore_errors=True)  # its writer was killed: we hold the lock
        with opened(archive) as tar:
            tar.extractall(staged, filter=_plain)
        os.replace(staged, folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder} ({error.strerror or error}): free the disk or choose another folder"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Let through files and folders that stay within ``folder``, with no more rights than files need."""
    if not (member.isfile() or member.isdir()):
        raise tarfile.SpecialFileError(member)
    return tarfile.data_filter(member, folder)
