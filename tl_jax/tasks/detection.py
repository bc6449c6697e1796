"""Object detection: a pretrained or randomly initialized network with a detection head, its losses and predictions.

Losses, metrics and predictions are built from hashable options, so that runs share compiled code.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import pretrained
from tl_jax.config.options import Options, group, option
from tl_jax.data import loader
from tl_jax.data.augment import AugmentConfig, augment_boxes
from tl_jax.data.dataset import Dataset, Split
from tl_jax.data.decode import Decoding
from tl_jax.data.detection import CLASS, COLUMNS, CROWD, check_objects, letterbox
from tl_jax.export.model_card import BundleContents
from tl_jax.metrics import Batch, Evaluation
from tl_jax.metrics.detection import box_evaluator
from tl_jax.models import centernet
from tl_jax.models.centernet import GROUP_SIZE, Detector, giou
from tl_jax.pretrained import formats
from tl_jax.pretrained.network import Pretrained, check_variables, variable_shapes, with_head
from tl_jax.report import images as drawing
from tl_jax.tasks import head_init, image_inputs
from tl_jax.tasks.error_analysis import thumbnail
from tl_jax.tasks.image_inputs import ImageInput
from tl_jax.tasks.image_network import build_network, load_network, random_network
from tl_jax.tasks.image_task import ImageRunConfig, ImageTask, make_regularize
from tl_jax.tasks.losses import Network, Pixels, make_features
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train import sharding
from tl_jax.train.evaluate import extract
from tl_jax.train.logging import say, warn
from tl_jax.train.state import TrainState
from tl_jax.train.task import Task, refuse_embeddings, register_task
from tl_jax.transfer import regularizers
from tl_jax.transfer.adapters import AdapterConfig
from tl_jax.transfer.regularizers import RegularizeConfig
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError
from tl_jax.utils.extras import require_extra

HEAD_FILE = "detector_head.safetensors"  # in a bundle
PREDICTIONS_FOLDER = "predictions"  # for annotated images, in the run's folder


def count_boxes(count: int) -> str:
    """Return "1 box" or "2 boxes"."""
    return f"{count} {'box' if count == 1 else 'boxes'}"


def answer_boxes(
    predict: Any,
    classes: Sequence[str],
    shape: tuple[int, int],
    min_score: float,
    batch_size: int,
    variables: Any,
    _: Sequence[ImageInput],
    images: Sequence[tuple[np.ndarray, float, tuple[int, int]]],
) -> Iterator[dict[str, Any]]:
    """Yield the detected boxes of each image, highest score first, as JSON values.

    Boxes are in pixels of the upright image, after EXIF rotation.

    Args:
        predict: (variables, batch) -> boxes (N, D, 6).
        classes: K names.
        shape: (H, W) of the training images.
        min_score: minimum score of a returned box.
        batch_size: maximum number of images per batch.
        variables: trained variables.
        images: for each image its pixels (H, W, 3), resize factor, and original height and width.
    """
    pixels, scales, sizes = zip(*images, strict=True)
    split = Split(np.stack(pixels), np.zeros((len(images), 1, COLUMNS), np.float32))  # labels are unused
    detections = extract(predict, variables, loader.eval_batches(split, batch_size)).astype(np.float64)
    for boxes, scale, (height, width) in zip(detections, scales, sizes, strict=True):
        boxes[:, :4] = np.clip(boxes[:, :4] / scale, 0, [width, height, width, height])
        yield {"boxes": [_box_json(row, classes) for row in boxes if row[-1] >= min_score]}


def draw_predictions(
    classes: Sequence[str],
    decoding: Decoding,
    results: Sequence[Mapping[str, Any]],
    images: Sequence[ImageInput],
    run: Path,
) -> list[Path]:
    """Draw the detected boxes; write a PNG per readable image to ``run/predictions``."""
    out_dir = run / PREDICTIONS_FOLDER
    paths: list[Path] = []
    for row, image in zip(results, images, strict=True):
        if "error" in row:
            continue
        name, used_stems = Path(row["input"]).stem, {path.stem for path in paths}
        file_stem = next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(results) + 2))) if n not in used_stems)
        boxes = np.array([box["box"] for box in row["boxes"]]).reshape(-1, 4)
        numbers = [classes.index(box["class"]) for box in row["boxes"]]
        texts = [f"{box['class']} {box['score']:.2f}" for box in row["boxes"]]
        paths.append(
            drawing.draw_boxes(
                image_inputs.read_pixels(image, decoding), boxes, numbers, texts, out_dir / f"{file_stem}.png"
            )
        )
    return paths


def _box_json(row: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "class": classes[int(row[4])],
        "score": round(float(row[5]), 4),
        "box": [round(v, 1) for v in row[:4].tolist()],
    }


def _box_line(row: Mapping[str, Any]) -> str:
    return f"  {row['class']}  {row['score']:.3f}  " + " ".join(f"{value:.1f}" for value in row["box"])


MAX_IMAGES = 6  # first images of the split
MAX_SIDE = 320  # maximum side in pixels


def example_boxes(
    classes: Sequence[str], split: Split, min_score: float, detections: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Return images with ground truth and detections, as boxes relative to width and height.

    Args:
        classes: K names.
        split: images (N, H, W, C) and labels (N, M, 6), see ``data.detection.build_dataset``.
        min_score: minimum score of a box.
        detections: boxes (D, 6) of each image: x0, y0, x1, y1, class, score.
    """
    height, width = split.inputs.shape[1:3]
    scale = np.asarray([width, height, width, height])
    rows = []
    for i in range(min(MAX_IMAGES, len(detections))):
        image, labels = split.inputs[np.asarray([i])][0], np.asarray(split.labels[i])
        shown = detections[i][detections[i][:, -1] >= min_score]
        rows.append(
            {
                "picture": thumbnail(image, MAX_SIDE),
                "aspect": width / height,
                "boxes": [_relative_box(row, classes, scale) | {"score": float(row[-1])} for row in shown],
                "labels": [_relative_box(row, classes, scale) for row in labels[labels[:, CLASS] >= 0]],
            }
        )
    return {"classes": list(classes), "least_score": min_score, "detections": rows}


