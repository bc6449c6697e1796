"""Image classification task: a pretrained or random network with a new head, predictions, and Grad-CAM.

Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) shows which regions of an image speak for a class.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.config.options import option
from tl_jax.data import loader, preprocess
from tl_jax.data.dataset import Split, fit_image
from tl_jax.data.decode import Decoding
from tl_jax.data.fingerprint import relative_names
from tl_jax.data.image_folder import input_images
from tl_jax.metrics import Batch, Evaluation
from tl_jax.metrics.classification import apply_temperature, fit_temperature
from tl_jax.report import html as drawn
from tl_jax.report.images import draw_overlays
from tl_jax.tasks import error_analysis, file_answers, head_init, image_evaluation, run_record
from tl_jax.tasks.file_answers import FileError
from tl_jax.tasks.image_task import ImageRunConfig, ImageTask, load_inputs, no_images
from tl_jax.tasks.losses import Inputs, Maps, Network, make_predict
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train import sharding
from tl_jax.train.evaluate import extract
from tl_jax.train.logging import say
from tl_jax.train.task import register_task


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
        maps = net.predict(variables, batch["inputs"])[1][name]

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


@dataclass(frozen=True)
class ImageClassificationRunConfig(ImageRunConfig):
    """The options of a run on images with a class each."""

    metrics: tuple[str, ...] = option(
        (), "of pictures beside accuracy: auc, sensitivity, ece; auc with an interval over groups"
    )
    positive: str = option("", "class whose finding counts as positive; empty: the last of two, of more each in turn")
    specificity: float = option(0.9, "at which the metric sensitivity is read off", low=0.0, high=1.0)
    score: str = option("accuracy", "metric on validation by which the best checkpoint is chosen", ("accuracy", "auc"))
    calibrate: bool = option(False, "fit a temperature to validation; predictions use it (arXiv:1706.04599)")


@register_task("image")
class ImageClassification(ImageTask):
    """One of K classes for each image."""

    about = "images with a class each"
    config_class = ImageClassificationRunConfig

    def __init__(self, config: Any, record: RunRecord = NEW_RUN):
        """Build the task that ``config`` describes, for a run of which ``record`` is known."""
        net, inputs = load_inputs(config, record)
        self.source = source = record.source(lambda: self.load_source(config, inputs.size), *no_images(record))
        classes = head_init.check_classes(config, source)
        net = run_record.with_head_order(config, net, source.classes) if net and record.reads_weights else net
        self.build(config, net, inputs, source, classes, record)
        self.score = config.score
        self.decoding = self.make_decoding(config)._replace(value_range=source.value_range)
        self.image_size = inputs.size
        height, width = self.splits["train"].inputs.shape[1:3]
        held_out = functools.partial(loader.eval_batches, self.splits["validation"], config.eval_batch_size)
        calibrates = config.calibrate and self.sizes["validation"]
        self.predictor = Predictor(
            self.network,
            source.classes,
            config.test_views,
            (height, width),
            self.decoding,
            config.data.fit,
            config.eval_batch_size,
            held_out if calibrates else None,
            record.fitted.get("temperature"),
        )
        has_data = record.reads_data
        self.settings = image_evaluation.read_settings(config, source.classes, self.splits) if has_data else None
        self.evaluates_outputs = self.reports_validation = self.settings is not None

    @classmethod
    def conflicts(cls, config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
        return {**super().conflicts(config, changed), **image_evaluation.conflicts(config, changed)}

    @classmethod
    def make_decoding(cls, config: Any) -> Decoding:
        return super().make_decoding(config)._replace(windows=config.data.windows)

    @classmethod
    def fitted_value(cls, config: Any) -> str:
        return "temperature" if config.calibrate else ""

    def evaluate(self, outputs: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
        if self.settings is None:
            return error_analysis.score_examples(outputs, batches)
        return image_evaluation.evaluate_predictions(self.settings, outputs, batches)

    def with_test(self, config: Any, classes: Mapping[str, str]) -> Self:
        task = super().with_test(config, classes)
        settings = image_evaluation.read_settings(self.config, self.classes, task.splits)
        return task.replace(config=config, settings=settings, evaluates_outputs=settings is not None)

    def report_elsewhere(self, test: Any, summary: Mapping[str, Any]) -> dict[str, Any]:
        return image_evaluation.report_elsewhere(test, self.classes, summary)

    def test_details(self, predictions: Any) -> dict[str, Any]:
        test = self.splits["test"]
        names = None if test.files is None else relative_names(test.files, self.config.data.dir)
        return error_analysis.image_details(self.classes, test.inputs, predictions, names)

    def report(self, test: Any, validation: Any, folder: Path) -> dict[str, Any]:
        return image_evaluation.report_calibration(self.settings, test, validation, folder) if self.settings else {}

    def predict(self, variables: Any, inputs: Sequence[Any]) -> tuple[list[dict[str, Any]], str]:
        return predict_files(self.predictor, variables, inputs)

    def explain(self, variables: Any, inputs: Sequence[Any], folder: Path) -> tuple[Path, str]:
        """Draw Grad-CAM of the most likely class of each image in files and folders into ``explain.png``."""
        found = explain(self.predictor, variables, inputs)
        rows = zip(found.files, found.classes, found.probabilities, strict=True)
        captions = [f"{file.parent.name}/{file.name}: {name} {probability:.2f}" for file, name, probability in rows]
        path = draw_overlays(found.images, found.maps, captions, f"{self.name}: Grad-CAM", folder / "explain.png")
        return path, "\n".join(captions)
