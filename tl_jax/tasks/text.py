"""Text tasks: classification of texts and pairs ("text"), token tagging ("tokens"), masked LM ("masked").

Inputs of ``--mode=predict`` are sentences, pairs, lists of words, or files of them.
"""

import functools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.data import fingerprint, text_datasets, tokenize, word_splitting
from tl_jax.data.conll import find_scheme
from tl_jax.data.dataset import Dataset
from tl_jax.data.text import DEFAULT_COLUMNS, Columns, read_examples
from tl_jax.data.tokenize import IGNORED, Masking, TextStream, TokenizedTexts
from tl_jax.data.word_splitting import PLAIN_SPLITTER, Splitter
from tl_jax.metrics import sequence
from tl_jax.pretrained import huggingface
from tl_jax.pretrained.huggingface import TextNetwork
from tl_jax.report.html import lines as drawn_probabilities
from tl_jax.tasks import error_analysis, head_init, run_record
from tl_jax.tasks import losses as objectives
from tl_jax.tasks.error_analysis import PAIR
from tl_jax.tasks.feature_cache import FrozenText
from tl_jax.tasks.losses import Encoder, make_text_predict, plain
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train import sharding
from tl_jax.train.logging import say
from tl_jax.train.step import make_eval_step
from tl_jax.train.task import Objective, Task
from tl_jax.transfer.adapters import Adapters
from tl_jax.transfer.regularizers import Regularize
from tl_jax.utils.errors import UserError

KINDS = {
    ".txt": "lines", ".csv": "csv", ".tsv": "tsv", ".json": "jsonl", ".jsonl": "jsonl", ".conll": "conll",
    ".conllu": "conll",
}  # fmt: skip
_FOREIGN = (".xls", ".xlsx", ".ods", ".parquet", ".pdf", ".doc", ".docx", ".odt", ".html", ".zip", ".gz", ".md", ".rtf")
_ROOTED = re.compile(r"(/|\./|\.\./|~/|[A-Za-z]:\\)")


def read_inputs(inputs: Sequence[Any], task: str, pairs: bool, columns: Columns) -> list[Any]:
    """Return the texts that inputs stand for: each a str, a pair of str, or a list of words.

    Args:
        inputs: sentences, files (see ``KINDS``; a ``Path`` is always one), pairs (``FIRST ||| SECOND``, or a tuple), or
            lists of words.
        task: "text" or "tokens".
        pairs: whether the run was trained on pairs of texts; if not, " ||| " is text like other text.
        columns: of the training data, for CSV, TSV and JSON.

    Raises:
        UserError: a file that is not there or cannot be read, an empty text, something that is no text (None, NaN), or
            one text where two are needed.
    """
    found = []
    for value in [inputs] if isinstance(inputs, str | os.PathLike) else inputs:
        if isinstance(value, os.PathLike):
            found += _of_file(_existing(Path(value).expanduser(), value), task, pairs, columns)
        elif not isinstance(value, str):
            found.append(_words_or_pair(value, task, pairs))
        elif (file := as_file(value)) is not None:
            found += _of_file(file, task, pairs, columns)
        else:
            found.append(_pair(value) if pairs else value)
    if not found or not all(text.strip() if isinstance(text, str) else "".join(text).strip() for text in found):
        raise UserError("nothing to predict; pass --input=TEXT, once for each sentence")
    return found


def as_file(value: str) -> Path | None:
    """Return the file that an input names, or None if it is a sentence.

    An input without blanks is a path if such a file exists, or if it has the ending of a file or is ASCII with a slash.
    One with blanks is a path if it begins as one does, with a slash or "./" say, and has such an ending.

    Raises:
        UserError: it looks like a path, and no file of it can be read here.
    """
    path = Path(os.path.expanduser(value))
    ending = path.suffix.lower() if path.suffix.lower() in (*KINDS, *_FOREIGN) else ""
    blanks = re.search(r"\s", value) is not None
    if blanks:
        looks = bool(ending) and _ROOTED.match(value) is not None
    else:
        looks = bool(ending) or value.isascii() and re.search(r"[/\\]", value) is not None
    looks = looks and "://" not in value  # an address is a text
    # A sentence that is longer than a file name may be is no error to os.path.
    return _existing(path, value) if looks or (os.path.isfile(path) and not blanks) else None


def _existing(path: Path, given: object) -> Path:
    """Return a path that is a file of a kind that is read, or refuse it; ``given`` is how it was written."""
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "there is no such file"
        raise UserError(f"--input={given}: {what}; pass a file ({', '.join(KINDS)}) or a sentence")
    if path.suffix.lower() in _FOREIGN:
        raise UserError(f"--input={given}: {path.suffix.lower()} is not read; save it as one of {', '.join(KINDS)}")
    return path


