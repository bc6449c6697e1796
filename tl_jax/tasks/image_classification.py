"""Image classification task: a pretrained or random network with a new head, predictions, and Grad-CAM.

Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) shows which regions of an image speak for a class.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import pretrained
from tl_jax.data import fingerprint, loader, preprocess, tfds, value_range
from tl_jax.data.augment import Augment
from tl_jax.data.dataset import Split, fit
from tl_jax.data.decode import Decoding
from tl_jax.data.fingerprint import relative_names
from tl_jax.data.image_folder import named
from tl_jax.metrics import Batch
from tl_jax.metrics.classification import apply_temperature, fit_temperature
from tl_jax.pretrained.network import Pretrained, variable_shapes, with_head
from tl_jax.report import html as drawn
from tl_jax.tasks import error_analysis, file_answers, head_init, image_evaluation, run_record
from tl_jax.tasks.feature_cache import Frozen
from tl_jax.tasks.file_answers import Failed
from tl_jax.tasks.losses import (
    Inputs,
    Maps,
    Network,
    make_features,
    make_loss,
    make_metrics,
    make_predict,
    make_pretext_loss,
)
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train import sharding
from tl_jax.train.evaluate import extract
from tl_jax.train.logging import say
from tl_jax.train.task import Objective, Task
from tl_jax.transfer.adapters import Adapters
from tl_jax.transfer.regularizers import Regularize, class_weights
from tl_jax.transfer.self_supervised import Pretext
from tl_jax.utils.errors import UserError


@functools.cache
def make_grad_cam(net: Network, name: str = ""):
    """Return the function (variables, batch) -> maps float32 (N, h, w), 0 and more, of the class that "label" has.

    Channel k of the endpoint weighs the mean over positions of the gradient of the class' logit; the map is the
    weighted sum of the channels, negative values put to zero. The network is split at the endpoint as the feature cache
    splits it: its second half is differentiated with respect to what comes in, which is exact and needs no hooks. With
    a linear head on the global average this is 1 / (h w) times the class activation map (Zhou et al. 2016,
    arXiv:1512.04150).

    Args:
        net: any image network.
        name: of the endpoint, a part of the network with maps (N, h, w, D); empty takes the last.
    """
    name = name or net.model.part_names()[-1]
    rest = net._replace(model=net.model.clone(start=name), inputs=Maps())

    def grad_cam(variables, batch):
        maps = net.predict(variables, batch["image"])[1][name]

        def logit(maps):
            logits = rest.predict(variables, maps)[0]
            return jnp.take_along_axis(logits, batch["label"][:, None], 1).sum()  # each depends on its own maps

        weights = jax.grad(logit)(maps).astype(jnp.float32).mean((1, 2), keepdims=True)
        return jax.nn.relu((weights * maps.astype(jnp.float32)).sum(-1))

    return grad_cam


class Asked(NamedTuple):
    """Who is asked, and how pictures are read.

    Attributes:
        network: with its head.
        classes: K names.
        views: of each picture, whose probabilities are averaged.
        shape: height and width of stored pictures; others are fitted into it, as in training.
        decoding: how files become pixels, as in training.
        fit: how others are fitted, see ``data.dataset.fit``.
        batch_size: pictures at once, at most.
        validation: () -> batches to which a temperature is fitted; None leaves probabilities as they are.
        fitted: the temperature that the finished run has fitted already, None for a run without.
    """

    network: Network
    classes: tuple[str, ...]
    views: int
    shape: tuple[int, int]
    decoding: Decoding
    fit: str
    batch_size: int
    validation: Callable[[], Iterable[Batch]] | None
    fitted: float | None = None


class Explained(NamedTuple):
    """Files (N), what the network saw of them (N, S, S, 3), the class and its probability (N,), maps (N, h, w)."""

    files: list[Path]
    seen: np.ndarray
    found: list[str]
    sure: np.ndarray
    maps: np.ndarray


def answer(asked: Asked, variables: Any, inputs: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Return the probabilities of the pictures in files and folders, for JSON, and all of them drawn as text.

    A file that cannot be read has its error instead; where that is every file, it is a UserError.
    """
    files, asked = _asked_of(asked, inputs)
    found, lines, degrees, errors = {}, [], temperature(asked, variables), []
    for some, images in _read_inputs(asked, files, errors):
        for file, row in zip(some, _probabilities(asked, variables, images, degrees), strict=True):
            found[file] = {"probabilities": dict(zip(asked.classes, map(float, row), strict=True))}
            lines += drawn.probability_bars(str(file), asked.classes, row)
    return file_answers.rows(files, found, errors), "\n".join([*lines, *file_answers.summary(files, errors)])


