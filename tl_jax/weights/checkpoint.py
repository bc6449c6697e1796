"""Find the state dict in what ``torch.save`` wrote: it may be the whole file, or one entry of a training checkpoint."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tl_jax.errors import UserError
from tl_jax.weights.merge import listed
from tl_jax.weights.unpickle import Budget, Skipped, Tensor, refusal

# Entries in the order in which they are preferred: averaged weights first, as timm does (``use_ema=True``).
EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
NAMES = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "backbone")
TRAINING = re.compile(r".*(optim|sched|scaler|callbacks|loops|queue).*|amp", re.IGNORECASE)  # no network of any name
_DEPTH = 3  # of entries within entries: {"ema": {"module": {...}}}
_TENSORS = re.compile(r"torch\..*(rebuild|Tensor|Parameter).*")  # classes of tensors, which must not go missing
_KINDS = {"_rebuild_qtensor": " (a quantized tensor)", "_rebuild_sparse_tensor": " (a sparse tensor)"}


def state_dict(path: Path, tree: Any, budget: Budget) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of the network by name, and lines that say what was taken and what was skipped.

    Args:
        path: of the file, for messages.
        tree: what the pickle holds.
        budget: of the items that are looked at: a dictionary of dictionaries may hold the same one many times.

    Raises:
        UserError: no state dict, several of which none has a usual name, a tensor of a kind that is not read, or more
            to look at than the budget allows.
    """
    found = {"/".join(keys): entry for keys, entry in _entries(tree, budget)}
    if not found:
        raise _none(path, tree, budget)
    sizes = {name: sum(map(_tensor_like, entry.values())) for name, entry in found.items()}
    name = _preferred(path, sizes)
    taken = found[name]
    tensors = {key: value for key, value in taken.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for key, value in taken.items():
        if isinstance(value, Skipped) and _TENSORS.fullmatch(value.name):
            raise refusal(path, f"{str(key)[:80]!r}, a {_described(value)}")
    notes = []
    others = _beside(name, found, tree)
    beside = f"; left out: {others}" if others else ""
    if name:
        ema = ", the averaged weights" if name.split("/")[0] in EMA else ""
        notes.append(f"{path.name}: took {name!r}{ema}{beside}")
    elif beside:
        notes.append(f"{path.name}: took the tensors at the top{beside}")
    if skipped := [str(key) for key in taken if key not in tensors and not isinstance(taken[key], Mapping)]:
        notes.append(f"{path.name}: skipped {_listed(skipped)}, which are no tensors")
    return tensors, tuple(notes)


def _beside(name: str, found: Mapping[str, dict[Any, Any]], tree: Any) -> str:
    """Return the names of what might have been taken instead: other state dicts, tensors at the top, averages."""
    others = [other for other in found if other not in ("", name)]
    if name and "" in found:
        others += [str(key) for key, value in found[""].items() if _tensor_like(value)]
    if isinstance(tree, dict):
        others += [
            key for key in EMA if isinstance(tree.get(key), Skipped) or (key in tree and key not in _tops(found))
        ]
    return _listed(others) if others else ""


def _tops(names: Iterable[str]) -> set[str]:
    return {name.split("/")[0] for name in names}


def _entries(tree: Any, budget: Budget, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """Yield the mappings that hold tensors by name, each with the keys that lead to it."""
    if not isinstance(tree, dict) or (keys and TRAINING.fullmatch(keys[-1])):
        return
    budget.spend(len(tree) + sum(map(len, keys)))
    if any(isinstance(key, str) and _tensor_like(value) for key, value in tree.items()):
        yield keys, tree
    if len(keys) < _DEPTH:
        for key, value in tree.items():
            if isinstance(key, str):
                yield from _entries(value, budget, (*keys, key))


def _tensor_like(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, Skipped) and bool(_TENSORS.fullmatch(value.name)))


def _preferred(path: Path, sizes: Mapping[str, int]) -> str:
    """Return the name of the entry to take: averaged weights, one of the usual names, or the only one there is.

    Averages of parameters alone, without the statistics of BatchNorm, are fewer than the network's tensors.
    """
    usual = [top for top in (*EMA, *NAMES) if top in _tops(sizes)]
    plain = max((sizes[name] for name in sizes if name.split("/")[0] in NAMES), default=0)
    for top in usual:
        inside = {name: size for name, size in sizes.items() if name.split("/")[0] == top}
        most = max(inside.values())
        if top in EMA and most < plain:
            continue
        largest = [name for name, size in inside.items() if size == most]
        if len(largest) == 1:
            return largest[0]
        below = {name.partition("/")[2]: most for name in largest}
        return f"{top}/{_preferred(path, below)}" if "" not in below else top
    largest_of_all = max(sizes, key=lambda name: sizes[name])
    if 10 * (sum(sizes.values()) - sizes[largest_of_all]) <= sizes[largest_of_all]:  # beside it a queue or a counter
        return largest_of_all
    raise _several(path, list(sizes))


def _several(path: Path, names: list[str]) -> UserError:
    return UserError(
        f"{path}: holds several state dicts ({_listed(names)}); save the one to start from alone, as "
        f'torch.save(torch.load(FILE)["{names[0].split("/")[0]}"], NEW_FILE)'
    )


def _none(path: Path, tree: Any, budget: Budget) -> UserError:
    """Return the error for a file without any tensor by name; it names what stands where one was expected."""
    skipped = next(_skipped(tree, budget), None)
    if skipped:
        return refusal(path, _described(skipped))
    return UserError(f"{path}: holds no state dict; save it with torch.save(model.state_dict(), path)")


def _skipped(tree: Any, budget: Budget, depth: int = 0) -> Iterator[Skipped]:
    if isinstance(tree, Skipped):
        yield tree
    elif isinstance(tree, dict) and depth < _DEPTH:
        budget.spend(len(tree))
        for value in tree.values():
            yield from _skipped(value, budget, depth + 1)


def _described(skipped: Skipped) -> str:
    return skipped.name + _KINDS.get(skipped.name.rpartition(".")[2], "")


def _listed(names: list[str]) -> str:
    return listed([repr(name[:80]) for name in names])