def _of_file(file: Path, task: str, pairs: bool, columns: Columns) -> list[Any]:
    kind = KINDS.get(file.suffix.lower(), "conll" if task == "tokens" else "lines")
    if kind == "conll" and task != "tokens":
        raise UserError(f"{file}: words in columns are for runs with config.task=tokens; pass whole texts")
    if kind != "conll" and task == "tokens":
        columns = columns._replace(names=(), text=columns.text[:1])  # those of a CoNLL file say nothing of tables
    texts = [example.text for example in read_examples(file, kind, columns, labelled=False)]
    return [_pair(text) for text in texts] if pairs and kind == "lines" else texts


def _words_or_pair(value: Any, task: str, pairs: bool) -> Any:
    what = "a sentence, a file, a pair of texts or a list of words"
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise UserError(f"an input is {value!r}, not {what}; pass str")
    parts = list(value)
    if strange := [part for part in parts if not isinstance(part, str)]:
        raise UserError(f"an input has {strange[0]!r} among its texts; pass str, and leave out what is missing")
    if task == "tokens":
        return parts
    if not pairs or len(parts) != 2:
        needed = "two texts" if pairs else "a text"
        raise UserError(f"an input is a list of {len(parts)}; this run takes {needed} for each input")
    return tuple(parts)


def _pair(value: str) -> tuple[str, str]:
    first, mark, second = value.partition(PAIR)
    if not mark or not first.strip() or not second.strip():
        raise UserError(f"{value[:60]!r} is one text, but the run was trained on pairs; write FIRST{PAIR}SECOND")
    return first, second


BOLD, PLAIN = "\033[1m", "\033[0m"
BATCH = 256  # inputs that go through the network together
SHOWN = 100  # inputs that are drawn; the others are in predictions.json only


def answer(
    task: str,
    net: TextNetwork,
    encoder: Encoder,
    classes: Sequence[str],
    length: int,
    variables: Any,
    inputs: Sequence[Any],
    *,
    splitter: Splitter = PLAIN_SPLITTER,
    pairs: bool = False,
    columns: Columns = DEFAULT_COLUMNS,
) -> tuple[list[dict[str, Any]], str]:
    """Return the prediction for each input, for JSON, and the first of them drawn as text.

    Args:
        task: "text" or "tokens".
        net: with the tokenizer.
        encoder: the network.
        classes: K names.
        length: tokens at most.
        variables: trained.
        inputs: sentences, files of them, pairs or lists of words: see ``read_inputs``.
        splitter: how sentences become words, for "tokens"; a list of words is taken as it is.
        pairs: whether the network was trained on pairs of texts.
        columns: of the training data, for tables that are read as inputs.
    """
    texts = read_inputs(inputs, task, pairs, columns)
    if task == "tokens":
        found, lines = _entities(net, encoder, classes, length, variables, texts, splitter)
    else:
        found, lines = _probabilities(net, encoder, classes, length, variables, texts)
    if len(found) > SHOWN:
        lines.append(f"... and {len(found) - SHOWN:,} more inputs: see predictions.json")
    return found, "\n".join(lines)