def explain(asked: Asked, variables: Any, inputs: Sequence[str]) -> Explained:
    """Return the Grad-CAM of the likeliest class of each picture in files and folders."""
    files, asked = _asked_of(asked, inputs)
    degrees, how = temperature(asked, variables), asked.network.inputs
    assert isinstance(how, Inputs)
    seen, found, maps, errors, readable = [], [], [], [], []
    for some, images in _read_inputs(asked, files, errors):
        readable += some
        found.append(_probabilities(asked, variables, images, degrees))
        best = found[-1].argmax(1).astype(np.int32)
        maps.append(_extract(make_grad_cam(asked.network), asked, variables, images, best))
        shown = preprocess.fit(jnp.asarray(images), how.size, how.crop, how.interpolation)
        seen.append(np.rint(np.clip(shown, 0, 255)).astype(np.uint8))
    rows = np.concatenate(found)
    names = [asked.classes[k] for k in rows.argmax(1)]
    for line in file_answers.summary(files, errors):
        say(line)
    return Explained(readable, np.concatenate(seen), names, rows.max(1), np.concatenate(maps))


def temperature(asked: Asked, variables: Any) -> float:
    """Return the temperature of the run, or fit it to the validation split; 1 if the run is not to be calibrated."""
    if asked.validation is None:
        return 1.0
    if asked.fitted is not None:
        return asked.fitted
    labels = np.concatenate([b["label"][b["mask"] > 0] for b in asked.validation()])
    found = extract(make_predict(asked.network, asked.views), variables, asked.validation())
    return fit_temperature(found.astype(np.float64), labels)


def _asked_of(asked: Asked, inputs: Sequence[str]) -> tuple[list[Path], Asked]:
    """Return the files that were named, and who is asked of them, in batches no larger than it takes."""
    files = named(inputs, asked.decoding.outside)
    return files, asked._replace(batch_size=min(asked.batch_size, sharding.whole(len(files))))


def _read_inputs(asked: Asked, files: Sequence[Path], errors: list[Failed]) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Yield some readable files at a time, and their pictures uint8 (N, H, W, 3); others join ``errors``."""
    height, width = asked.shape
    for some, pictures in file_answers.decoded(files, asked.decoding, asked.batch_size, errors):
        fitted = (im if im.shape[:2] == asked.shape else fit(im, (width, height), asked.fit) for im in pictures)
        yield some, np.stack(list(fitted))


def _probabilities(asked: Asked, variables: Any, images: np.ndarray, degrees: float) -> np.ndarray:
    labels = np.zeros(len(images), np.int32)  # nobody reads them
    found = _extract(make_predict(asked.network, asked.views), asked, variables, images, labels)
    return apply_temperature(found.astype(np.float64), degrees)


def _extract(function: Any, asked: Asked, variables: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return extract(function, variables, loader.eval_batches(Split(images, labels), asked.batch_size))


def make(config: Any, record: RunRecord = NEW_RUN) -> Task:
    """Build the task that ``config`` describes, for a run of which ``record`` is known."""
    net, inputs = opened(config)
    source = record.source(lambda: load_source(config, inputs.size), *no_images(record))
    classes = head_init.check_classes(config, source)
    net = run_record.of_images(config, net, source.classes) if net else None
    functions = functools.partial(classifier, config.test_views)
    task, network, parts = build(config, net, inputs, source, classes, functions, record)
    asked = Asked(
        network,
        source.classes,
        config.test_views,
        (parts["train"].images.shape[1], parts["train"].images.shape[2]),
        Decoding(tuple(config.data.windows), source.value_range, config.data.max_pixels, outside=config.data.outside),
        config.data.fit,
        config.eval_batch_size,
        functools.partial(task.eval_batches, "validation") if config.calibrate and task.sizes["validation"] else None,
        record.fitted.get("temperature"),
    )
    files = parts["test"].files
    names = None if files is None else relative_names(files, config.data.dir)
    return task._replace(
        score=config.score,
        answer=functools.partial(answer, asked),
        explain=functools.partial(explain, asked),
        details=functools.partial(error_analysis.of_pictures, source.classes, parts["test"].images, names=names),
        **(image_evaluation.fields(image_evaluation.of(config, source.classes, parts)) if record.reads_data else {}),
    )


def no_images(record: RunRecord) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (0, H, W, 3), of the size that a run has stored them in, and labels int32 (0,)."""
    return np.zeros((0, *record.facts.get("input_shape", (0, 0)), 3), np.uint8), np.zeros(0, np.int32)


