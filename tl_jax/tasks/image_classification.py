"""Image classification: a pretrained or randomly initialized network with a new head, predictions, and Grad-CAM.

Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) shows which image regions support a class.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import models
from tl_jax.config.options import option
from tl_jax.data import loader, preprocess
from tl_jax.data.dataset import Split, fit_image
from tl_jax.data.decode import Decoding
from tl_jax.data.fingerprint import relative_names
from tl_jax.metrics import Batch, Evaluation
from tl_jax.metrics.classification import apply_temperature, fit_temperature
from tl_jax.pretrained.network import variable_shapes
from tl_jax.report.html import probability_bars
from tl_jax.report.images import draw_overlays
from tl_jax.tasks import error_analysis, head_init, image_evaluation, image_inputs, run_record
from tl_jax.tasks.image_inputs import ImageInput
from tl_jax.tasks.image_task import ImageRunConfig, ImageTask, load_inputs, no_images
from tl_jax.tasks.losses import Inputs, Maps, Network, make_features, make_metrics, make_predict
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train import sharding
from tl_jax.train.evaluate import Members, extract, make_both
from tl_jax.train.task import register_task, unread
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError, combine_errors, join_errors


@functools.cache
def make_grad_cam(net: Network, name: str = ""):
    """Return the function (variables, batch) -> nonnegative maps, float32 (N, h, w), for the class in "label".

    The weight of channel k is the mean over positions of the gradient of the class logit; the map is the ReLU of the
    weighted sum of the channels. The network is split at the endpoint, as by the feature cache, and its second half is
    differentiated with respect to its input, which is exact and needs no hooks. With a linear head on global average
    pooling this is 1 / (h w) times the class activation map (Zhou et al. 2016, arXiv:1512.04150).

    Args:
        net: any image network.
        name: endpoint, a stage with feature maps (N, h, w, D) or tokens of square images; empty for the last that
            the class reads.
    """
    name = name or net.model.map_stage()
    upper_network = net._replace(model=net.model.clone(start=name), inputs=Maps())

    def grad_cam(variables, batch):
        maps = net.predict(variables, batch["inputs"])[1][name]

        def logit(maps):
            logits = upper_network.predict(variables, maps)[0]
            return jnp.take_along_axis(logits, batch["label"][:, None], 1).sum()  # each depends on its own maps only

        gradient, shown = (net.model.to_map(x).astype(jnp.float32) for x in (jax.grad(logit)(maps), maps))
        return jax.nn.relu((gradient.mean((1, 2), keepdims=True) * shown).sum(-1))

    return grad_cam


class Predictor(NamedTuple):
    """A network for predictions, with the preprocessing of its inputs.

    Attributes:
        network: with its head.
        classes: K names.
        num_views: views per image, whose probabilities are averaged.
        shape: height and width of stored images; other images are fitted to it, as in training.
        decoding: how image files are decoded, as in training.
        fit: how images are fitted to ``shape``, see ``data.dataset.fit_image``.
        batch_size: maximum number of images per batch.
        validation: () -> batches for fitting a temperature; None leaves probabilities uncalibrated.
        fitted_temperature: temperature fitted by the finished run; None if there is none.
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

    def fit_pixels(self, image: np.ndarray) -> np.ndarray:
        """Fit an image (h, w, 3) to the size of stored images (H, W, 3)."""
        height, width = self.shape
        return image if image.shape[:2] == self.shape else fit_image(image, (width, height), self.fit)

    def extract(self, function: Any, variables: Any, images: np.ndarray, labels: np.ndarray | None = None) -> Any:
        """Return the output of ``function`` (variables, batch) for images (N, H, W, 3)."""
        split = Split(images, np.zeros(len(images), np.int32) if labels is None else labels)
        return extract(function, variables, loader.eval_batches(split, self.batch_size))


class Explanation(NamedTuple):
    """Grad-CAM: files (N), network inputs (N, S, S, 3), class and probability (N,), maps (N, h, w)."""

    files: list[Path]
    images: np.ndarray
    classes: list[str]
    probabilities: np.ndarray
    maps: np.ndarray