def _relative_box(row: np.ndarray, classes: Sequence[str], scale: np.ndarray) -> dict[str, Any]:
    return {"class": classes[int(row[CLASS])], "box": np.round(row[:4] / scale, 4).tolist()}


BOX_WEIGHT = 5.0  # weight of the box loss relative to the center loss, as in TTFNet
FOCAL_ALPHA, FOCAL_BETA = 2, 4  # exponents of the focal loss, as in CenterNet


@dataclass(frozen=True)
class DetectConfig(Options):
    """Object detection settings."""

    classes: tuple[str, ...] = option((), "class names, in order; empty for those of the training split")
    width: int = option(64, "channels of the detection head, a multiple of 8", low=8)
    min_visibility: float = option(0.3, "a crop keeps a box if this fraction of it is visible", low=0.0, high=1.0)
    max_detections: int = option(100, "maximum number of boxes per image, highest scores first", low=1)
    nms_iou: float = option(0.6, "IoU threshold of non-maximum suppression, per class", low=0.0, high=1.0)
    score_threshold: float = option(0.3, "minimum score of a predicted box", low=0.0, high=1.0)


@dataclass(frozen=True)
class DetectionRunConfig(ImageRunConfig):
    """Configuration of a detection run."""

    detect: DetectConfig = group(DetectConfig)


@functools.cache
def make_loss(net: Network, augment_config: AugmentConfig, min_visibility: float, regularize: RegularizeConfig):
    """Return the training loss on augmented images: center and box losses, averaged over objects, plus penalties.

    A crop keeps a box if the fraction ``min_visibility`` of it is visible.
    """

    def loss(variables, batch, key):
        images, labels = augment_boxes(batch["inputs"], batch["label"], key, augment_config, min_visibility)
        out, endpoints, stats = net.train(variables, net.inputs(images), key)
        sums: dict[str, Any] = loss_terms(out, labels, batch["mask"], images.shape)
        value = sums["loss"][0] / jnp.maximum(sums["loss"][1], 1.0)
        source = variables.get("source", {})
        source_endpoints = (
            net._replace(adapters=AdapterConfig()).predict(source, images)[1] if regularize.compares_maps else {}
        )
        extra = regularizers.penalty(regularize, variables["params"], endpoints, batch, source, source_endpoints)
        if extra is not None:
            value, sums["penalty"] = value + extra, (extra, 1.0)
        return value, (stats, sums)

    return loss


