"""``load``: weights file, model and facts put together into something that can be applied to pictures."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from tl_jax import fetch, models, tree
from tl_jax.data import preprocess
from tl_jax.errors import UserError
from tl_jax.specs import PretrainedSpec
from tl_jax.weights import catalog, readers
from tl_jax.weights.merge import MergeError, merge
from tl_jax.weights.rules import convert


class Pretrained(NamedTuple):
    """A model with its weights and the facts about them.

    Attributes:
        model: linen module; ``model.apply(variables, x, train=False)`` gives ``(logits, endpoints)``.
        variables: ``{"params": ..., "batch_stats": ...}``, float32.
        spec: facts of the weights.
        new_head: whether the head was drawn at random instead of loaded.
        path: the file that was read, None for random weights.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    spec: PretrainedSpec
    new_head: bool
    path: Path | None

    def preprocess(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Turn uint8 pictures (N, H, W, 3), RGB, into network inputs float32 (N, size, size, 3)."""
        images = images if isinstance(images, jax.Array) else np.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise UserError(f"preprocess takes uint8 (N, H, W, 3), not {images.dtype} {tuple(images.shape)}")
        fitted = preprocess.fit(jnp.asarray(images), self.spec.image_size, self.spec.crop, self.spec.interpolation)
        return preprocess.scale(fitted, self.spec.scaling)


def load(
    name: str,
    source: str = "keras",
    path: str | Path | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    *,
    head: str = "auto",
    seed: int = 0,
    **options: Any,
) -> Pretrained:
    """Build ``name`` and fill it with weights of ``source``.

    Args:
        name: model name, see ``tl_jax.models.names()``.
        source: "keras", "torchvision", or "tl_jax" (this project's own safetensors).
        path: local weights file; None takes the embedded file or downloads the published one.
        num_classes: K of the head; None takes what the file has (0, no head, for a file without one).
        image_size: side in pixels that ``preprocess`` resizes to; None takes the spec's.
        head: "auto" keeps the file's head where it has K outputs, else draws a new one; "new" always draws one;
            "keep" insists on the file's.
        seed: of a new head.
        **options: further model attributes, such as ``dtype``.

    Raises:
        UserError: no such file or source, damaged file, or weights of another architecture.
    """
    file = find(name, source, path, headless=num_classes == 0 or head == "new")
    spec = read_spec(name, source, file)
    converted = convert(readers.read(file), catalog.table(name, source))
    kernel = converted.leaves.get("params/head/kernel")
    classes = 0 if kernel is None else int(kernel.shape[-1])
    model = models.create(name, classes, **{**spec.options, **options})
    try:
        variables = merge(variable_shapes(model), converted)
    except MergeError as e:
        fix = f"is it a {source} {name} file? Check --config.model.name, --config.init.source and --config.init.path"
        raise MergeError(f"{file} does not fit {name} ({source}): {e}; {fix}", e.report) from None
    spec = dataclasses.replace(spec, image_size=image_size or spec.image_size, num_classes=classes)
    net = Pretrained(model, jax.tree.map(jnp.asarray, variables), spec, False, file)
    return net if num_classes is None else with_head(net, num_classes, head, seed)


def with_head(net: Pretrained, num_classes: int, head: str = "auto", seed: int = 0) -> Pretrained:
    """Return ``net`` with a head of ``num_classes`` outputs; 0 takes the head away.

    Args:
        net: network with or without a head.
        num_classes: K.
        head, seed: as for ``load``.

    Raises:
        UserError: the head is to be kept but has another number of outputs.
    """
    if head == "keep" and net.spec.num_classes != num_classes:
        raise UserError(
            f"the head in {net.path} has {net.spec.num_classes} classes, not {num_classes}; pass --config.init.head=new"
        )
    if head != "new" and net.spec.num_classes == num_classes:
        return net
    model = net.model.clone(num_classes=num_classes)
    params = {name: leaves for name, leaves in net.variables["params"].items() if name != "head"}
    if num_classes:
        params["head"] = init_head(model)(jax.random.key(seed))
    spec = dataclasses.replace(net.spec, num_classes=num_classes)
    return net._replace(model=model, variables={**net.variables, "params": params}, spec=spec, new_head=num_classes > 0)


def find(name: str, source: str, path: str | Path | None = None, headless: bool = False) -> Path:
    """Return the weights file that ``load`` would read; a published one is downloaded on its first use.

    Args:
        name, source, path: as for ``load``.
        headless: prefer the published file without a head, where there is one.
    """
    models.create(name, 0)  # an unknown name or source is the better message
    catalog.table(name, source)
    if path:
        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(f"no weights file at {file}; check --config.init.path")
        return file
    if source == "tl_jax" and name in catalog.EMBEDDED:
        return catalog.EMBEDDED[name]
    spec = catalog.CATALOG.get((name, source))
    if spec is None or not spec.url:
        raise UserError(f"no {source} weights of {name} are published; pass --config.init.path=FILE")
    url, digest = spec.url, spec.digest
    if headless and spec.headless_url:
        url, digest = spec.headless_url, spec.headless_digest
    target = fetch.cache_dir() / "weights" / url.rsplit("/", 1)[-1]
    return fetch.fetch(url, target, digest, hint="or pass a local copy with --config.init.path=FILE")


def read_spec(name: str, source: str, file: Path | None = None) -> PretrainedSpec:
    """Return the facts about the weights in ``file``, or, without one, about the layout of a source."""
    if source != "tl_jax" or file is None:
        catalog.table(name, source)
        return catalog.CATALOG.get((name, source), PretrainedSpec(name, source, image_size=32, crop=1.0, scaling="tf"))
    metadata = readers.read_metadata(file)
    try:
        spec = PretrainedSpec(**json.loads(metadata["spec"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file} was not written by tl_jax; name its origin with --config.init.source") from None
    if spec.model != name:
        raise UserError(f"{file} holds {spec.model!r}, not {name!r}; pass --config.model.name={spec.model}")
    return dataclasses.replace(spec, options={k: _tuple(v) for k, v in spec.options.items()})


def random(name: str, num_classes: int, source: str = "keras", seed: int = 0, **options: Any) -> Pretrained:
    """Build ``name`` as ``load`` would, with weights drawn from ``seed`` instead of read from a file."""
    spec = read_spec(name, source)
    model = models.create(name, num_classes, **{**spec.options, **options})
    variables = dict(initializer(model)(jax.random.key(seed)))
    spec = dataclasses.replace(spec, num_classes=num_classes)
    return Pretrained(model, variables, spec, new_head=True, path=None)


def save(
    path: Path, variables: Mapping[str, Any], spec: PretrainedSpec, facts: Mapping[str, Any], dtype: str = "float32"
) -> None:
    """Write variables as safetensors under our own names; ``load(..., source="tl_jax", path=path)`` reads it back.

    Args:
        path: file to write.
        variables: ``{"params": ..., "batch_stats": ...}``.
        spec: what ``load`` must know; its ``options`` are stored with it.
        facts: anything worth keeping in the file, such as data set, accuracy and classes (JSON types).
        dtype: of the stored values; float16 halves the file and is widened again when it is loaded.
    """
    leaves = {p: np.ascontiguousarray(leaf, dtype) for p, leaf in tree.flatten(variables).items()}
    metadata = {"format": "tl_jax", "spec": json.dumps(spec.to_dict()), "facts": json.dumps(dict(facts))}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(safetensors.numpy.save(leaves, metadata))
    temporary.replace(path)


@functools.cache
def initializer(model: nn.Module):
    """Return the jitted function key -> variables of a model."""
    return jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3))))


@functools.cache
def init_head(model: nn.Module):
    """Return the jitted function key -> head parameters; XLA drops the rest of the initialisation."""
    return jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)))["params"]["head"])


@functools.cache
def variable_shapes(model: nn.Module) -> Mapping[str, Any]:
    """Return the shapes and dtypes of a model's variables; nothing is computed."""
    return jax.eval_shape(initializer(model), jax.random.key(0))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
