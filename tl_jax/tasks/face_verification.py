"""Face verification and identification: embeddings trained on some identities and tested on others.

A prediction is the nearest known person, and whether the similarity reaches the threshold.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from tl_jax.config.options import Options, group, option
from tl_jax.data import faces, loader, value_range
from tl_jax.data.augment import AugmentConfig
from tl_jax.data.dataset import Dataset, Split, fit_image
from tl_jax.data.decode import Decoding
from tl_jax.data.faces import FaceSet, SplitOptions
from tl_jax.metrics import Batch, Evaluation, verification
from tl_jax.metrics.verification import Comparisons, Pairs
from tl_jax.models.layers import glorot_uniform
from tl_jax.report import plots
from tl_jax.tasks import image_inputs, probe_strength
from tl_jax.tasks.image_inputs import ImageInput
from tl_jax.tasks.image_task import ImageRunConfig, ImageTask, load_inputs, no_images, usual_size
from tl_jax.tasks.losses import Network, make_embeddings, make_loss
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train import sharding
from tl_jax.train.evaluate import extract
from tl_jax.train.logging import say
from tl_jax.train.task import Task, register_task
from tl_jax.transfer import arcface
from tl_jax.transfer.arcface import Margin
from tl_jax.transfer.regularizers import RegularizeConfig
from tl_jax.transfer.self_supervised import ImagePretextConfig
from tl_jax.utils.errors import UserError


def answer_people(
    gallery: FaceSet,
    known: np.ndarray,
    threshold: float | None,
    images: Sequence[ImageInput],
    embeddings: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """Yield the nearest known person of each image as JSON values; an image is not compared with itself.

    Args:
        gallery: M images of known people.
        known: (M, E) embeddings of the gallery.
        threshold: minimum cosine similarity of two images of one person; None if unknown.
        images: N images.
        embeddings: (N, E).
    """
    similarity = embeddings @ known.T
    rows = {file.resolve(): match for match, file in enumerate(gallery.files)}
    for cosines, (_, source) in zip(similarity, images, strict=True):
        if isinstance(source, Path) and (own := rows.get(source.resolve())) is not None:
            cosines[own] = -np.inf
        match = int(cosines.argmax())
        cosine = float(cosines[match])
        yield {
            "person": gallery.identities[gallery.examples.labels[match]],
            "picture": str(gallery.files[match]),
            "similarity": cosine,
            "threshold": threshold,
            "same": None if threshold is None else cosine >= threshold,
        }


def validation_threshold(task: Task, variables: Any) -> float | None:
    """Return the best threshold on all pairs of the validation split; None without one."""
    if not task.sizes["validation"]:
        say("config.data.validation=0: no validation identities, so no threshold and no same/different decisions")
        return None
    batches = list(task.eval_batches("validation"))
    if not batches:
        say("no threshold is stored for these weights, and the data are missing: no same/different decisions")
        return None
    labels = np.concatenate([b["label"][b["mask"] > 0] for b in batches])
    embeddings, pairs = (
        extract(task.outputs, variables, task.eval_batches("validation")),
        verification.all_pairs(labels),
    )
    return verification.best_threshold(verification.pair_cosines(embeddings, pairs), pairs.same)


class FaceData(NamedTuple):
    """All images, their splits, and the pairs of the test split (None for all pairs)."""

    face_set: FaceSet
    source: Dataset
    pairs: Pairs | None


@dataclass(frozen=True)
class FacesConfig(Options):
    """Face verification and identification settings."""

    embedding: int = option(128, "embedding size; 0 uses the network's features", low=0)
    loss: str = option("arcface", "training loss over identities", arcface.LOSSES)
    scale: float = option(64.0, "s, the scale of arcface's cosines", low=1.0)
    margin: float = option(0.5, "m, arcface's angular margin in radians", low=0.0, high=1.5)
    test_identities: float = option(0.25, "identities held out for testing: a fraction, or from 1 on a number", low=0.0)
    test_file: str = option("", "file with the test identities, one per line, as in LFW's people.txt")
    pairs: str = option("", "file of pairs to verify, as in LFW's pairs.txt; its identities are the test identities")
    split_seed: int = option(0, "random seed of the test identities, independent of `seed`", low=0)
    min_images: int = option(
        0, "minimum images per identity; others are dropped; 0: keep all, fail on a single image", low=0
    )
    gallery: int = option(1, "gallery images per identity, for the identification metrics", low=1)
    known: str = option("", "folder of known people for predictions; empty for data.dir")


@dataclass(frozen=True)
class FaceRunConfig(ImageRunConfig):
    """Configuration of a face verification run."""

    faces: FacesConfig = group(FacesConfig)


@register_task("faces")
class FaceVerification(ImageTask):
    """Face verification: embeddings in which images of one person are close."""

    about = "images of people, for verification and identification"
    data_inputs, synthetic = "people", "drawn_faces"
    config_class = FaceRunConfig
    # These need test classes, or labels other than one identity per image.
    unused_fields = (
        "data.fit", "data.group", "data.test_examples", "data.windows", "init.folds",
        "init.start_loss", "init.strength", "model.num_classes",
        "regularize.class_weights", "regularize.cutmix", "regularize.mixup",
    )  # fmt: skip
    has_classes = False
    extra_heads = ("people",)
    program_output = "embeddings"
    score = "auc"
    evaluates_outputs = reports_validation = True
    prediction_columns = ("person", "picture", "similarity", "threshold", "same")

    def __init__(self, config: Any, record: RunRecord = NEW_RUN):
        """Build the task of ``config`` for a run with the given record."""
        self.config, (net, self.input_spec) = config, load_inputs(config, record)
        self.data = self.load_faces(config, self.input_spec.size) if record.reads_data else without_data(record)
        self.build(config, net, self.input_spec, self.data.source, config.faces.embedding, record)
        self.decoding, limits = self.make_decoding(config), value_range.range_from_facts(record.facts)
        if limits:  # read other images with the run's value range
            self.decoding = self.decoding._replace(value_range=limits, from_run=True)
        self.fitted_threshold = record.fitted.get("threshold")

    @classmethod
    def conflicts(cls, config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
        faces = config.faces
        return {
            **super().conflicts(config, changed),
            f"init.head={config.init.head} fits classes, but task=faces trains embeddings; use new or keep": (
                config.init.head in probe_strength.PROBES
            ),
            "faces.pairs and config.faces.test_file both define the test identities; omit one": (
                faces.pairs and faces.test_file
            ),
            "faces.test_identities and split_seed have no effect with config.faces.pairs or test_file": (
                (faces.pairs or faces.test_file) and changed("faces.test_identities", "faces.split_seed")
            ),
            "faces.scale and margin have an effect with config.faces.loss=arcface only": (
                faces.loss != "arcface" and changed("faces.scale", "faces.margin")
            ),
        }

    @classmethod
    def set_defaults(cls, config: Any) -> None:
        config.faces.scale, config.faces.margin = 32.0, 0.3  # 64 and 0.5 suit tens of thousands of identities
        config.optim.lr, config.augment.flip, config.data.validation = 3e-4, True, 0.2

    @classmethod
    def load_data(cls, config: Any) -> Dataset:
        return cls.load_faces(config, usual_size(config)).source

    @classmethod
    def load_faces(cls, config: Any, size: int) -> FaceData:
        """Load the images of ``config`` and split them by identity."""
        return split_faces(config, cls.load_source(config, size))

    @classmethod
    def fitted_value(cls, config: Any) -> str:
        return "threshold"

    def functions(
        self,
        network: Network,
        augment_config: AugmentConfig,
        penalties: RegularizeConfig,
        pretext: ImagePretextConfig | None,
    ) -> dict[str, Any]:
        faces = self.config.faces
        margin = Margin(faces.loss, faces.scale, faces.margin, len(self.data.source.classes))
        loss = make_loss(network, augment_config, penalties, pretext, margin)
        embeddings = make_embeddings(network, self.config.test_views)
        return {"loss": loss, "metrics": _no_metrics, "outputs": embeddings}

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Return the initial variables, with class centers (E, K) of the training identities."""
        variables = super().init(key)
        batch = {"inputs": jax.ShapeDtypeStruct((1, *self.splits["train"].inputs.shape[1:]), np.uint8)}
        assert self.outputs
        width = jax.eval_shape(self.outputs, variables, batch).shape[-1]
        kernel = glorot_uniform(jax.random.fold_in(key, 3), (width, len(self.classes)))
        extra = {**variables["params"].get("extra", {}), "people": {"kernel": kernel}}
        return {**variables, "params": {**variables["params"], "extra": extra}}

    def evaluate(self, outputs: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
        return evaluate_pairs(self.data, self.config.faces.gallery, outputs, batches)

    def report(self, test: Any, validation: Any, folder: Path) -> dict[str, Any]:
        return report_trial(self.name, test, validation, folder)

    def with_test(self, config: Any, classes: Mapping[str, str]) -> Self:
        raise UserError(
            "task=faces cannot be tested on other data; start a run with config.epochs=0 and config.init.path=RUN"
        )

    def load_face_set(self) -> FaceSet:
        """Load all images of the dataset."""
        return self.load_source(self.config, self.input_spec.size, self.decoding)

    def load_gallery(self) -> FaceSet:
        """Load the images of the known people: ``config.faces.known``, or else the dataset."""
        faces_config, data = self.config.faces, self.config.data
        folder = faces_config.known or data.dir
        if folder and not Path(folder).expanduser().exists():
            raise UserError(
                f"config.faces.known: no folder {folder} of known people; set it to a folder with PERSON/IMAGE files"
            )
        if not faces_config.known:
            return self.load_face_set()
        return faces.read_faces(faces_config.known, self.input_spec.size, data.gigabytes * 1e9, self._run_decoding())

    def _run_decoding(self) -> Decoding:
        """Return the decoding of images that must have the run's value range."""
        return self.decoding._replace(value_range=value_range.range_from_facts(self.facts), from_run=True)

    def predict(self, variables: Any, inputs: Sequence[Any], embeddings: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the nearest known person of each image, and whether the similarity reaches the threshold."""
        gallery, threshold = self.load_gallery(), self.fitted_threshold
        known = self._embed(variables, gallery.examples, self.config.eval_batch_size)
        threshold = validation_threshold(self, variables) if threshold is None else threshold
        size = min(self.config.eval_batch_size, sharding.round_up(len(inputs)))

        def predict_batch(images: Sequence[ImageInput], pixels: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
            found = self._embed(variables, Split(np.stack(pixels), np.zeros(len(pixels), np.int32)), size)
            for row, embedding in zip(answer_people(gallery, known, threshold, images, found), found, strict=True):
                yield {**row, "embedding": embedding} if embeddings else row

        return image_inputs.predict_rows(inputs, self._run_decoding(), size, self._fit_pixels, predict_batch)

    def _embed(self, variables: Any, split: Split, batch_size: int) -> np.ndarray:
        return extract(self.outputs, variables, loader.eval_batches(split, batch_size))

    def _fit_pixels(self, image: np.ndarray) -> np.ndarray:
        height, width = self.splits["train"].inputs.shape[1:3]
        return image if image.shape[:2] == (height, width) else fit_image(image, (width, height))

    def draw_prediction(self, row: Mapping[str, Any]) -> str:
        decision = {None: "", True: "same", False: "different"}[row["same"]]
        return f"  {row['input']}  {row['person']}  {row['similarity']:.3f}  {decision}".rstrip()


def _no_metrics(variables: Any, batch: Batch) -> dict[str, Any]:
    """Return no sums: test identities have no class, and the metrics need all embeddings."""
    return {}


def without_data(record: RunRecord) -> FaceData:
    """Return the data of a run that only predicts or exports: its training identities, without images."""
    images, labels = no_images(record)
    source = record.source_without_data(images, labels)
    return FaceData(FaceSet(source.name, source.train, source.classes, ()), source, None)


def split_faces(config: Any, face_set: FaceSet) -> FaceData:
    """Split a face set by identity, as configured."""
    listed_pairs = faces.read_pairs(config.faces.pairs) if config.faces.pairs else None
    test_identities = (
        listed_pairs.identities
        if listed_pairs
        else faces.read_identities(config.faces.test_file)
        if config.faces.test_file
        else ()
    )
    num_test, seed, min_images = config.faces.test_identities, config.faces.split_seed, config.faces.min_images
    cut = SplitOptions(num_test, test_identities, seed, config.data.validation, config.seed, min_images)
    source, rows = faces.split_identities(face_set, cut)
    return FaceData(
        face_set,
        source,
        faces.match_pairs(listed_pairs, [face_set.files[row] for row in rows]) if listed_pairs else None,
    )


def evaluate_pairs(faces: FaceData, gallery: int, outputs: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
    """Evaluate embeddings (N, E) on the listed pairs of the test split, or on all pairs of other splits."""
    masks = [np.asarray(batch["mask"]) > 0 for batch in batches]
    embeddings = np.concatenate([np.asarray(output)[mask] for output, mask in zip(outputs, masks, strict=True)])
    labels = np.concatenate([np.asarray(b["label"])[mask] for b, mask in zip(batches, masks, strict=True)])
    listed_pairs = faces.pairs if np.array_equal(labels, faces.source.test.labels) else None
    trial = verification.compare(embeddings, labels, listed_pairs or verification.all_pairs(labels), gallery)
    return Evaluation(verification.verification_metrics(trial), {}, verification.missing_metrics(trial), trial)


def report_trial(name: str, trial: Comparisons, validation_trial: Comparisons | None, folder: Path) -> dict[str, Any]:
    """Print the test figures with their intervals, draw the ROC curve into ``folder/roc.png``, and return the figures.

    ``threshold`` is the best on the validation split; predictions use it.
    """
    values, intervals = verification.verification_metrics(trial), verification.bootstrap_intervals(trial)
    num_same, count = int(trial.same.sum()), len(trial.same)
    counts_text = f"{trial.num_identities} people, {num_same:,} same and {count - num_same:,} different pairs"
    say(f"{counts_text}; 95 % intervals over people:")
    for figure, value in values.items():
        interval = intervals.get(figure)
        say(f"  {figure:12} {value:.4f}" + (f"  [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""))
    for figure, reason in verification.missing_metrics(trial).items():
        say(f"  {figure:12} not measured: it {reason}")
    curve = verification.roc_curve(trial.scores, trial.same)
    points = {
        f"FAR {level:g}": (level, values[figure])
        for figure, level in verification.FAR_LEVELS.items()
        if figure in values
    } | {f"equal error rate, {values['eer']:.3f}": (values["eer"], 1 - values["eer"])}
    title = f"{name}: {counts_text}\nAUC {values['auc']:.4f}"
    if "auc" in intervals:
        title += " [{:.4f}, {:.4f}]".format(*intervals["auc"])
    say(f"wrote {plots.plot_roc(curve.far, curve.tar, points, title, folder / 'roc.png')}")
    counts = {"people": trial.num_identities, "same": num_same, "different": count - num_same}
    result = {"intervals95": intervals, "pairs": counts}
    if validation_trial:
        result["threshold"] = verification.best_threshold(validation_trial.scores, validation_trial.same)
    return result