def opened(config: Any) -> tuple[Pretrained | None, Inputs]:
    """Return the network of ``config``, None where it is to be drawn, and what its inputs are."""
    drawn = config.init.source == "random"
    net = None if drawn else load_network(config)  # before the data are read: wrong weights should fail at once
    spec = net.spec if net else pretrained.spec_of(config.model.name, config.init.layout)
    inputs = Inputs(
        net.model.channels if net else config.model.channels,
        config.input.size or spec.image_size,
        config.input.crop,
        config.input.interpolation or spec.interpolation,
        spec.scaling if config.input.scaling == "spec" else config.input.scaling,
    )
    return net, inputs


def classifier(
    count: int, network: Network, how: Augment, penalties: Regularize, beside: Pretext | None
) -> dict[str, Any]:
    """Return the functions of a task of classes, tested on ``count`` views, by the names of ``Task``."""
    loss = make_loss(network, how, penalties, beside)
    return {"loss": loss, "metrics": make_metrics(network, count), "predict": make_predict(network, count)}


def build(
    config: Any,
    net: Pretrained | None,
    inputs: Inputs,
    source: tfds.Source,
    outputs: int,
    functions: Callable[..., dict[str, Any]],
    record: RunRecord = NEW_RUN,
) -> tuple[Task, Network, dict[str, Split]]:
    """Put the task together, and return with it the network with its head and the parts of the data.

    Args:
        config: the configuration.
        net, inputs: see ``opened``.
        source: the data.
        outputs: of the network's head; 0 for none.
        functions: (network, augmentation, penalties, pretext) -> the task's ``loss``, ``metrics`` and so on.
        record: what is known of the run.
    """
    keep = "keep" if config.init.head == "keep" else "new"
    net = with_head(net, outputs, keep) if net else draw_network(config, outputs)
    for note in net.notes:
        say(note)
    check_norms(config, net)
    network = Network(net.model, inputs, Adapters(**config.adapt.to_dict()))
    parts = record.cut(config, source)
    weighted = config.regularize.class_weights if record.reads_data else ""  # predictions have no loss
    weights = class_weights(weighted, parts["train"].labels, source.classes)
    hows = regularize(config, net)._replace(weights=weights), pretext_of(config)
    beside = hows[1] if config.pretext.weight else None
    frozen = Frozen(config, network, parts, hows[0], functions)
    seen = config.seed, config.batch_size
    pretext = None
    if hows[1]:
        unlabelled = parts["unlabelled"]
        pretext = Objective(
            make_pretext_loss(network, hows[1]), loader.Stream(unlabelled.images, unlabelled.labels, *seen)
        )
    task = Task(
        name=f"{config.model.name} on {source.name}",
        classes=source.classes,
        init=functools.partial(start, config, net, frozen, *hows),
        **functions(network, Augment(**config.augment.to_dict()), hows[0], beside),
        features=make_features(network),
        train_batch=loader.Stream(parts["train"].images, parts["train"].labels, *seen),
        eval_batches=lambda part: loader.eval_batches(parts[part], config.eval_batch_size),
        sizes=record.sizes(parts),
        facts={**facts_of(net, inputs, source, parts), **record.describe(source, parts, config.data.dir)},
        parts=net.model.part_names(),
        pretext=pretext,
        shortcut=frozen.task,
    )
    return task, network, parts


def facts_of(net: Pretrained, inputs: Inputs, source: tfds.Source, parts: Mapping[str, Split]) -> dict[str, Any]:
    """Return what a run must know of its weights and data to be evaluated, exported and reported."""
    return {
        "weights": str(net.path or "random"),
        "weights_sha256": net.sha256,
        "data": source.name,
        "tested": source.tested,
        "input": inputs._asdict(),
        **source.facts(),
        "new_head": net.new_head,
        "spec": net.spec.to_dict(),
        "input_shape": list(parts["train"].images.shape[1:3]),
    }


def check_norms(config: Any, net: Pretrained) -> None:
    """Refuse what acts on BatchNorm where the network has none."""
    recipes = {config.freeze.recipe, *(phase.get("recipe") for phase in config.phases)}
    modes = {config.freeze.batch_stats, *(phase.get("batch_stats", "auto") for phase in config.phases)}
    wanted = config.regularize.stochastic_norm or "norm_only" in recipes or modes != {"auto"}
    if wanted and "batch_stats" not in variable_shapes(net.model):
        raise UserError(
            f"{config.model.name} has no BatchNorm: config.freeze.recipe=norm_only, freeze.batch_stats and "
            "regularize.stochastic_norm would do nothing; choose another"
        )


