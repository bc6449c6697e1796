"""Transfer of a policy to another environment: which leaves are loaded, and which are initialized if shapes differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_jax.models.registry import PretrainedSpec
from tl_jax.pretrained import formats
from tl_jax.pretrained.convert import Converted, leaf_mismatches, merge
from tl_jax.transfer import optimizer
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError, nearest

# Transferable components, and their leaves.
COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "trunk": ("params/conv1/", "params/layer"),
    "policy": ("params/head/policy/", "params/head/log_std"),
    "value": ("params/head/value/",),
    "normalizer": ("batch_stats/observations/",),
    "optimizer": (),  # Adam's moments of all leaves, see ``optimizer.adam_moments``
}
DEFAULT_COMPONENTS = ("trunk", "policy", "value", "normalizer")


class SourcePolicy(NamedTuple):
    """A policy from a file.

    Attributes:
        leaves: by path, ``params/...``, ``batch_stats/observations/...`` and ``optimizer/...``.
        options: options of its network.
        world: environment in which it was trained.
        spaces: spaces of that environment, see ``Env.spaces``.
    """

    leaves: Mapping[str, np.ndarray]
    options: Mapping[str, Any]
    world: str
    spaces: Mapping[str, Any]


def load(path: str | Path) -> SourcePolicy:
    """Load a policy written by ``--mode=export``, from its file or the bundle's folder.

    Raises:
        UserError: The file is missing, damaged, or holds no policy.
    """
    path = formats.weights_path(Path(path).expanduser())
    spec, facts = formats.read_spec(path)
    if spec.model != "policy":
        raise UserError(
            f"{path}: holds the network {spec.model!r}, not a policy; pass the export of a run with task=policy"
        )
    if not facts.get("world") or "spaces" not in facts:
        raise UserError(f"{path}: the facts name no environment or no spaces; export the run again")
    return SourcePolicy(formats.read_native(path), spec.options, facts["world"], facts["spaces"])


def save(
    path: Path, variables: Mapping[str, Any], options: Mapping[str, Any], facts: Mapping[str, Any], moments: Any = None
) -> None:
    """Write a policy for ``load``.

    Args:
        path: output file.
        variables: variables of the policy.
        options: options of its network.
        facts: ``world`` and ``spaces``, and further facts to store.
        moments: optimizer moments, see ``transfer.optimizer.adam_moments``; None if unavailable.
    """
    spec = PretrainedSpec(model="policy", source="tl_jax", options=options, num_classes=0, image_size=0, scaling="")
    optimizer_state = {"optimizer": moments} if moments else {}
    saved = {"params": variables["params"], "batch_stats": variables["batch_stats"], **optimizer_state}
    formats.save_native(path, saved, spec, facts)


def load_components(
    variables: Mapping[str, Any],
    source: SourcePolicy,
    components: Sequence[str],
    allow_shape_mismatch: bool,
    spaces: Any,
) -> Any:
    """Return the variables with components loaded from the source policy, and the paths of leaves not loaded.

    With ``optimizer``, the variables also have ``moments``, the initial state of the optimizer.

    Args:
        variables: randomly initialized ``params`` and ``batch_stats``.
        source: source policy.
        components: keys of ``COMPONENTS``.
        allow_shape_mismatch: whether leaves whose shapes depend on the spaces (first layer and heads) may stay random.
        spaces: spaces of this environment, for messages.

    Raises:
        UserError: A component is unknown, the networks differ, or the spaces differ without ``allow_shape_mismatch``.
    """
    for name in components:
        if name not in COMPONENTS:
            raise UserError(f"config.init.load_parts: unknown component {name!r}; {nearest(name, COMPONENTS)}")
    flat = tree.flatten({k: v for k, v in variables.items() if k == "params"})
    stats = variables["batch_stats"].get("observations", {})
    flat |= {f"batch_stats/observations/{name}": leaf for name, leaf in stats.items()}
    prefixes = tuple(prefix for name in components for prefix in COMPONENTS[name])
    chosen = {path: leaf for path, leaf in flat.items() if path.startswith(prefixes)}
    shapes = {path: source.leaves[path].shape for path in chosen if path in source.leaves}
    mismatched = {path for path, leaf in chosen.items() if shapes.get(path) != leaf.shape}
    fixed = sorted(path for path in mismatched if not _depends_on_spaces(path, flat))
    if fixed:
        source_shape, target_shape = shapes.get(fixed[0], "missing there"), chosen[fixed[0]].shape
        raise UserError(
            f"config.model.options: the source's network differs at {fixed[0]} ({source_shape}, here {target_shape}); "
            f"use its options {dict(source.options)}"
        )
    if mismatched and not allow_shape_mismatch:
        raise UserError(
            f"{source.world}: its spaces {dict(source.spaces)} differ from {dict(spaces)} here; set "
            f"config.init.allow_shape_mismatch=True to initialize {', '.join(sorted(mismatched))} and load the rest"
        )
    # Statistics of different observations cannot be combined.
    if {p for p in mismatched if p.startswith("batch_stats/")}:
        mismatched |= {p for p in chosen if p.startswith("batch_stats/")}
    template = {path: leaf for path, leaf in chosen.items() if path not in mismatched}
    source_leaves = {path: leaf for path, leaf in source.leaves.items() if path in template}
    merged = tree.flatten(
        merge(tree.unflatten(template), Converted(source_leaves, {p: p for p in source_leaves}, {}, [], [], []))
    )
    new = {**flat, **merged}
    params = tree.unflatten({p.removeprefix("params/"): v for p, v in new.items() if p.startswith("params/")})
    observations = {name: new[f"batch_stats/observations/{name}"] for name in stats}
    batch_stats = {"observations": observations} if stats else {}
    not_loaded = tuple(sorted(set(flat) - set(template)))
    extra = {"moments": _load_moments(source, not_loaded, params)} if "optimizer" in components else {}
    return {"params": params, "batch_stats": batch_stats, **extra}, not_loaded


def _load_moments(source: SourcePolicy, not_loaded: Sequence[str], params: Any) -> dict[str, Any]:
    """Return the moments of the source's optimizer. Their step count is shared, so all leaves must be loaded."""
    new_leaves = [path for path in not_loaded if path.startswith("params/")]
    if new_leaves:
        raise UserError(
            f"config.init.load_parts: optimizer needs the whole network, but {', '.join(new_leaves)} would be new; add "
            "trunk, policy and value, or omit optimizer"
        )
    moments = {p.removeprefix("optimizer/"): leaf for p, leaf in source.leaves.items() if p.startswith("optimizer/")}
    expected = {f"{kind}/{path}": leaf for kind in optimizer.MOMENTS for path, leaf in tree.flatten(params).items()}
    missing = [
        path for path in tree.flatten(params) if any(f"{kind}/{path}" not in moments for kind in optimizer.MOMENTS)
    ]
    if missing:
        raise UserError(
            f"config.init.load_parts: the source has no optimizer state of {', '.join(missing)}; export a run of Adam "
            "that trained all layers, or omit optimizer"
        )
    mismatches = [text for path, leaf in expected.items() for text in leaf_mismatches(path, moments[path], leaf)]
    if mismatches or "count" not in moments or moments["count"].ndim:
        reason = (*mismatches, "count is not a number")[0]
        raise UserError(
            f"config.init.load_parts: the optimizer state does not fit the network: {reason}"
            "; export the run again, or omit optimizer"
        )
    return tree.unflatten({path: moments[path] for path in (*expected, "count")})


def _depends_on_spaces(path: str, flat: Mapping[str, Any]) -> bool:
    """Return whether the shape of a leaf depends on the spaces of the environment."""
    first = "params/conv1/" if any(p.startswith("params/conv1/") for p in flat) else "params/layer1/"
    return path.startswith((first, "params/head/policy/", "params/head/log_std", "batch_stats/"))
