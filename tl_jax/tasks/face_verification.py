"""Face verification and identification task: embeddings trained on some people and tested on others.

A prediction is the nearest known person, and whether that is near enough.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tl_jax.data import decode, faces, fingerprint, image_folder, loader, value_range
from tl_jax.data.augment import Augment
from tl_jax.data.dataset import Rows, Source, Split, as_names
from tl_jax.data.decode import DEFAULT, Decoding
from tl_jax.data.faces import Album, Cut
from tl_jax.metrics import Batch, Evaluation, verification
from tl_jax.metrics.verification import Comparisons, Pairs
from tl_jax.models.layers import glorot_uniform
from tl_jax.report import plots
from tl_jax.tasks import file_answers, image_classification
from tl_jax.tasks.losses import Network, make_embeddings, make_loss
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train.evaluate import extract
from tl_jax.train.logging import say
from tl_jax.train.task import Task
from tl_jax.transfer.arcface import Margin
from tl_jax.transfer.regularizers import Regularize
from tl_jax.transfer.self_supervised import Pretext
from tl_jax.utils.errors import UserError


def answer(
    config: Any,
    album: Callable[[], Album],
    task: Task,
    size: int,
    fitted: float | None,
    variables: Any,
    inputs: Sequence[str],
) -> tuple[list[dict[str, Any]], str]:
    """Return for each picture the nearest known person, for JSON, and all of it as text.

    Known are the pictures of ``config.faces.known``, or else of ``album``; a picture is not compared with itself. It
    shows the same person if the cosine reaches the threshold that is best on the validation split. A file that cannot
    be read has its error instead; if that is every file, it is a UserError.

    Args:
        config: the configuration.
        album: reads all pictures of the data.
        task: with the embeddings as ``predict``.
        size: side in pixels to which pictures of differing sizes are fitted.
        fitted: the threshold that the finished run has found already, None for a run without.
        variables: trained.
        inputs: one folder, or one picture.
    """
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    if len(inputs) != 1:
        raise UserError("--mode=predict takes one folder with pictures of people; pass --input=FOLDER")
    known_folder = config.faces.known or config.data.dir
    if known_folder and not Path(known_folder).expanduser().exists():
        raise UserError(
            f"no folder {known_folder} with the known people; set config.faces.known to a folder with PERSON/PICTURE"
        )
    files = image_folder.pictures(Path(inputs[0]), config.data.outside)
    rules = Decoding((), value_range.of_facts(task.facts), config.data.max_pixels, True, config.data.outside)
    most_bytes = config.data.gigabytes * 1e9
    readable, errors = file_answers.readable(files, rules)
    images = decode.decode_all("pictures", readable, size, most_bytes, rules)
    known = faces.read(config.faces.known, size, most_bytes, rules) if config.faces.known else album()

    def embed(split: Split) -> np.ndarray:
        return extract(task.predict, variables, loader.eval_batches(split, config.eval_batch_size))

    similarity = embed(Split(images, np.zeros(len(readable), np.int32))) @ embed(known.pictures).T
    where = {file.resolve(): at for at, file in enumerate(known.files)}
    for row, file in enumerate(readable):
        if (at := where.get(file.resolve())) is not None:
            similarity[row, at] = -np.inf
    nearest, bar = similarity.argmax(1), threshold(task, variables) if fitted is None else fitted
    found = {}
    for row, (file, at) in enumerate(zip(readable, nearest, strict=True)):
        cosine = float(similarity[row, at])
        found[file] = {
            "person": known.people[known.pictures.labels[at]],
            "picture": str(known.files[at]),
            "similarity": cosine,
            "threshold": bar,
            "same": None if bar is None else cosine >= bar,
        }
    rows = file_answers.rows(files, found, errors)
    lines = [_line(row) for row in rows if "error" not in row]
    return rows, "\n".join([*lines, *file_answers.summary(files, errors)])


def threshold(task: Task, variables: Any) -> float | None:
    """Return the threshold that is best on all pairs of the validation part, None where there is no such part."""
    if not task.sizes["validation"]:
        say("no validation people (config.data.validation=0), so no threshold: nothing is said of same or different")
        return None
    labels = np.concatenate([b["label"][b["mask"] > 0] for b in task.eval_batches("validation")])
    embeddings, pairs = (
        extract(task.predict, variables, task.eval_batches("validation")),
        verification.all_pairs(labels),
    )
    return verification.best_threshold(verification.pair_cosines(embeddings, pairs), pairs.same)


def _line(found: dict[str, Any]) -> str:
    verdict = {None: "", True: "same", False: "different"}[found["same"]]
    return f"  {found['input']}  {found['person']}  {found['similarity']:.3f}  {verdict}".rstrip()


SETS = ("folder", "lfw")


class Faces(NamedTuple):
    """The data: all pictures, their parts, and the pairs of the test part, None for every pair."""

    album: Album
    source: Source
    pairs: Pairs | None


def make(config: Any, record: RunRecord = NEW_RUN) -> Task:
    """Build the task that ``config`` describes, for a run of which ``record`` is known."""
    net, inputs = image_classification.opened(config)
    data, limit = config.data, config.data.gigabytes * 1e9
    album = functools.partial(read, data.name, data.dir, data.generate, inputs.size, limit, rules_of(config, record))
    faces = load(config, inputs.size) if record.reads_data else without_data(record)
    margin = Margin(config.faces.loss, config.faces.scale, config.faces.margin, len(faces.source.classes))
    functions = functools.partial(embedder, margin, config.test_views)
    task, _, parts = image_classification.build(
        config, net, inputs, faces.source, config.faces.embedding, functions, record
    )
    return task._replace(
        init=functools.partial(start, task, parts["train"].images.shape[1:]),
        judge=functools.partial(judge, faces, config.faces.gallery),
        report=functools.partial(report, task.name),
        answer=functools.partial(answer, config, album, task, inputs.size, record.fitted.get("threshold")),
        score="auc",
    )


def embedder(
    margin: Margin, count: int, network: Network, how: Augment, penalties: Regularize, beside: Pretext | None
) -> dict[str, Any]:
    """Return the functions of a task of people, tested on ``count`` views, by the names of ``Task``."""
    loss = make_loss(network, how, penalties, beside, margin)
    return {"loss": loss, "metrics": _nothing, "predict": make_embeddings(network, count)}


def _nothing(variables: Any, batch: Batch) -> dict[str, Any]:
    """Return no sums: who is tested has no class, and what is measured is judged on all embeddings together."""
    return {}


def without_data(record: RunRecord) -> Faces:
    """Return the data of a run that only predicts or is exported: the people it was trained on, without pictures."""
    images, labels = image_classification.no_images(record)
    source = record.classes_alone(images, labels)
    return Faces(Album(source.name, source.train, source.classes, ()), source, None)


def start(task: Task, shape: Sequence[int], key: jax.Array) -> dict[str, Any]:
    """Return the variables that training starts from, with centres (E, K) of the people in training.

    Args:
        task: without these centres.
        shape: (H, W, 3) of the pictures.
        key: to draw from.
    """
    variables = task.init(key)
    assert task.predict
    one = {"image": jax.ShapeDtypeStruct((1, *shape), np.uint8)}
    width = jax.eval_shape(task.predict, variables, one).shape[-1]
    drawn = glorot_uniform(jax.random.fold_in(key, 3), (width, len(task.classes)))
    extra = {**variables["params"].get("extra", {}), "people": {"kernel": drawn}}
    return {**variables, "params": {**variables["params"], "extra": extra}}


def rules_of(config: Any, record: RunRecord = NEW_RUN) -> Decoding:
    """Return how image files become pixels: as the run has read them, or else as ``config`` says."""
    if limits := value_range.of_facts(record.facts):
        return Decoding((), limits, config.data.max_pixels, True, config.data.outside)
    return Decoding((), value_range.parse(config.data.range), config.data.max_pixels, outside=config.data.outside)


def load(config: Any, size: int) -> Faces:
    """Load the pictures of people that ``config`` names, or draw them where ``data.generate`` says so."""
    data = config.data
    album = read(data.name, data.dir, data.generate, size, data.gigabytes * 1e9, rules_of(config))
    listed = faces.read_pairs(config.faces.pairs) if config.faces.pairs else None
    named = listed.people if listed else faces.names(config.faces.test_file) if config.faces.test_file else ()
    test, seed, least = config.faces.test_identities, config.faces.split_seed, config.faces.min_images
    cut = Cut(test, named, seed, data.validation, config.seed, least)
    source, rows = faces.split(album, cut)
    if data.dir and data.name == "folder":
        source = with_files(source, album)
    return Faces(album, source, faces.rows(listed, [album.files[row] for row in rows]) if listed else None)


def with_files(source: Source, album: Album) -> Source:
    """Return the data with the files of their pictures, which are rows of an album."""
    names = as_names(album.files)

    def named(split: Split) -> Split:
        return split._replace(files=names[split.images.chosen] if isinstance(split.images, Rows) else names)

    validation = source.validation and named(source.validation)
    return source._replace(train=named(source.train), test=named(source.test), validation=validation)


def read(name: str, folder: str, generate: bool, size: int, most_bytes: float, rules: Decoding = DEFAULT) -> Album:
    """Read the set ``name``, see ``load``."""
    return _read(fingerprint.stamp(name, folder), name, folder, generate, size, most_bytes, rules)


@functools.lru_cache(maxsize=1)  # the runs of a comparison share one copy; nobody writes to it
def _read(_: str, name: str, folder: str, generate: bool, size: int, most_bytes: float, rules: Decoding) -> Album:
    if generate and not folder:
        return faces.generated()
    if name not in SETS:
        raise UserError(f"config.data.name={name} has no people; with task=faces take one of {', '.join(SETS)}")
    if name == "lfw":
        return faces.lfw(folder, size, most_bytes, rules)
    if not folder:
        raise UserError("config.data.name=folder needs one; pass --config.data.dir=FOLDER, with FOLDER/PERSON/PICTURE")
    return faces.read(folder, size, most_bytes, rules)


def judge(faces: Faces, gallery: int, found: Sequence[Any], batched: Sequence[Batch]) -> Evaluation:
    """Return what embeddings (N, E) are worth: on the pairs of the file for the test part, on every pair of others."""
    kept = [np.asarray(batch["mask"]) > 0 for batch in batched]
    embeddings = np.concatenate([np.asarray(each)[mask] for each, mask in zip(found, kept, strict=True)])
    labels = np.concatenate([np.asarray(b["label"])[mask] for b, mask in zip(batched, kept, strict=True)])
    listed = faces.pairs if np.array_equal(labels, faces.source.test.labels) else None
    trial = verification.compare(embeddings, labels, listed or verification.all_pairs(labels), gallery)
    return Evaluation(verification.verification_metrics(trial), {}, verification.missing_metrics(trial), trial)


def report(name: str, trial: Comparisons, validated: Comparisons | None, folder: Path) -> dict[str, Any]:
    """Draw the ROC of the test part into ``folder/roc.png``, show its figures with their intervals, and return them.

    ``threshold`` is the one that is best on the validation split, which predictions use.
    """
    values, between = verification.verification_metrics(trial), verification.bootstrap_intervals(trial)
    genuine, count = int(trial.same.sum()), len(trial.same)
    what = f"{trial.num_identities} people, {genuine:,} pairs of one and {count - genuine:,} of two"
    say(f"{what}; 95 % intervals over people:")
    for figure, value in values.items():
        ends = between.get(figure)
        say(f"  {figure:12} {value:.4f}" + (f"  [{ends[0]:.4f}, {ends[1]:.4f}]" if ends else ""))
    for figure, why in verification.missing_metrics(trial).items():
        say(f"  {figure:12} not measured: it {why}")
    curve = verification.roc_curve(trial.scores, trial.same)
    marks = {
        f"FAR {level:g}": (level, values[figure])
        for figure, level in verification.FAR_LEVELS.items()
        if figure in values
    } | {f"equal errors, {values['eer']:.3f}": (values["eer"], 1 - values["eer"])}
    title = f"{name}: {what}\nAUC {values['auc']:.4f}"
    if "auc" in between:
        title += " [{:.4f}, {:.4f}]".format(*between["auc"])
    say(f"picture: {plots.plot_roc(curve.far, curve.tar, marks, title, folder / 'roc.png')}")
    counts = {"people": trial.num_identities, "same": genuine, "different": count - genuine}
    best = {"threshold": verification.best_threshold(validated.scores, validated.same)} if validated else {}
    return {"intervals95": between, "pairs": counts, **best}