def start(
    config: Any,
    net: Pretrained,
    frozen: Frozen,
    how: Regularize,
    pretext: Pretext | None,
    key: jax.Array,
) -> dict[str, Any]:
    """Return the variables that training starts from, drawn from ``key`` as far as they are not loaded or fitted."""
    variables = head_init.plain(net, key)
    network, parts, size = frozen.network, frozen.parts, config.eval_batch_size
    bare, train = network._replace(adapters=Adapters()), parts["train"]  # adapters change nothing yet
    fits = len(train.labels) > 0  # else the variables are only a layout for those of a checkpoint
    probed = fits and config.init.head in head_init.PROBES
    if probed or (fits and how.delta):
        kind = config.init.head if probed else "logistic"
        probe = head_init.Probe(kind, config.init.strength if probed else 1.0, parts, frozen.features)
        fitted = head_init.with_probe(variables, probe)
        variables = fitted if probed else variables
    attention = head_init.attention(bare, fitted, how.endpoints, train, size) if fits and how.delta else None
    width = head_init.width(bare, variables, train) if pretext or how.co_tuning else 0
    source_head = load_source_head(config, width) if how.co_tuning else None
    relation = head_init.relation(frozen.features, variables, source_head, train) if fits and how.co_tuning else None
    kept = head_init.source(how, variables, attention=attention, relation=relation)
    variables = head_init.adapted(variables, network.adapters, jax.random.fold_in(key, 1))
    variables = head_init.with_extras(variables, width, pretext, source_head, jax.random.fold_in(key, 2))
    return {**variables, **({"source": kept} if kept else {})}


def regularize(config: Any, net: Pretrained) -> Regularize:
    """Return the penalties that ``config`` asks for; dropout and stochastic depth are attributes of the model."""
    values = {name: value for name, value in config.regularize.to_dict().items() if name in Regularize._fields}
    how = Regularize(**{**values, "endpoints": ()})
    if not how.compares_maps:
        return how
    return how._replace(endpoints=head_init.check_endpoints(tuple(values["endpoints"]), net.model.part_names()))


def pretext_of(config: Any) -> Pretext | None:
    """Return what is learned without labels, None where nothing is."""
    return Pretext.of(config.pretext.to_dict()) if config.pretext.name else None


def load_source(config: Any, size: int) -> tfds.Source:
    """Load the data set of ``config``, or draw the generator's pictures where ``data.generate`` says so."""
    drawn = config.data.generate and not config.data.dir
    name = "gratings" if drawn else config.data.name
    data = config.data
    windows = tuple(tuple(w) if isinstance(w, list) else w for w in data.windows)
    limits = value_range.parse(data.range)
    how = windows, data.group, data.label, data.fit, limits, data.max_pixels, data.outside
    return _read(fingerprint.stamp(name, data.dir), name, data.dir, size, data.gigabytes * 1e9, *how)


@functools.lru_cache(maxsize=1)  # the runs of a comparison share one copy; nobody writes to it
def _read(_: str, *how: Any) -> tfds.Source:
    return tfds.load(*how)


def load_network(config: Any) -> Pretrained:
    """Read the network of ``config`` with the head that the file has, where that is to be kept."""
    name, source, path = config.model.name, config.init.source, config.init.path or None
    how = {"head": "keep" if config.init.head == "keep" else "new", "rename": config.init.rename}
    return pretrained.load(name, source, path, seed=config.seed, **how, **model_options(config))


def load_source_head(config: Any, width: int) -> dict[str, Any]:
    """Return the kernel (D, Z) and bias (Z,) of the head that the weights came with; D is the ``width`` of features.

    Raises:
        UserError: they came without one, or it sits on something other than ``features``.
    """
    head = None
    if config.init.source != "random" and not config.model.endpoint:
        net = pretrained.load(
            config.model.name, config.init.source, config.init.path or None, rename=config.init.rename
        )
        head = net.variables["params"].get("head")
    if head is None or head["kernel"].shape[0] != width:
        raise UserError(
            "config.regularize.co_tuning needs weights with their own head on the network's features; "
            "take a file with the top, leave model.endpoint empty, or set it to 0"
        )
    return dict(head)


def draw_network(config: Any, classes: int) -> Pretrained:
    """Return the network of ``config`` with random weights."""
    return pretrained.random(config.model.name, classes, config.init.layout, **model_options(config))


def model_options(config: Any) -> dict[str, Any]:
    """Return the attributes of the model that ``config`` sets; linen needs tuples where JSON and flags give lists."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in config.model.options.to_dict().items()}
    options |= {"dtype": jnp.dtype(config.model.dtype), "endpoint": config.model.endpoint}
    set_here = {name: config.regularize[name] for name in ("dropout", "drop_path") if config.regularize[name]}
    if config.adapt.kind == "bottleneck" and config.adapt.rank:
        set_here["adapter"] = config.adapt.rank
    return options | set_here | ({"channels": config.model.channels} if config.model.channels != 3 else {})
