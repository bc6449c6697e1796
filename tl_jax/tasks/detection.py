"""Object detection task: a pretrained or random network with a new detection head, its losses and predictions.

Losses, metrics and predictions are made from hashable options, so that runs share compiled code.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.data import coco, fingerprint, loader, synthetic, value_range, voc
from tl_jax.data.augment import Augment, augment_boxes
from tl_jax.data.dataset import Source, Split
from tl_jax.data.decode import Decoding, decode
from tl_jax.data.detection import CLASS, COLUMNS, CROWD, check_objects, letterbox
from tl_jax.data.image_folder import named
from tl_jax.metrics.detection import box_evaluator as _of_boxes
from tl_jax.models import centernet
from tl_jax.models.centernet import GROUP, Detector, giou
from tl_jax.pretrained.network import Pretrained, with_head
from tl_jax.report import images as drawing
from tl_jax.tasks import file_answers, head_init, image_classification
from tl_jax.tasks.error_analysis import thumbnail
from tl_jax.tasks.losses import Network, Pixels, make_features
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train import sharding
from tl_jax.train.evaluate import extract
from tl_jax.train.logging import say
from tl_jax.train.task import Task
from tl_jax.transfer import regularizers
from tl_jax.transfer.adapters import Adapters
from tl_jax.transfer.regularizers import Regularize
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.extras import needs

FOLDER = "predictions"  # of drawn pictures, in that of the run


def answer(
    predict: Any,
    classes: Sequence[str],
    shape: tuple[int, int],
    least: float,
    decoding: Decoding,
    size: int,
    variables: Any,
    inputs: Sequence[str],
) -> tuple[list[dict[str, Any]], str]:
    """Return for each picture its boxes, the surest first, for JSON, and all of it as text.

    Boxes are in pixels of the picture the right way up, as its EXIF orientation says. A file that cannot be read has
    its error instead; where that is every file, it is a UserError.

    Args:
        predict: (variables, batch) -> boxes (N, D, 6).
        classes: K names.
        shape: (H, W) of the pictures that the detector was trained on.
        least: score of the boxes that are said.
        decoding: how files become pixels, as in training.
        size: pictures at once, at most.
        variables: trained.
        inputs: picture files, and folders of such.
    """
    files = named(inputs, decoding.outside)
    size = min(size, sharding.whole(len(files)))
    found, lines, errors = {}, [], []
    for some, pictures in file_answers.decoded(files, decoding, size, errors):
        for file, own in zip(some, _boxes(predict, shape, size, variables, pictures), strict=True):
            rows = [_said(row, classes) for row in own if row[-1] >= least]
            found[file] = {"boxes": rows}
            lines += [f"{file}: {len(rows)} boxes with a score of {least:g} or more", *map(_line, rows)]
    return file_answers.rows(files, found, errors), "\n".join([*lines, *file_answers.summary(files, errors)])


def illustrate(classes: Sequence[str], decoding: Decoding, found: Sequence[Mapping[str, Any]], run: Path) -> list[Path]:
    """Draw what was found on the pictures; write a PNG for each that could be read to ``run/predictions``."""
    out = run / FOLDER
    paths: list[Path] = []
    for row in found:
        if "error" in row:
            continue
        name, taken = Path(row["input"]).stem, {path.stem for path in paths}
        unique = next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(found) + 2))) if n not in taken)
        boxes = np.array([each["box"] for each in row["boxes"]]).reshape(-1, 4)
        numbers = [classes.index(each["class"]) for each in row["boxes"]]
        texts = [f"{each['class']} {each['score']:.2f}" for each in row["boxes"]]
        paths.append(
            drawing.draw_boxes(decode(Path(row["input"]), decoding), boxes, numbers, texts, out / f"{unique}.png")
        )
    return paths


def _boxes(
    predict: Any, shape: tuple[int, int], size: int, variables: Any, pictures: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return the boxes (D, 6) of each picture in its pixels."""
    fitted, scales = zip(*(letterbox(picture, shape) for picture in pictures), strict=True)
    split = Split(np.stack(fitted), np.zeros((len(pictures), 1, COLUMNS), np.float32))  # nobody reads these labels
    found = extract(predict, variables, loader.eval_batches(split, size)).astype(np.float64)
    for own, picture, scale in zip(found, pictures, scales, strict=True):
        height, width = picture.shape[:2]
        own[:, :4] = np.clip(own[:, :4] / scale, 0, [width, height, width, height])
    return list(found)


