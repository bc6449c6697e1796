"""Download files and tar.gz archives: resumable, verified by hash, and moved into place atomically."""

import contextlib
import fcntl
import functools
import gzip
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import pooch
import requests
from tqdm import tqdm

from tl_jax.utils.errors import UserError
from tl_jax.utils.log import warn

TIMEOUT = 30.0  # seconds without a byte after which the connection is considered broken
MAX_TRIES = 3  # consecutive tries without any bytes
RETRY_WAIT = 1.0  # seconds between tries
CHUNK = 1 << 14  # bytes; at most one chunk is lost when the connection breaks
CONNECTION_ERRORS = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


def cache_dir() -> Path:
    """Return the folder for downloads and caches: ``$TL_JAX_CACHE``, or ``~/.cache/tl_jax``. It may not exist yet.

    Without a home folder, as in a container with only a user number, it is in the temporary folder.
    """
    if os.environ.get("TL_JAX_CACHE"):
        return Path(os.environ["TL_JAX_CACHE"]).expanduser()
    home = os.path.expanduser("~")
    return Path(home) / ".cache" / "tl_jax" if home not in ("~", "", "/") else _fallback_cache_dir()


@functools.cache  # warns once
def _fallback_cache_dir() -> Path:
    folder = Path(tempfile.gettempdir()) / f"tl_jax-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        is_own = folder.stat().st_uid == os.getuid()  # cached programs are executed
    except OSError:
        is_own = False
    if not is_own:
        raise UserError(f"no home folder, and {folder} cannot be used; set $TL_JAX_CACHE to your own folder")
    warn(f"no home folder: caches are in {folder}; set $TL_JAX_CACHE to choose another")
    return folder


def fetch(url: str, path: Path, digest: str, *, progress: bool = True, hint: str = "") -> Path:
    """Download ``url`` to ``path`` unless the right file exists, and return ``path``.

    An unfinished download stays at ``path`` + ".part" and is resumed if the server supports it; a file with the wrong
    hash is kept at ``path`` + ".bad". Processes that want the same file wait for each other.

    Args:
        url: http or https address.
        path: path of the file; missing folders are created.
        digest: "md5:HEX" (32 digits) or "sha256:HEX" (64 digits, or at least the first 8); "" if the publisher gives
            none, which skips the check.
        progress: whether to show a progress bar on stderr.
        hint: alternative for the message of a failed download, such as "or pass config.x=FILE".

    Raises:
        UserError: no connection, an HTTP error, a wrong hash (also of an existing ``path``, which is not changed), a
            folder that cannot be written, or a malformed digest.
    """
    path = Path(path)
    _hash_algorithm(digest)
    if _is_downloaded(url, path, digest):
        return path
    partial, rejected = (path.with_name(path.name + suffix) for suffix in (".part", ".bad"))
    with locked(path):
        if _is_downloaded(url, path, digest):  # another process fetched it meanwhile
            return path
        try:
            complete = digest and partial.is_file() and _file_digest(partial, digest).startswith(digest)
            if not complete:
                _download(url, partial, progress)
            actual = _file_digest(partial, digest) if digest else ""
            if not actual.startswith(digest):
                os.replace(partial, rejected)
                raise UserError(
                    f"{url}: hash {actual}, not {digest} (file kept at {rejected}); run again to download it, or put "
                    f"the right file at {path}"
                )
            os.replace(partial, path)
        except requests.RequestException as error:  # a subclass of OSError
            alternative = f"put the file at {path} {hint}".strip()
            raise UserError(f"cannot download {url} ({_reason(error)}); try again later, or {alternative}") from error
        except OSError as error:
            where = error.filename2 or error.filename or partial
            raise UserError(
                f"cannot write {where} ({error.strerror or error}); free disk space, or choose another folder"
            ) from error
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time create ``path``; others wait. Creates missing folders.

    The lock is a file ``path`` + ".lock", removed afterwards; the system releases it when its process ends.

    Raises:
        UserError: the folder cannot be created or written to.
    """
    lock = path.with_name(path.name + ".lock")
    file = None
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        while file is None:
            file = _lock(lock)
    except OSError as error:
        raise UserError(
            f"cannot write in {lock.parent} ({error.strerror or error}); choose a folder that you can write to"
        ) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is released, see _lock
        file.close()


def _lock(lock: Path) -> BinaryIO | None:
    """Open and lock the file; return None if its previous holder has removed it meanwhile."""
    file = open(lock, "wb")
    with contextlib.suppress(OSError):  # on a file system without locks, go on without
        fcntl.flock(file, fcntl.LOCK_EX)
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            return file
    file.close()
    return None


def _hash_algorithm(digest: str) -> str:
    """Return the algorithm of "md5:HEX" or "sha256:HEX"."""
    if digest and not re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{8,64}", digest):
        raise UserError(
            f"digest {digest!r} is malformed; write md5:HEX (32 digits) or sha256:HEX (8 to 64), lower case"
        )
    return digest.partition(":")[0]


def _file_digest(path: Path, digest: str) -> str:
    """Return the digest "ALGORITHM:HEX" of a file, with the algorithm of ``digest``."""
    algorithm = _hash_algorithm(digest)
    return f"{algorithm}:{pooch.file_hash(path, alg=algorithm)}"


def _is_downloaded(url: str, path: Path, digest: str) -> bool:
    """Return whether the right file is at ``path``; raise a UserError for a wrong one."""
    if not path.is_file() or not digest:
        return path.is_file()
    actual = _file_digest(path, digest)
    if not actual.startswith(digest):
        raise UserError(f"{path}: hash {actual}, not {digest}; move it away to download {url}, or replace it")
    return True


def _download(url: str, partial: Path, progress: bool) -> None:
    """Append the missing bytes of ``url`` to ``partial``; retry as long as a try brings any bytes."""
    failures = 0
    with open(partial, "ab") as file:
        max_size = file.tell()
        try:
            while True:
                try:
                    return _request(url, file, progress)
                except CONNECTION_ERRORS:
                    failures = 1 if file.tell() > max_size else failures + 1
                    if failures >= MAX_TRIES:
                        raise
                    max_size = max(max_size, file.tell())
                    time.sleep(RETRY_WAIT)
        finally:
            if file.tell() == 0:
                partial.unlink()


def _request(url: str, file: BinaryIO, progress: bool) -> None:
    """Request the bytes of ``url`` from the end of the file once, and append them."""
    start = file.tell()

    def restart_unless_resumed(response: requests.Response, **_: object) -> None:
        # A server without range requests answers 200 with the whole file: start over.
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if response.ok and not response.is_redirect and not (response.status_code == 206 and resumed):
            file.seek(0)
            file.truncate()

    # "identity": requests would decompress another encoding, whose ranges count compressed bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    name = Path(file.name).stem
    hide_bar = not (progress and sys.stderr.isatty())  # not in log files
    with tqdm(desc=name, total=1, unit="B", unit_scale=True, mininterval=0.5, disable=hide_bar, leave=False) as bar:
        downloader = pooch.HTTPDownloader(
            bar,  # pyright: ignore[reportArgumentType]  # pooch accepts any bar
            CHUNK,
            timeout=TIMEOUT,
            headers=headers,
            hooks={"response": restart_unless_resumed},
        )
        try:
            downloader(url, file, None)
        except requests.HTTPError as error:
            status = None if error.response is None else error.response.status_code
            if not (start and status == 416):  # 416: no bytes are missing
                raise


def _reason(error: requests.RequestException) -> str:
    """Return the short reason of a failed request."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT:.0f} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke"
    cause = getattr(error.args[0], "reason", error) if error.args else error  # urllib3 wraps the cause
    return str(cause).replace("\n", " ").rpartition(": ")[2] or type(error).__name__


