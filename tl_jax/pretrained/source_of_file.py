"""Which library wrote a weights file, by its ending and by the names of its arrays."""

from pathlib import Path

import numpy as np

from tl_jax.models.rules import split_arrays
from tl_jax.pretrained import formats, hub, prefixes
from tl_jax.pretrained.catalog import conversion_table, known_sources
from tl_jax.pretrained.convert import Matcher
from tl_jax.utils.errors import UserError

_KERAS_ENDINGS = (".h5", ".hdf5", ".keras", ".npz")


def source_of_file(model: str, path: Path) -> str:
    """Return the source of the weights of ``model`` in a file or folder; see ``catalog.known_sources``.

    Without a source whose names fit, it is the first that writes such files, and loading says what does not fit.
    """
    file = hub.file_in_folder(path)
    if file.is_dir() and not formats.is_run(file) and not (file / formats.BUNDLE_FILE).is_file():
        raise UserError(f"{file}: no bundle, and no model.safetensors or pytorch_model.bin; pass the weights file")
    if file.is_dir() or (file.suffix == ".safetensors" and "spec" in formats.read_metadata(file)):
        return "tl_jax"
    if file.suffix in _KERAS_ENDINGS:
        return "keras"
    sources = [source for source in known_sources(model) if source not in ("keras", "tl_jax")]
    if len(sources) < 2:
        return next(iter(sources), "tl_jax" if file.suffix == ".safetensors" else "keras")
    arrays = formats.read_arrays(file)
    return max(sources, key=lambda source: _count_known(arrays, model, source))


def _count_known(arrays: dict[str, np.ndarray], model: str, source: str) -> int:
    """Return how many arrays of a file a source's table has names for."""
    table = conversion_table(model, source)
    parts = split_arrays(arrays, table)
    try:
        parts = prefixes.strip_prefix(parts, table, "").arrays
    except UserError:  # it holds the network twice, which loading says
        pass
    return Matcher(table).count_known(parts)
