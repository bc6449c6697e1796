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
from tl_jax.data.dataset import Split, fit_image
from tl_jax.data.decode import Decoding
from tl_jax.data.fingerprint import relative_names
from tl_jax.data.image_folder import input_images
from tl_jax.metrics import Batch
from tl_jax.metrics.classification import apply_temperature, fit_temperature
from tl_jax.pretrained.network import Pretrained, variable_shapes, with_head
from tl_jax.report import html as drawn
from tl_jax.tasks import error_analysis, file_answers, head_init, image_evaluation, run_record
from tl_jax.tasks.feature_cache import FeatureCache
from tl_jax.tasks.file_answers import FileError
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
    name = name or net.model.stage_names()[-1]
    upper_network = net._replace(model=net.model.clone(start=name), inputs=Maps())

    def grad_cam(variables, batch):
        maps = net.predict(variables, batch["image"])[1][name]

        def logit(maps):
            logits = upper_network.predict(variables, maps)[0]
            return jnp.take_along_axis(logits, batch["label"][:, None], 1).sum()  # each depends on its own maps

        weights = jax.grad(logit)(maps).astype(jnp.float32).mean((1, 2), keepdims=True)
        return jax.nn.relu((weights * maps.astype(jnp.float32)).sum(-1))

    return grad_cam


class Predictor(NamedTuple):
    """A network for predictions, and how its inputs are read.

    Attributes:
        network: with its head.
        classes: K names.
        num_views: of each picture, whose probabilities are averaged.
        shape: height and width of stored pictures; others are fitted into it, as in training.
        decoding: how files become pixels, as in training.
        fit: how others are fitted, see ``data.dataset.fit_image``.
        batch_size: pictures at once, at most.
        validation: () -> batches to which a temperature is fitted; None leaves probabilities as they are.
        fitted_temperature: the temperature that the finished run has fitted already, None for a run without.
    """

    network: Network
    classes: tuple[str, ...]
    num_views: int
    shape: tuple[int, int]
    decoding: Decoding
    fit: str
    batch_size: int
    validation: Callable[[], Iterable[Batch]] | None
    fitted_temperature: float | None = None


class Explanation(NamedTuple):
    """Files (N), what the network saw of them (N, S, S, 3), the class and its probability (N,), maps (N, h, w)."""

    files: list[Path]
    images: np.ndarray
    classes: list[str]
    probabilities: np.ndarray
    maps: np.ndarray