def predict_images(
    predictor: Predictor, variables: Any, images: Sequence[ImageInput], embeddings: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the class probabilities of each image as JSON values, and optionally its features (D,) as ``embedding``."""
    predictor, softmax_temperature = fit_batch(predictor, images), run_temperature(predictor, variables)
    probabilities = make_predict(predictor.network, predictor.num_views)
    function = make_both(probabilities, make_features(predictor.network)) if embeddings else probabilities

    def predict_batch(_: Sequence[ImageInput], pixels: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
        out = predictor.extract(function, variables, np.stack(pixels))
        values, features = out if embeddings else (out, None)
        rows = apply_temperature(values.astype(np.float64), softmax_temperature)
        for i, row in enumerate(rows):
            says = {"probabilities": dict(zip(predictor.classes, map(float, row), strict=True))}
            yield says if features is None else {**says, "embedding": features[i]}

    return image_inputs.predict_rows(
        images, predictor.decoding, predictor.batch_size, predictor.fit_pixels, predict_batch
    )


def explain(predictor: Predictor, variables: Any, images: Sequence[ImageInput]) -> tuple[Explanation, list[UserError]]:
    """Return the Grad-CAM of each image's most likely class, and the errors of unreadable images."""
    predictor, softmax_temperature = fit_batch(predictor, images), run_temperature(predictor, variables)
    input_spec, grad_cam = predictor.network.inputs, make_grad_cam(predictor.network)
    assert isinstance(input_spec, Inputs)
    shown_images, probabilities, maps, errors, readable = [], [], [], [], []
    for batch in image_inputs.decode_batches(images, predictor.decoding, predictor.batch_size, predictor.fit_pixels):
        errors += [decoded for _, decoded in batch if isinstance(decoded, UserError)]
        decoded_images = [(image, decoded) for image, decoded in batch if not isinstance(decoded, UserError)]
        if not decoded_images:
            continue
        readable += [Path(image.name) for image, _ in decoded_images]
        pixels = np.stack([decoded for _, decoded in decoded_images])
        values = predictor.extract(make_predict(predictor.network, predictor.num_views), variables, pixels)
        probabilities.append(apply_temperature(values.astype(np.float64), softmax_temperature))
        top_classes = probabilities[-1].argmax(1).astype(np.int32)
        maps.append(predictor.extract(grad_cam, variables, pixels, top_classes))
        resized = preprocess.resize_and_crop(
            jnp.asarray(pixels), input_spec.size, input_spec.crop, input_spec.interpolation
        )
        shown_images.append(np.rint(np.clip(resized, 0, 255)).astype(np.uint8))
    if not readable:
        raise combine_errors("the inputs", errors, unread(len(errors), len(images)))
    rows = np.concatenate(probabilities)
    names = [predictor.classes[k] for k in rows.argmax(1)]
    return Explanation(readable, np.concatenate(shown_images), names, rows.max(1), np.concatenate(maps)), errors


def fit_batch(predictor: Predictor, images: Sequence[ImageInput]) -> Predictor:
    """Reduce the predictor's batch size to the number of images."""
    return predictor._replace(batch_size=min(predictor.batch_size, sharding.round_up(len(images))))


def run_temperature(predictor: Predictor, variables: Any) -> float:
    """Return the run's temperature, or fit it to the validation split; 1 for an uncalibrated run.

    An ensemble has its own temperature.
    """
    if isinstance(variables, Members):
        return variables.temperature
    if predictor.validation is None:
        return 1.0
    if predictor.fitted_temperature is not None:
        return predictor.fitted_temperature
    labels = np.concatenate([b["label"][b["mask"] > 0] for b in predictor.validation()])
    probabilities = extract(make_predict(predictor.network, predictor.num_views), variables, predictor.validation())
    return fit_temperature(probabilities.astype(np.float64), labels)


@dataclass(frozen=True)
class ImageClassificationRunConfig(ImageRunConfig):
    """Configuration of an image classification run."""

    metrics: tuple[str, ...] = option(
        (), "metrics besides accuracy: auc, sensitivity, ece; auc has an interval over groups"
    )
    positive: str = option("", "positive class; empty: the second of two classes, or each in turn (one-vs-rest)")
    specificity: float = option(0.9, "specificity at which sensitivity is measured", low=0.0, high=1.0)
    score: str = option("accuracy", "validation metric that selects the best checkpoint", ("accuracy", "auc"))
    calibrate: bool = option(False, "fit a temperature on validation for predictions (arXiv:1706.04599)")


@register_task("image")
class ImageClassification(ImageTask):
    """Image classification: one of K classes per image."""

    about = "images with one class each"
    can_choose_method = True
    can_average = True
    config_class = ImageClassificationRunConfig

    @classmethod
    def feature_size(cls, config: ImageRunConfig) -> int:
        options = {"endpoint": config.model.endpoint, **head_init.model_attributes(config)}
        head = variable_shapes(models.create(config.model.name, 1, **options))["params"].get("head", {})
        kernels = [leaf for leaf in tree.flatten(head).values() if leaf.ndim == 2]
        return kernels[0].shape[0] if kernels else 0

    def __init__(self, config: Any, record: RunRecord = NEW_RUN):
        """Build the task of ``config`` for a run with the given record."""
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
        test = task.splits["test"]
        if test.inputs.shape[1:3] != self.predictor.shape:  # arrays, which no reader has fitted
            fitted = np.stack([self.predictor.fit_pixels(image) for image in test.inputs])
            task = task.replace(splits={**task.splits, "test": test._replace(inputs=fitted)})
        settings = image_evaluation.read_settings(config, self.classes, task.splits)
        return task.replace(config=config, settings=settings, evaluates_outputs=settings is not None)

    def with_views(self, count: int) -> Self:
        """Return the task with predictions averaged over ``count`` views of each image."""
        config = dataclasses.replace(self.config, test_views=count)
        functions = {"metrics": make_metrics(self.network, count), "outputs": make_predict(self.network, count)}
        return self.replace(config=config, predictor=self.predictor._replace(num_views=count), **functions)

    def report_elsewhere(self, test: Any, summary: Mapping[str, Any]) -> dict[str, Any]:
        return image_evaluation.report_elsewhere(test, self.classes, summary)

    def test_details(self, predictions: Any) -> dict[str, Any]:
        test = self.splits["test"]
        names = None if test.files is None else relative_names(test.files, self.config.data.dir)
        return error_analysis.image_details(self.classes, test.inputs, predictions, names, test.groups)

    def report(self, test: Any, validation: Any, folder: Path) -> dict[str, Any]:
        return image_evaluation.report_calibration(self.settings, test, validation, folder) if self.settings else {}

    def predict(self, variables: Any, inputs: Sequence[Any], embeddings: bool = False) -> Iterator[dict[str, Any]]:
        return predict_images(self.predictor, variables, inputs, embeddings)

    def draw_prediction(self, row: Mapping[str, Any]) -> str:
        return "\n".join(probability_bars(row["input"], self.classes, np.array(list(row["probabilities"].values()))))

    def explain(self, variables: Any, inputs: Sequence[Any], folder: Path) -> tuple[Path, str]:
        """Draw Grad-CAM of each image's most likely class into ``explain.png``."""
        found, errors = explain(self.predictor, variables, inputs)
        rows = zip(found.files, found.classes, found.probabilities, strict=True)
        captions = [f"{file.parent.name}/{file.name}: {name} {probability:.2f}" for file, name, probability in rows]
        path = draw_overlays(found.images, found.maps, captions, f"{self.name}: Grad-CAM", folder / "explain.png")
        if errors:
            captions.append(f"{unread(len(errors), len(inputs))}: {join_errors(errors)}")
        return path, "\n".join(captions)