def _said(row: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "class": classes[int(row[4])],
        "score": round(float(row[5]), 4),
        "box": [round(v, 1) for v in row[:4].tolist()],
    }


def _line(row: Mapping[str, Any]) -> str:
    return f"  {row['class']}  {row['score']:.3f}  " + " ".join(f"{value:.1f}" for value in row["box"])


SHOWN = 6  # pictures, the first of the part
SIDE = 320  # pixels of them at the most


def of_boxes(classes: Sequence[str], part: Split, least: float, found: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return pictures with boxes as shares of their width and height.

    Args:
        classes: K names.
        part: pictures (N, H, W, C) and labels (N, M, 6), see ``data.detection.assemble``.
        least: score of the boxes that are shown.
        found: boxes (D, 6) of each picture: x0, y0, x1, y1, class, score.
    """
    height, width = part.images.shape[1:3]
    scale = np.asarray([width, height, width, height])
    rows = []
    for i in range(min(SHOWN, len(found))):
        image, labels = part.images[np.asarray([i])][0], np.asarray(part.labels[i])
        sure = found[i][found[i][:, -1] >= least]
        rows.append(
            {
                "picture": thumbnail(image, SIDE),
                "aspect": width / height,
                "boxes": [_box(row, classes, scale) | {"score": float(row[-1])} for row in sure],
                "labels": [_box(row, classes, scale) for row in labels[labels[:, CLASS] >= 0]],
            }
        )
    return {"classes": list(classes), "least_score": least, "detections": rows}


def _box(row: np.ndarray, classes: Sequence[str], scale: np.ndarray) -> dict[str, Any]:
    return {"class": classes[int(row[CLASS])], "box": np.round(row[:4] / scale, 4).tolist()}


BOXES = 5.0  # weight of the boxes in the loss beside that of the middles, as TTFNet has it
FOCUS, NEAR = 2, 4  # exponents of the focal loss, as CenterNet has them


class Finding(NamedTuple):
    """Which boxes are given: at most ``most`` of a picture, none with an IoU above ``overlap`` with a better one."""

    most: int
    overlap: float


@functools.cache
def make_loss(net: Network, how: Augment, visible: float, regularize: Regularize):
    """Return the training loss on augmented pictures: of middles and of boxes, mean over objects; penalties are added.

    ``visible`` is the share of a box that a crop must leave.
    """

    def loss(variables, batch, key):
        images, labels = augment_boxes(batch["image"], batch["label"], key, how, visible)
        out, end, stats = net.train(variables, net.inputs(images), key)
        sums: dict[str, Any] = loss_terms(out, labels, batch["mask"], images.shape)
        value = sums["loss"][0] / jnp.maximum(sums["loss"][1], 1.0)
        source = variables.get("source", {})
        source_end = net._replace(adapters=Adapters()).predict(source, images)[1] if regularize.compares_maps else {}
        extra = regularizers.penalty(regularize, variables["params"], end, batch, source, source_end)
        if extra is not None:
            value, sums["penalty"] = value + extra, (extra, 1.0)
        return value, (stats, sums)

    return loss


@functools.cache
def make_metrics(net: Network):
    """Return the evaluation function: sums over pictures and counts of objects, of the loss and its two terms."""

    def metrics(variables, batch):
        out, _ = net.predict(variables, batch["image"])
        return loss_terms(out, batch["label"], batch["mask"], batch["image"].shape)

    return metrics


@functools.cache
def make_predict(net: Network, how: Finding):
    """Return the function (variables, batch) -> boxes (N, D, 6), see ``centernet.detections``."""

    def predict(variables, batch):
        out, _ = net.predict(variables, batch["image"])
        return centernet.detections(out, batch["image"].shape[1:3], *how)

    return predict


def focal_loss(logits: jax.Array, heat: jax.Array) -> jax.Array:
    """Return the focal loss of middles, elementwise, in nats (CenterNet, arXiv:1904.07850, equation 1).

    Args:
        logits: of the probability that an object has its middle here.
        heat: 1 where it has, and up to 1 near it, where less is said against it.
    """
    log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    p = jax.nn.sigmoid(logits)
    there, absent = (1 - p) ** FOCUS * log_p, (1 - heat) ** NEAR * p**FOCUS * log_q
    return -jnp.where(heat == 1.0, there, absent)


def loss_terms(out: Any, labels: jax.Array, mask: jax.Array, shape: tuple[int, ...]):
    """Return sums and counts of objects, of the whole loss and of its terms; ``shape`` is that of the pictures."""
    high, wide, count = out["heat"].shape[1:]
    cell = shape[1] / high, shape[2] / wide

    def one(label):
        classes = label[:, CLASS].astype(jnp.int32)
        return centernet.targets(label[:, :4], classes, label[:, CROWD] > 0, count, (high, wide), cell)

    wanted = jax.vmap(one)(labels)
    counted = jnp.maximum(wanted.counted[..., None], wanted.heat == 1.0)  # an object in a crowd is still to be found
    middles = (focal_loss(out["heat"], wanted.heat) * counted).sum((1, 2, 3))
    boxes = ((1 - giou(centernet.boxes_of(out["sides"], cell), wanted.boxes)) * wanted.weights).sum((1, 2))
    objects = ((labels[..., CLASS] >= 0) & (labels[..., CROWD] == 0)).sum(1)
    total = (objects * mask).sum().astype(jnp.float32)
    terms = {"middles": (middles * mask).sum(), "boxes": (boxes * mask).sum()}
    terms = {"loss": terms["middles"] + BOXES * terms["boxes"], **terms}
    return {name: (value, total) for name, value in terms.items()}


READERS = {"voc": voc.read, "coco": coco.read}
DRAWN = "scenes"


def make(config: Any, record: RunRecord = NEW_RUN) -> Task:
    """Build the task that ``config`` describes, for a run of which ``record`` is known."""
    with needs("detection"):
        import pycocotools  # noqa: F401  # which the evaluation needs: said before the training
    drawn = config.init.source == "random"
    net = (
        image_classification.draw_network(config, 0)
        if drawn
        else with_head(image_classification.load_network(config), 0, "new")
    )
    for note in net.notes:
        say(note)
    size = config.input.size or net.spec.image_size
    scaling = net.spec.scaling if config.input.scaling == "spec" else config.input.scaling
    stored = record.facts.get("input", {}).get("shape", (0, 0))
    none = np.zeros((0, *stored, 3), np.uint8), np.zeros((0, 1, COLUMNS), np.float32)
    source = record.source(lambda: load_source(config, size), *none)
    parts = record.cut(config, source)
    check_parts(source.name, parts)
    tell_unlearned(source, parts["train"])
    whole = with_detector(net, len(source.classes), config.detect.width)
    network = Network(whole.model, Pixels(net.model.channels, scaling), Adapters(**config.adapt.to_dict()))
    how, shape = image_classification.regularize(config, whole), source.train.images.shape[1:3]
    predict = make_predict(network, Finding(config.detect.max_detections, config.detect.nms_iou))
    rules = Decoding((), source.value_range, config.data.max_pixels, outside=config.data.outside)
    asked = predict, source.classes, shape, config.detect.score_threshold, rules, config.eval_batch_size
    return Task(
        name=f"{config.model.name} on {source.name}",
        classes=source.classes,
        init=functools.partial(start, whole, network.adapters, how),
        loss=make_loss(network, Augment(**config.augment.to_dict()), config.detect.min_visibility, how),
        metrics=make_metrics(network),
        features=make_features(network),
        train_batch=loader.Stream(parts["train"].images, parts["train"].labels, config.seed, config.batch_size),
        eval_batches=lambda part: loader.eval_batches(parts[part], config.eval_batch_size),
        sizes=record.sizes(parts),
        facts={
            "weights": str(net.path or "random"),
            "weights_sha256": net.sha256,
            "data": source.name,
            "tested": source.tested,
            "input": {"size": size, "shape": list(shape), "crop": 1.0, "interpolation": "bilinear", "scaling": scaling},
            **source.facts(),
            "new_head": True,
            "spec": net.spec.to_dict(),
            **record.describe(source, parts, config.data.dir),
        },
        parts=whole.model.part_names(),
        score="map",
        predict=predict,
        judge=_of_boxes(source.classes),
        details=functools.partial(of_boxes, source.classes, parts["test"], config.detect.score_threshold),
        answer=functools.partial(answer, *asked),
        illustrate=functools.partial(illustrate, source.classes, rules),
    )


def with_detector(net: Pretrained, classes: int, width: int) -> Pretrained:
    """Return a network without a head as a detector of ``classes`` whose head is still to be drawn."""
    if width % GROUP:
        raise UserError(f"config.detect.width={width} is no multiple of {GROUP}")
    return net._replace(model=Detector(net.model, classes, width), new_head=True)


def start(net: Pretrained, adapters: Adapters, how: Regularize, key: jax.Array) -> dict[str, Any]:
    """Return the variables that training starts from, drawn from ``key`` as far as they are not loaded."""
    variables = head_init.plain(net, key)
    kept = head_init.source(how, variables)
    variables = head_init.adapted(variables, adapters, jax.random.fold_in(key, 1))
    return {**variables, **({"source": kept} if kept else {})}


def load_source(config: Any, size: int) -> Source:
    """Load the pictures of ``config``, or draw some where ``data.generate`` says so."""
    data = config.data
    name = DRAWN if data.generate and not data.dir else data.name
    rules = Decoding((), value_range.parse(data.range), data.max_pixels, outside=data.outside)
    how = size, data.gigabytes * 1e9, tuple(config.detect.classes), rules
    return _read(fingerprint.stamp(name, data.dir), name, data.dir, *how)


@functools.lru_cache(maxsize=1)  # the runs of a comparison share one copy; nobody writes to it
def _read(
    _: str, name: str, folder: str, size: int, most_bytes: float, classes: tuple[str, ...], rules: Decoding
) -> Source:
    if name == DRAWN:
        return synthetic.scenes(size=size)
    if name not in READERS:
        raise UserError(f"config.data.name={name!r} has no boxes; {nearest(name, (*READERS, DRAWN))}")
    if not folder:
        raise UserError(f"config.data.name={name} needs a folder; pass --config.data.dir=FOLDER")
    return READERS[name](Path(folder), size, most_bytes, classes, rules)


def tell_unlearned(source: Source, train: Split) -> None:
    """Say which classes have no object left in train, once validation and other examples are cut from it."""
    kinds = train.labels[..., CLASS][train.labels[..., CROWD] == 0]
    missing = [name for k, name in enumerate(source.classes) if not (kinds == k).any()]
    if missing and len(train.labels):
        say(
            f"{source.name}: no object of {', '.join(missing)} is left in train, so that none will be found; lower "
            "config.data.validation, raise config.data.train_examples, or bring a validation split"
        )


def check_parts(name: str, parts: Mapping[str, Split]) -> None:
    """Refuse parts on which nothing could be learned or measured."""
    for part, split in parts.items():
        if len(split.labels):
            check_objects(name, part, split.labels[split.labels[..., CLASS] >= 0][:, CROWD] > 0)