def predict_files(predictor: Predictor, variables: Any, inputs: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Return the probabilities of the pictures in files and folders, for JSON, and all of them drawn as text.

    A file that cannot be read has its error instead; where that is every file, it is a UserError.
    """
    files, predictor = _prepare_inputs(predictor, inputs)
    results, lines, softmax_temperature, errors = {}, [], run_temperature(predictor, variables), []
    for batch_files, images in _read_batches(predictor, files, errors):
        for file, row in zip(
            batch_files, _probabilities(predictor, variables, images, softmax_temperature), strict=True
        ):
            results[file] = {"probabilities": dict(zip(predictor.classes, map(float, row), strict=True))}
            lines += drawn.probability_bars(str(file), predictor.classes, row)
    return file_answers.result_rows(files, results, errors), "\n".join(
        [*lines, *file_answers.error_lines(files, errors)]
    )


def explain(predictor: Predictor, variables: Any, inputs: Sequence[str]) -> Explanation:
    """Return the Grad-CAM of the likeliest class of each picture in files and folders."""
    files, predictor = _prepare_inputs(predictor, inputs)
    softmax_temperature, input_spec = run_temperature(predictor, variables), predictor.network.inputs
    assert isinstance(input_spec, Inputs)
    shown_images, probabilities, maps, errors, readable = [], [], [], [], []
    for batch_files, images in _read_batches(predictor, files, errors):
        readable += batch_files
        probabilities.append(_probabilities(predictor, variables, images, softmax_temperature))
        top_classes = probabilities[-1].argmax(1).astype(np.int32)
        maps.append(_extract(make_grad_cam(predictor.network), predictor, variables, images, top_classes))
        resized = preprocess.resize_and_crop(
            jnp.asarray(images), input_spec.size, input_spec.crop, input_spec.interpolation
        )
        shown_images.append(np.rint(np.clip(resized, 0, 255)).astype(np.uint8))
    rows = np.concatenate(probabilities)
    names = [predictor.classes[k] for k in rows.argmax(1)]
    for line in file_answers.error_lines(files, errors):
        say(line)
    return Explanation(readable, np.concatenate(shown_images), names, rows.max(1), np.concatenate(maps))


def run_temperature(predictor: Predictor, variables: Any) -> float:
    """Return the temperature of the run, or fit it to the validation split; 1 if the run is not to be calibrated."""
    if predictor.validation is None:
        return 1.0
    if predictor.fitted_temperature is not None:
        return predictor.fitted_temperature
    labels = np.concatenate([b["label"][b["mask"] > 0] for b in predictor.validation()])
    probabilities = extract(make_predict(predictor.network, predictor.num_views), variables, predictor.validation())
    return fit_temperature(probabilities.astype(np.float64), labels)


def _prepare_inputs(predictor: Predictor, inputs: Sequence[str]) -> tuple[list[Path], Predictor]:
    """Return the named files, and the predictor with a batch size no larger than it needs."""
    files = input_images(inputs, predictor.decoding.outside)
    return files, predictor._replace(batch_size=min(predictor.batch_size, sharding.round_up(len(files))))


def _read_batches(
    predictor: Predictor, files: Sequence[Path], errors: list[FileError]
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Yield some readable files at a time, and their pictures uint8 (N, H, W, 3); others join ``errors``."""
    height, width = predictor.shape
    for batch_files, images in file_answers.decode_batches(files, predictor.decoding, predictor.batch_size, errors):
        resized = (
            image if image.shape[:2] == predictor.shape else fit_image(image, (width, height), predictor.fit)
            for image in images
        )
        yield batch_files, np.stack(list(resized))


def _probabilities(predictor: Predictor, variables: Any, images: np.ndarray, softmax_temperature: float) -> np.ndarray:
    labels = np.zeros(len(images), np.int32)  # nobody reads them
    probabilities = _extract(make_predict(predictor.network, predictor.num_views), predictor, variables, images, labels)
    return apply_temperature(probabilities.astype(np.float64), softmax_temperature)


def _extract(function: Any, predictor: Predictor, variables: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return extract(function, variables, loader.eval_batches(Split(images, labels), predictor.batch_size))


def make_task(config: Any, record: RunRecord = NEW_RUN) -> Task:
    """Build the task that ``config`` describes, for a run of which ``record`` is known."""
    net, inputs = load_inputs(config)
    source = record.source(lambda: load_source(config, inputs.size), *no_images(record))
    classes = head_init.check_classes(config, source)
    net = run_record.with_head_order(config, net, source.classes) if net else None
    functions = functools.partial(classifier_functions, config.test_views)
    task, network, splits = build_task(config, net, inputs, source, classes, functions, record)
    predictor = Predictor(
        network,
        source.classes,
        config.test_views,
        (splits["train"].images.shape[1], splits["train"].images.shape[2]),
        Decoding(tuple(config.data.windows), source.value_range, config.data.max_pixels, outside=config.data.outside),
        config.data.fit,
        config.eval_batch_size,
        functools.partial(task.eval_batches, "validation") if config.calibrate and task.sizes["validation"] else None,
        record.fitted.get("temperature"),
    )
    files = splits["test"].files
    names = None if files is None else relative_names(files, config.data.dir)
    return task._replace(
        score=config.score,
        predict_inputs=functools.partial(predict_files, predictor),
        explain=functools.partial(explain, predictor),
        test_details=functools.partial(
            error_analysis.image_details, source.classes, splits["test"].images, names=names
        ),
        **(
            image_evaluation.task_fields(image_evaluation.read_settings(config, source.classes, splits))
            if record.reads_data
            else {}
        ),
    )


def no_images(record: RunRecord) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (0, H, W, 3), of the size that a run has stored them in, and labels int32 (0,)."""
    return np.zeros((0, *record.facts.get("input_shape", (0, 0)), 3), np.uint8), np.zeros(0, np.int32)


def load_inputs(config: Any) -> tuple[Pretrained | None, Inputs]:
    """Return the pretrained network of ``config`` (None for random initialization), and its input spec."""
    random_init = config.init.source == "random"
    net = None if random_init else load_network(config)  # before the data are read: wrong weights should fail at once
    spec = net.spec if net else pretrained.spec_of(config.model.name, config.init.layout)
    inputs = Inputs(
        net.model.channels if net else config.model.channels,
        config.input.size or spec.image_size,
        config.input.crop,
        config.input.interpolation or spec.interpolation,
        spec.scaling if config.input.scaling == "spec" else config.input.scaling,
    )
    return net, inputs


def classifier_functions(
    num_views: int, network: Network, augment_config: Augment, penalties: Regularize, pretext: Pretext | None
) -> dict[str, Any]:
    """Return the functions of a task of classes, tested on ``num_views`` views, by the names of ``Task``."""
    loss = make_loss(network, augment_config, penalties, pretext)
    return {"loss": loss, "metrics": make_metrics(network, num_views), "predict": make_predict(network, num_views)}


def build_task(
    config: Any,
    net: Pretrained | None,
    inputs: Inputs,
    source: tfds.Dataset,
    num_outputs: int,
    functions: Callable[..., dict[str, Any]],
    record: RunRecord = NEW_RUN,
) -> tuple[Task, Network, dict[str, Split]]:
    """Put the task together, and return with it the network with its head and the parts of the data.

    Args:
        config: the configuration.
        net, inputs: see ``load_inputs``.
        source: the data.
        num_outputs: of the network's head; 0 for none.
        functions: (network, augmentation, penalties, pretext) -> the task's ``loss``, ``metrics`` and so on.
        record: what is known of the run.
    """
    head = "keep" if config.init.head == "keep" else "new"
    net = with_head(net, num_outputs, head) if net else draw_network(config, num_outputs)
    for note in net.notes:
        say(note)
    check_norms(config, net)
    network = Network(net.model, inputs, Adapters(**config.adapt.to_dict()))
    splits = record.split_data(config, source)
    weight_setting = config.regularize.class_weights if record.reads_data else ""  # predictions have no loss
    weights = class_weights(weight_setting, splits["train"].labels, source.classes)
    regularize, pretext = make_regularize(config, net)._replace(weights=weights), make_pretext(config)
    added_pretext = pretext if config.pretext.weight else None
    feature_cache = FeatureCache(config, network, splits, regularize, functions)
    stream_args = config.seed, config.batch_size
    pretext_objective = None
    if pretext:
        unlabelled = splits["unlabelled"]
        pretext_objective = Objective(
            make_pretext_loss(network, pretext), loader.Stream(unlabelled.images, unlabelled.labels, *stream_args)
        )
    task = Task(
        name=f"{config.model.name} on {source.name}",
        classes=source.classes,
        init=functools.partial(init_variables, config, net, feature_cache, regularize, pretext),
        **functions(network, Augment(**config.augment.to_dict()), regularize, added_pretext),
        features=make_features(network),
        train_batch=loader.Stream(splits["train"].images, splits["train"].labels, *stream_args),
        eval_batches=lambda split: loader.eval_batches(splits[split], config.eval_batch_size),
        sizes=record.sizes(splits),
        facts={**task_facts(net, inputs, source, splits), **record.describe(source, splits, config.data.dir)},
        stages=net.model.stage_names(),
        pretext=pretext_objective,
        cache_features=feature_cache.task,
    )
    return task, network, splits


def task_facts(net: Pretrained, inputs: Inputs, source: tfds.Dataset, splits: Mapping[str, Split]) -> dict[str, Any]:
    """Return what a run must know of its weights and data to be evaluated, exported and reported."""
    return {
        "weights": str(net.path or "random"),
        "weights_sha256": net.sha256,
        "data": source.name,
        "tested": source.test_origin,
        "input": inputs._asdict(),
        **source.facts(),
        "new_head": net.new_head,
        "spec": net.spec.to_dict(),
        "input_shape": list(splits["train"].images.shape[1:3]),
    }


def check_norms(config: Any, net: Pretrained) -> None:
    """Refuse what acts on BatchNorm where the network has none."""
    recipes = {config.freeze.recipe, *(phase.get("recipe") for phase in config.phases)}
    modes = {config.freeze.batch_stats, *(phase.get("batch_stats", "auto") for phase in config.phases)}
    uses_norms = config.regularize.stochastic_norm or "norm_only" in recipes or modes != {"auto"}
    if uses_norms and "batch_stats" not in variable_shapes(net.model):
        raise UserError(
            f"{config.model.name} has no BatchNorm: config.freeze.recipe=norm_only, freeze.batch_stats and "
            "regularize.stochastic_norm would do nothing; choose another"
        )


def init_variables(
    config: Any,
    net: Pretrained,
    feature_cache: FeatureCache,
    regularize: Regularize,
    pretext: Pretext | None,
    key: jax.Array,
) -> dict[str, Any]:
    """Return the variables that training starts from, drawn from ``key`` as far as they are not loaded or fitted."""
    variables = head_init.network_variables(net, key)
    network, splits, size = feature_cache.network, feature_cache.splits, config.eval_batch_size
    bare, train = network._replace(adapters=Adapters()), splits["train"]  # adapters change nothing yet
    has_examples = len(train.labels) > 0  # else the variables are only a layout for those of a checkpoint
    fits_head = has_examples and config.init.head in head_init.PROBES
    if fits_head or (has_examples and regularize.delta):
        kind = config.init.head if fits_head else "logistic"
        probe = head_init.Probe(kind, config.init.strength if fits_head else 1.0, splits, feature_cache.features)
        fitted = head_init.with_probe(variables, probe)
        variables = fitted if fits_head else variables
    attention = (
        head_init.channel_weights(bare, fitted, regularize.endpoints, train, size)
        if has_examples and regularize.delta
        else None
    )
    width = head_init.feature_width(bare, variables, train) if pretext or regularize.co_tuning else 0
    source_head = load_source_head(config, width) if regularize.co_tuning else None
    relation = (
        head_init.class_relation(feature_cache.features, variables, source_head, train)
        if has_examples and regularize.co_tuning
        else None
    )
    source_collection = head_init.source_collection(regularize, variables, attention=attention, relation=relation)
    variables = head_init.with_adapters(variables, network.adapters, jax.random.fold_in(key, 1))
    variables = head_init.with_extras(variables, width, pretext, source_head, jax.random.fold_in(key, 2))
    return {**variables, **({"source": source_collection} if source_collection else {})}


def make_regularize(config: Any, net: Pretrained) -> Regularize:
    """Return the penalties that ``config`` asks for; dropout and stochastic depth are attributes of the model."""
    values = {name: value for name, value in config.regularize.to_dict().items() if name in Regularize._fields}
    result = Regularize(**{**values, "endpoints": ()})
    if not result.compares_maps:
        return result
    return result._replace(endpoints=head_init.check_endpoints(tuple(values["endpoints"]), net.model.stage_names()))


def make_pretext(config: Any) -> Pretext | None:
    """Return what is learned without labels, None where nothing is."""
    return Pretext.from_config(config.pretext.to_dict()) if config.pretext.name else None


def load_source(config: Any, size: int) -> tfds.Dataset:
    """Load the data set of ``config``, or draw the generator's pictures where ``data.generate`` says so."""
    synthetic = config.data.generate and not config.data.dir
    name = "gratings" if synthetic else config.data.name
    data = config.data
    windows = tuple(tuple(w) if isinstance(w, list) else w for w in data.windows)
    limits = value_range.parse_range(data.range)
    options = windows, data.group, data.label, data.fit, limits, data.max_pixels, data.outside
    return _load_cached(fingerprint.folder_stamp(name, data.dir), name, data.dir, size, data.gigabytes * 1e9, *options)


@functools.lru_cache(maxsize=1)  # the runs of a comparison share one copy; nobody writes to it
def _load_cached(_: str, *options: Any) -> tfds.Dataset:
    return tfds.load(*options)


def load_network(config: Any) -> Pretrained:
    """Read the network of ``config`` with the head that the file has, where that is to be kept."""
    name, source, path = config.model.name, config.init.source, config.init.path or None
    options = {"head": "keep" if config.init.head == "keep" else "new", "rename": config.init.rename}
    return pretrained.load(name, source, path, seed=config.seed, **options, **model_options(config))


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
    overrides = {name: config.regularize[name] for name in ("dropout", "drop_path") if config.regularize[name]}
    if config.adapt.kind == "bottleneck" and config.adapt.rank:
        overrides["adapter"] = config.adapt.rank
    return options | overrides | ({"channels": config.model.channels} if config.model.channels != 3 else {})