def _probabilities(
    net: TextNetwork, encoder: Encoder, classes: Sequence[str], length: int, variables: Any, texts: Sequence[Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    found, lines = [], []
    labels = np.zeros(len(texts), np.int32)
    for text, (row, _) in zip(texts, _predict(net, encoder, length, variables, texts, labels), strict=True):
        shown = text if isinstance(text, str) else PAIR.join(text)
        found.append({"input": shown, "probabilities": {c: float(p) for c, p in zip(classes, row, strict=True)}})
        lines += drawn_probabilities(shown, classes, row) if len(found) <= SHOWN else []
    return found, lines


def _entities(
    net: TextNetwork,
    encoder: Encoder,
    classes: Sequence[str],
    length: int,
    variables: Any,
    inputs: Sequence[Any],
    splitter: Splitter,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return and draw the entities of each sentence, or the tag of each word if the tags mark no entities."""
    texts = [text if isinstance(text, str) else " ".join(text) for text in inputs]
    spans = [splitter.spans(text) if isinstance(text, str) else _joined(text) for text in inputs]
    words = [[text[a:b] for a, b in own] for text, own in zip(texts, spans, strict=True)]
    labels = np.empty(len(words), object)
    labels[:] = [np.zeros(len(own), np.int32) for own in words]
    found, lines, scheme = [], [], find_scheme(classes)
    for i, (row, read) in enumerate(_predict(net, encoder, length, variables, words, labels)):
        best = iter(row.argmax(-1))
        tags = [classes[int(next(best))] if word else scheme.outside for word in read]
        if scheme.name:
            marked = scheme.entities(tags)
        else:
            marked = [(tag, at, at) for at, tag in enumerate(tags) if tag != scheme.outside]
        entities = [
            {"text": texts[i][spans[i][a][0] : spans[i][b][1]], "kind": kind, "begin": spans[i][a][0],
             "end": spans[i][b][1]}
            for kind, a, b in marked
        ]  # fmt: skip
        found.append({"input": texts[i], "words": words[i], "entities": entities})
        lines += [_drawn(texts[i], entities)] if i < SHOWN else []
    return found, lines


def _joined(words: Sequence[str]) -> list[tuple[int, int]]:
    """Return (begin, end) of words in the text that they are when joined by blanks."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    return [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]


def _drawn(text: str, entities: list[dict[str, Any]]) -> str:
    on, off = (BOLD, PLAIN) if sys.stdout.isatty() else ("", "")
    out, end = "", 0
    for entity in entities:
        out += text[end : entity["begin"]] + f"{on}[{entity['text']}]({entity['kind']}){off}"
        end = entity["end"]
    return out + text[end:]


def _predict(
    net: TextNetwork, encoder: Encoder, length: int, variables: Any, texts: Sequence[Any], labels: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the probabilities of each text (K,), or of each word that is read (W', K), and which words are read."""
    encodings = tokenize.encode_texts(net.tokenizer, list(texts), length)
    if cut := sum(bool(e.overflowing) for e in encodings):
        say(f"{cut:,} of {len(texts):,} inputs are cut to {length} tokens: what comes after them is not read")
    data = tokenize.tokenized_texts(encodings, labels, tokenize.pad_id(net.tokenizer))
    step, size = make_eval_step(make_text_predict(encoder)), min(BATCH, len(texts))
    n = sharding.whole(size)
    for first in range(0, len(texts), size):
        rows = np.arange(first, min(first + size, len(texts)))
        batch = data.batch(np.resize(rows, n), np.arange(n) < len(rows))
        out, counted = np.asarray(step(variables, sharding.put(batch))), np.asarray(batch["label"]) != IGNORED
        for i, row in enumerate(rows):
            if data.read_mask is None:
                yield out[i], np.ones(1, bool)
            else:
                yield out[i][counted[i]], data.read_mask[row] > 0


DRAWN = {"text": "docs", "tokens": "docs_names", "masked": "docs"}  # where data.generate says so
WORDS = ("masked_dense", "masked_norm", "masked_bias")  # the head that guesses words


def make(config: Any, record: RunRecord = NEW_RUN) -> Task:
    """Build the task that ``config`` describes, for a run of which ``record`` is known."""
    none = np.empty(0, object), np.empty(0, object if config.task == "tokens" else np.int32)
    source = record.source(lambda: load_source(config), *none)
    if record.reads_data:
        say_shared(source)
    reading = how_read(config.task, np.asarray(source.train.images)) if record.reads_data else record.facts["reading"]
    net = load_network(config, () if config.task == "masked" else source.classes)
    for note in net.notes:
        say(note)
    encoder = Encoder(net.model, Adapters(**config.adapt.to_dict()))
    raw = record.cut(config, source)
    parts = tokenized(config, net, raw, source.classes)
    how, seen = regularize(config, net), (config.seed, config.batch_size)
    guesses = "masked" in (config.task, config.pretext.name)
    guessing = tokenize.make_masking(net.tokenizer, config.pretext.mask_prob) if guesses else None
    beside = (guessing, config.pretext.weight) if guessing and config.pretext.weight else None
    frozen = FrozenText(config, encoder, parts, how)
    words_net = load_network(config, (), "masked") if config.pretext.name else None
    task = Task(
        name=f"{config.model.name} on {source.name}",
        classes=source.classes,
        init=functools.partial(start, config, net, words_net, frozen, how),
        loss=objectives.make_text_loss(encoder, how, beside),
        metrics=objectives.make_text_metrics(encoder),
        features=objectives.make_text_features(encoder),
        train_batch=TextStream(parts["train"], *seen),
        eval_batches=lambda part: tokenize.eval_batches(parts[part], config.eval_batch_size),
        sizes=record.sizes(parts),
        facts={
            "weights": str(net.path or "random"),
            "weights_sha256": net.sha256,
            "data": source.name,
            "tested": source.test_origin,
            "input": {"length": length(config, net)},
            "new_head": net.new,
            "reading": reading,
            **record.describe(source, raw, config.data.dir),
        },
        parts=net.model.part_names(),
        shortcut=frozen.task,
        predict=(objectives.make_classes if config.task == "tokens" else objectives.make_text_predict)(encoder),
        details=functools.partial(_details, source.classes, raw["test"].images, rows=parts["test"].order()),
        judge=(sequence.of_tokens if config.task == "tokens" else sequence.of_texts)(source.classes),
        answer=functools.partial(_answer, config, net, encoder, source.classes, reading),
        score="f1" if config.task == "tokens" else "accuracy",
    )
    return _guessing(task, config, encoder, guessing, parts) if guessing else task


def _guessing(task: Task, config: Any, encoder: Encoder, how: Masking, parts: dict[str, TokenizedTexts]) -> Task:
    """Return the task with words to guess: as all there is to it, or as a pretext."""
    loss = objectives.make_words_loss(encoder, how)
    if config.task == "masked":
        metrics = objectives.make_words_metrics(encoder, how)
        return task._replace(
            loss=loss, metrics=metrics, predict=None, judge=None, details=None, answer=None, shortcut=None
        )
    return task._replace(pretext=Objective(loss, TextStream(parts["unlabelled"], config.seed, config.batch_size)))


def _details(classes: Sequence[str], texts: Any, kept: Any, rows: Any) -> dict[str, Any]:
    """Return what is said of the test part, which the judge kept probabilities or tags of."""
    if isinstance(kept, sequence.Tagged):
        return error_analysis.of_tags(sequence.names_of(classes, kept), texts, rows, *kept)
    return error_analysis.of_texts(classes, texts, rows, kept)


def how_read(task: str, texts: np.ndarray) -> dict[str, Any]:
    """Return what predictions must know of the training texts: whether they are pairs, how sentences are split."""
    splitter = word_splitting.learn_splitter(texts).to_json() if task == "tokens" else None
    return {"pairs": task == "text" and isinstance(texts[0], tuple), "splitter": splitter}


def _answer(
    config: Any,
    net: TextNetwork,
    encoder: Encoder,
    classes: Sequence[str],
    reading: Mapping[str, Any],
    variables: Any,
    inputs: Sequence[Any],
) -> tuple[list[dict[str, Any]], str]:
    """Return the predictions for what a user typed, read as the training texts were; see ``how_read``."""
    splitter = word_splitting.Splitter.from_json(reading["splitter"] or {})
    how = {"splitter": splitter, "pairs": reading["pairs"], "columns": columns_of(config)}
    return answer(config.task, net, encoder, classes, length(config, net), variables, inputs, **how)


def start(
    config: Any, net: TextNetwork, words_net: TextNetwork | None, frozen: FrozenText, how: Regularize, key: jax.Array
) -> dict[str, Any]:
    """Return the variables that training starts from, drawn from ``key`` as far as they are not loaded or fitted."""
    variables = {"params": dict(net.redraw(key)["params"]), "batch_stats": {}}
    if config.init.head in head_init.PROBES and len(frozen.parts["train"].labels):  # else only a layout is wanted
        probe = head_init.Probe(config.init.head, config.init.strength, frozen.parts, frozen.features)
        variables = head_init.with_probe(variables, probe)
    kept = head_init.source(how, variables)
    variables = head_init.adapted(variables, frozen.encoder.adapters, jax.random.fold_in(key, 1))
    if words_net:
        head = words_net.redraw(jax.random.fold_in(key, 2))["params"]
        params = {**variables["params"], "extra": {"pretext": {name: head[name] for name in WORDS}}}
        variables = {**variables, "params": params}
    return {**variables, **({"source": kept} if kept else {})}


def load_source(config: Any) -> Dataset:
    """Load the texts of ``config``, or those of the installed libraries where ``data.generate`` says so."""
    data = config.data
    name = DRAWN[config.task] if data.generate and not data.dir else data.name
    source = _read(fingerprint.folder_stamp(name, data.dir), name, data.dir, columns_of(config))
    tagged = source.train.labels.dtype == object
    if config.task != "masked" and tagged != (config.task == "tokens"):
        have, right = ("a tag for each word", "tokens") if tagged else ("one label for each text", "text")
        raise UserError(f"{source.name} has {have}; set config.task={right}")
    if config.task == "text" and len(source.classes) < 2:
        raise UserError(f"{source.name} has no labels; set config.task=masked, or take another data.name")
    head_init.check_classes(config, source)
    return source


def columns_of(config: Any) -> Columns:
    """Return where text and label stand in the files of ``config``."""
    return Columns(tuple(config.data.columns), tuple(config.data.text), config.data.label)


def say_shared(source: Dataset) -> None:
    """Say how many texts for choosing and testing are in the training split, too."""
    train = {_key(text) for text in source.train.images}
    for name, split in (("validation", source.validation), ("test", source.test)):
        shared = sum(_key(text) in train for text in split.images) if split else 0
        if split and shared:
            count = f"{shared:,} of {len(split.labels):,} {name} texts"
            say(f"{source.name}: {count} are in the training split, too, so scores are too high; remove them from one")


def _key(text: Any) -> Any:
    return tuple(text) if isinstance(text, list) else text


@functools.lru_cache(maxsize=1)  # the runs of a comparison share one copy; nobody writes to it
def _read(_: str, name: str, folder: str, columns: Columns) -> Dataset:
    return text_datasets.load(name, folder, columns)


def load_network(config: Any, classes: Sequence[str], output: str = "") -> TextNetwork:
    """Return the network of ``config`` with a head for ``classes``, or for guessing words."""
    output, folder = output or config.task, huggingface.folder_of(config.init.source, config.init.path)
    options: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in config.model.options.to_dict().items()
    }
    options |= {"dtype": jnp.dtype(config.model.dtype), "endpoint": config.model.endpoint, "output": output}
    options |= {"head_dropout": config.regularize.dropout} if config.regularize.dropout else {}
    options |= {"adapter": config.adapt.rank} if config.adapt.kind == "bottleneck" and config.adapt.rank else {}
    if config.init.source == "random":
        return huggingface.random(config.model.name, folder, len(classes), seed=config.seed, **options)
    keep = "keep" if config.init.head == "keep" and output != "masked" else "new"
    head = "auto" if output == "masked" else keep
    given: dict[str, Any] = {"head": head, "seed": config.seed, "rename": config.init.rename}
    net = huggingface.load(config.model.name, folder, len(classes), **given, **options)
    order = run_record.match(net.classes, classes, str(net.path)) if keep == "keep" else None
    return net if order is None else net._replace(variables=run_record.reordered(net.variables, order))


def length(config: Any, net: TextNetwork) -> int:
    """Return how many tokens a text may have."""
    return min(config.input.max_length or net.model.positions, net.model.positions)


def tokenized(
    config: Any, net: TextNetwork, parts: dict[str, Any], classes: Sequence[str]
) -> dict[str, TokenizedTexts]:
    """Return the parts as ids, and say how many texts were cut, and how many words of tagged sentences."""
    most, pad = length(config, net), tokenize.pad_id(net.tokenizer)
    found, cut, total, unread = {}, 0, 0, 0
    for name, part in parts.items():
        texts = np.asarray(part.images)
        encodings = tokenize.encode_texts(net.tokenizer, texts.tolist(), most)
        cut, total = cut + sum(bool(e.overflowing) for e in encodings), total + len(encodings)
        found[name] = tokenize.tokenized_texts(encodings, part.labels, pad)
        if found[name].read is not None:
            unread += sum(int((read == 0).sum()) for read in found[name].read)
    if cut:
        room = f"config.input.max_length may be up to {net.model.positions}"
        say(f"{cut:,} of {total:,} texts are cut to {most} tokens; {room}")
    if unread:
        say(f"{unread:,} words are behind the length limit or have no token; in scores they count as outside entities")
    return found


def regularize(config: Any, net: TextNetwork) -> Regularize:
    """Return the penalties that ``config`` asks for; dropout before the head is an attribute of the model."""
    values = {name: value for name, value in config.regularize.to_dict().items() if name in Regularize._fields}
    how = Regularize(**{**values, "endpoints": ()})
    if not how.compares_maps:
        return how
    names = net.model.part_names()
    known = tuple(name for name in names if name != "pooler")
    return how._replace(endpoints=head_init.check_endpoints(tuple(values["endpoints"]), known))


def trained(config: Any, params: Any) -> dict[str, Any]:
    """Return the parameters of the network alone with adapters of low rank merged, for Hugging Face's files."""
    how = Adapters(**config.adapt.to_dict())
    if how.kind == "bottleneck":
        raise UserError("Hugging Face's files have no bottleneck adapters; take config.adapt.kind=lora to export a run")
    return plain(params, how)