ARCHIVE_ERRORS = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error)


@contextlib.contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar.gz; raise a UserError with its name for any error while it is read."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            yield tar
    except tarfile.FilterError as error:
        raise UserError(f"{path}: unsafe content ({error}); use the publisher's archive") from error
    except ARCHIVE_ERRORS as error:
        raise UserError(f"{path}: damaged archive ({error}); delete it to download it again") from error


def fetch_archive(url: str, digest: str, folder: Path, *, hint: str = "") -> Path:
    """Return ``folder`` with the content of a tar.gz, downloaded and unpacked on first use.

    The archive is kept next to the folder. Processes that want the same folder wait for each other, and the remains of
    a killed one are removed. An existing folder is considered complete.

    Args:
        url, digest, hint: as in ``fetch``.
        folder: folder for the content; missing folders are created.

    Raises:
        UserError: a failed download, a damaged archive, one with links, devices or paths outside the folder, or a
            folder that cannot be written.
    """
    if not folder.is_dir():
        with locked(folder):
            if not folder.is_dir():  # else another process made it meanwhile
                archive = folder.parent / Path(urlsplit(url).path).name
                _unpack(fetch(url, archive, digest, hint=hint), folder)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise UserError(
            f"Python before 3.11.4 cannot unpack archives safely; unpack {archive} by hand and set config.data.dir to "
            "the folder, or use a newer Python"
        )
    staged = folder.with_name(f"incomplete.{folder.name}")
    try:
        shutil.rmtree(staged, ignore_errors=True)  # its writer was killed, as we hold the lock
        with open_tar(archive) as tar:
            tar.extractall(staged, filter=_safe_member)
        os.replace(staged, folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder} ({error.strerror or error}); free disk space, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _safe_member(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Accept files and folders within ``folder`` only, with restricted permissions."""
    if not (member.isfile() or member.isdir()):
        raise tarfile.SpecialFileError(member)
    return tarfile.data_filter(member, folder)