@functools.cache
def make_metrics(net: Network):
    """Return the evaluation function: sums over images and object counts of the loss and its two terms."""

    def metrics(variables, batch):
        out, _ = net.predict(variables, batch["inputs"])
        return loss_terms(out, batch["label"], batch["mask"], batch["inputs"].shape)

    return metrics


@functools.cache
def make_predict(net: Network, max_detections: int, nms_iou: float):
    """Return the function (variables, batch) -> boxes (N, D, 6), see ``centernet.decode_detections``."""

    def predict(variables, batch):
        out, _ = net.predict(variables, batch["inputs"])
        return centernet.decode_detections(out, batch["inputs"].shape[1:3], max_detections, nms_iou)

    return predict


def focal_loss(logits: jax.Array, heat: jax.Array) -> jax.Array:
    """Return the elementwise focal loss of object centers, in nats (CenterNet, arXiv:1904.07850, equation 1).

    Args:
        logits: of the probability that an object center is here.
        heat: 1 at a center, and between 0 and 1 near one, where negatives weigh less.
    """
    log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    p = jax.nn.sigmoid(logits)
    positive, negative = (1 - p) ** FOCAL_ALPHA * log_p, (1 - heat) ** FOCAL_BETA * p**FOCAL_ALPHA * log_q
    return -jnp.where(heat == 1.0, positive, negative)


def loss_terms(out: Any, labels: jax.Array, mask: jax.Array, shape: tuple[int, ...]):
    """Return sums and object counts of the loss and of its terms; ``shape`` is that of the images."""
    height, width, count = out["heat"].shape[1:]
    cell = shape[1] / height, shape[2] / width

    def image_targets(label):
        classes = label[:, CLASS].astype(jnp.int32)
        return centernet.make_targets(label[:, :4], classes, label[:, CROWD] > 0, count, (height, width), cell)

    targets = jax.vmap(image_targets)(labels)
    # An object in a crowd region still counts.
    counted = jnp.maximum(targets.heat_mask[..., None], targets.heatmap == 1.0)
    middles = (focal_loss(out["heat"], targets.heatmap) * counted).sum((1, 2, 3))
    boxes = ((1 - giou(centernet.decode_boxes(out["sides"], cell), targets.boxes)) * targets.weights).sum((1, 2))
    objects = ((labels[..., CLASS] >= 0) & (labels[..., CROWD] == 0)).sum(1)
    total = (objects * mask).sum().astype(jnp.float32)
    terms = {"middles": (middles * mask).sum(), "boxes": (boxes * mask).sum()}
    terms = {"loss": terms["middles"] + BOX_WEIGHT * terms["boxes"], **terms}
    return {name: (value, total) for name, value in terms.items()}


