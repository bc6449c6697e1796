"""Detection: a pretrained (or random) network, a new detection head, pictures with boxes around their objects."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tl_jax.data import batches, changes, coco, scenes, value_range, voc
from tl_jax.data.augment import Augment
from tl_jax.data.boxes import CLASS, COLUMNS, CROWD, check_objects
from tl_jax.data.decoding import Decoding
from tl_jax.data.pictures import Source, Split
from tl_jax.errors import UserError, nearest
from tl_jax.models.detector import GROUP, Detector
from tl_jax.network import Pretrained, with_head
from tl_jax.task import Task
from tl_jax.tasks import box_details, detection_answers, image, starting
from tl_jax.tasks.average_precision import of_boxes
from tl_jax.tasks.detection_objectives import Finding, make_loss, make_metrics, make_predict
from tl_jax.tasks.objectives import Network, Pixels, make_features
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train.log import say
from tl_jax.transfer.adapters import Adapters
from tl_jax.transfer.penalties import Regularize

READERS = {"voc": voc.read, "coco": coco.read}
DRAWN = "scenes"


def make(config: Any, record: RunRecord = NEW_RUN) -> Task:
    """Build the task that ``config`` describes, for a run of which ``record`` is known."""
    drawn = config.init.source == "random"
    net = image.draw_network(config, 0) if drawn else with_head(image.load_network(config), 0, "new")
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
    how, shape = image.regularize(config, whole), source.train.images.shape[1:3]
    predict = make_predict(network, Finding(config.detect.most, config.detect.overlap))
    rules = Decoding((), source.value_range, config.data.max_pixels, outside=config.data.outside)
    asked = predict, source.classes, shape, config.detect.score, rules, config.eval_batch_size
    return Task(
        name=f"{config.model.name} on {source.name}",
        classes=source.classes,
        init=functools.partial(start, whole, network.adapters, how),
        loss=make_loss(network, Augment(**config.augment.to_dict()), config.detect.visible, how),
        metrics=make_metrics(network),
        features=make_features(network),
        train_batch=batches.Stream(parts["train"].images, parts["train"].labels, config.seed, config.batch_size),
        eval_batches=lambda part: batches.eval_batches(parts[part], config.eval_batch_size),
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
        judge=of_boxes(source.classes),
        details=functools.partial(box_details.of_boxes, source.classes, parts["test"], config.detect.score),
        answer=functools.partial(detection_answers.answer, *asked),
        illustrate=functools.partial(detection_answers.illustrate, source.classes, rules),
    )


def with_detector(net: Pretrained, classes: int, width: int) -> Pretrained:
    """Return a network without a head as a detector of ``classes`` whose head is still to be drawn."""
    if width % GROUP:
        raise UserError(f"config.detect.width={width} is no multiple of {GROUP}")
    return net._replace(model=Detector(net.model, classes, width), new_head=True)


def start(net: Pretrained, adapters: Adapters, how: Regularize, key: jax.Array) -> dict[str, Any]:
    """Return the variables that training starts from, drawn from ``key`` as far as they are not loaded."""
    variables = starting.plain(net, key)
    kept = starting.source(how, variables)
    variables = starting.adapted(variables, adapters, jax.random.fold_in(key, 1))
    return {**variables, **({"source": kept} if kept else {})}


def load_source(config: Any, size: int) -> Source:
    """Load the pictures of ``config``, or draw some where ``data.generate`` says so."""
    data = config.data
    name = DRAWN if data.generate and not data.dir else data.name
    rules = Decoding((), value_range.parse(data.range), data.max_pixels, outside=data.outside)
    how = size, data.gigabytes * 1e9, tuple(config.detect.classes), rules
    return _read(changes.stamp(name, data.dir), name, data.dir, *how)


@functools.lru_cache(maxsize=1)  # the runs of a comparison share one copy; nobody writes to it
def _read(
    _: str, name: str, folder: str, size: int, most_bytes: float, classes: tuple[str, ...], rules: Decoding
) -> Source:
    if name == DRAWN:
        return scenes.scenes(size=size)
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
