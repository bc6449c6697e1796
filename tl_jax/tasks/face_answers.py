"""Who is on the pictures of a folder: the nearest known person, and whether that is near enough."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl_jax import verification
from tl_jax.data import batches, decoding, folder, people, value_range
from tl_jax.data.decoding import Decoding
from tl_jax.data.people import Album
from tl_jax.data.pictures import Split
from tl_jax.errors import UserError
from tl_jax.task import Task
from tl_jax.tasks import file_answers
from tl_jax.train.log import say
from tl_jax.train.metrics import extract


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
    files = folder.pictures(Path(inputs[0]), config.data.outside)
    rules = Decoding((), value_range.of_facts(task.facts), config.data.max_pixels, True, config.data.outside)
    most_bytes = config.data.gigabytes * 1e9
    readable, errors = file_answers.readable(files, rules)
    images = decoding.decode_all("pictures", readable, size, most_bytes, rules)
    known = people.read(config.faces.known, size, most_bytes, rules) if config.faces.known else album()

    def embed(split: Split) -> np.ndarray:
        return extract(task.predict, variables, batches.eval_batches(split, config.eval_batch_size))

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
        verification.every_pair(labels),
    )
    return verification.best_threshold(verification.cosines(embeddings, pairs), pairs.same)


def _line(found: dict[str, Any]) -> str:
    verdict = {None: "", True: "same", False: "different"}[found["same"]]
    return f"  {found['input']}  {found['person']}  {found['similarity']:.3f}  {verdict}".rstrip()