@register_task("detection")
class Detection(ImageTask):
    """Object detection: boxes of K classes in each image."""

    about = "images with object boxes"
    data_inputs, synthetic = "boxes", "scenes"
    config_class = DetectionRunConfig
    # These need one label per image, or change images in ways that boxes cannot follow.
    unused_fields = (
        "augment.crop_pad", "augment.erase", "augment.magnitude", "augment.randaugment", "augment.rotate", "cache.",
        "data.fit", "data.group", "data.per_class", "data.windows", "init.folds", "init.head",
        "init.start_loss", "init.strength", "input.crop",
        "input.interpolation", "model.num_classes", "pretext.", "regularize.class_weights", "regularize.cutmix",
        "regularize.dropout", "regularize.label_smoothing", "regularize.mixup", "regularize.stochastic_norm",
        "test_views", "wise_ft",
    )  # fmt: skip
    program_output = "features"
    unexported = ("head",)
    has_classes = has_features = False
    score = "map"
    evaluates_outputs = True
    prediction_columns = ("boxes",)

    def __init__(self, config: Any, record: RunRecord = NEW_RUN):
        """Build the task of ``config`` for a run with the given record."""
        with require_extra("detection"):
            import pycocotools  # noqa: F401  # used by the evaluation; fails here, before training
        random_init = config.init.source == "random"
        if random_init:
            net = random_network(config, 0)
        else:
            net = load_network(config) if record.reads_weights else build_network(config, record.facts)
            net = with_head(net, 0, "new")
        for note in net.notes:
            say(note)
        self.image_size = size = config.input.size or net.spec.image_size
        scaling = net.spec.scaling if config.input.scaling == "spec" else config.input.scaling
        stored_shape = record.facts.get("input", {}).get("shape", (0, 0))
        no_examples = np.zeros((0, *stored_shape, 3), np.uint8), np.zeros((0, 1, COLUMNS), np.float32)
        source = record.source(lambda: self.load_source(config, size), *no_examples)
        self.config, self.splits = config, record.split_data(config, source)
        check_splits(source.name, self.splits)
        warn_missing_classes(source, self.splits["train"])
        self.detector = with_detector(net, len(source.classes), config.detect.width)
        inputs = Pixels(net.model.channels, scaling)
        self.network = Network(self.detector.model, inputs, config.adapt)
        height, width = source.train.inputs.shape[1:3]
        self.regularize, self.shape = make_regularize(config, self.detector), (height, width)
        self.decoding = self.make_decoding(config)._replace(value_range=source.value_range)
        self.name, self.classes = f"{config.model.name} on {source.name}", source.classes
        self.loss = make_loss(self.network, config.augment, config.detect.min_visibility, self.regularize)
        self.metrics, self.features = make_metrics(self.network), make_features(self.network)
        self.outputs = make_predict(self.network, config.detect.max_detections, config.detect.nms_iou)
        train = self.splits["train"]
        self.train_batch = loader.Stream(train.inputs, train.labels, config.seed, config.batch_size)
        self.sizes, self.stages = record.sizes(self.splits), self.detector.model.stage_names()
        facts = {"size": size, "shape": list(self.shape), "crop": 1.0, "interpolation": "bilinear", "scaling": scaling}
        self.facts = {
            "weights": str(net.path or "random"),
            "weights_sha256": net.sha256,
            "data": source.name,
            "tested": source.test_origin,
            "input": facts,
            **source.facts(),
            "new_head": True,
            "spec": net.spec.to_dict(),
            **record.describe(source, self.splits, config.data.dir),
        }

    @classmethod
    def conflicts(cls, config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
        return {
            **super().conflicts(config, changed),
            "detect.min_visibility has an effect with config.augment.resized_crop only": (
                changed("detect.min_visibility") and not config.augment.resized_crop
            ),
        }

    @classmethod
    def set_defaults(cls, config: Any) -> None:
        config.augment.flip, config.augment.resized_crop, config.augment.jitter = True, 0.4, 0.2
        config.batch_size, config.optim.clip_norm = 16, 1.0

    @classmethod
    def box_classes(cls, config: Any) -> tuple[str, ...]:
        return config.detect.classes

    def export_weights(self, folder: Path, start: TrainState | None, end: TrainState, dtype: str) -> Path:
        """Write the backbone as other tasks do, and the detection head next to it."""
        path = super().export_weights(folder, start, end, dtype)
        head = {"params": {"head": end.params["head"]}}
        formats.save_native(path.with_name(HEAD_FILE), head, self._exported_spec(), {"classes": self.classes}, dtype)
        return path

    def bundle_contents(self, folder: Path, step: int) -> BundleContents:
        contents = super().bundle_contents(folder, step)
        return contents._replace(files={**contents.files, HEAD_FILE: "detection head, for load_learner"})

    def bundle_variables(self, folder: Path) -> dict[str, Any]:
        formats.check_bundle(folder, [HEAD_FILE])
        net = pretrained.load(self.config.model.name, "tl_jax", folder)
        head = tree.unflatten(formats.read_native(folder / HEAD_FILE))["params"]
        variables = {**net.variables, "params": {**net.variables["params"], **head}}
        return check_variables(variables, variable_shapes(self.network.model), folder)

    def init(self, key: jax.Array) -> dict[str, Any]:
        return init_variables(self.detector, self.network.adapters, self.regularize, key)

    def cache_features(self, variables: Any, phase: Any) -> Task:
        return self

    def evaluate(self, outputs: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
        return box_evaluator(self.classes)(outputs, batches)

    def test_details(self, predictions: Any) -> dict[str, Any]:
        return example_boxes(self.classes, self.splits["test"], self.config.detect.score_threshold, predictions)

    def augmented_examples(
        self, images: Any, labels: Any, keys: Any, augment_config: AugmentConfig
    ) -> tuple[Any, Any, Any]:
        step = jax.jit(augment_boxes, static_argnums=(3, 4))
        visible = self.config.detect.min_visibility
        augmented = np.stack([_with_boxes(*step(images, labels, key, augment_config, visible)) for key in keys])
        captions = [count_boxes(count) for count in (labels[..., CLASS] >= 0).sum(1)]
        return _with_boxes(images, labels), augmented, captions

    def predict(self, variables: Any, inputs: Sequence[Any], embeddings: bool = False) -> Iterator[dict[str, Any]]:
        refuse_embeddings(self.kind, embeddings)
        size = min(self.config.eval_batch_size, sharding.round_up(len(inputs)))
        answer = functools.partial(
            answer_boxes, self.outputs, self.classes, self.shape, self.config.detect.score_threshold, size, variables
        )
        return image_inputs.predict_rows(inputs, self.decoding, size, self._fit_pixels, answer)

    def _fit_pixels(self, image: np.ndarray) -> tuple[np.ndarray, float, tuple[int, int]]:
        return *letterbox(image, self.shape), (image.shape[0], image.shape[1])

    def draw_prediction(self, row: Mapping[str, Any]) -> str:
        threshold = self.config.detect.score_threshold
        head = f"{row['input']}: {len(row['boxes'])} boxes with a score of {threshold:g} or more"
        return "\n".join([head, *map(_box_line, row["boxes"])])

    def draw_predictions(self, rows: Sequence[Mapping[str, Any]], inputs: Sequence[Any], folder: Path) -> list[Path]:
        return draw_predictions(self.classes, self.decoding, rows, inputs, folder)


def _with_boxes(images: Any, labels: Any) -> np.ndarray:
    """Draw the boxes of the labels (N, M, 6) on images (N, H, W, 3)."""
    images, labels = np.asarray(images), np.asarray(labels)
    return drawing.outline_boxes(images, labels[..., :4], labels[..., CLASS])


def with_detector(net: Pretrained, classes: int, width: int) -> Pretrained:
    """Return a backbone as a detector of ``classes`` with a randomly initialized head."""
    if width % GROUP_SIZE:
        raise UserError(f"config.detect.width={width} is not a multiple of {GROUP_SIZE}; choose one")
    return net._replace(model=Detector(net.model, classes, width), new_head=True)


def init_variables(
    net: Pretrained, adapters: AdapterConfig, regularize: RegularizeConfig, key: jax.Array
) -> dict[str, Any]:
    """Return the initial variables; leaves that are not loaded are sampled with ``key``."""
    variables = head_init.network_variables(net, key)
    source_collection = head_init.source_collection(regularize, variables)
    variables = head_init.with_adapters(variables, adapters, jax.random.fold_in(key, 1))
    return {**variables, **({"source": source_collection} if source_collection else {})}


def warn_missing_classes(source: Dataset, train: Split) -> None:
    """Warn about classes without any object in train, once the validation and other examples are removed."""
    present = train.labels[..., CLASS][train.labels[..., CROWD] == 0]
    missing = [name for k, name in enumerate(source.classes) if not (present == k).any()]
    if missing and len(train.labels):
        warn(
            f"{source.name}: no object of {', '.join(missing)} is left in train, so none will be detected; lower "
            "config.data.validation, raise config.data.train_examples, or add a validation split"
        )


def check_splits(name: str, splits: Mapping[str, Split]) -> None:
    """Raise UserError if a split has no objects to learn or to measure."""
    for split_name, split in splits.items():
        if len(split.labels):
            check_objects(name, split_name, split.labels[split.labels[..., CLASS] >= 0][:, CROWD] > 0)
