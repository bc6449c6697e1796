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
from tl_jax.report.html import probability_bars as drawn_probabilities
from tl_jax.tasks import error_analysis, head_init, run_record
from tl_jax.tasks import losses as objectives
from tl_jax.tasks.error_analysis import PAIR
from tl_jax.tasks.feature_cache import TextFeatureCache
from tl_jax.tasks.losses import Encoder, make_text_predict, merged_params
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.train import sharding
from tl_jax.train.logging import say
from tl_jax.train.step import make_eval_step
from tl_jax.train.task import Objective, Task
from tl_jax.transfer.adapters import Adapters
from tl_jax.transfer.regularizers import Regularize
from tl_jax.utils.errors import UserError

FILE_KINDS = {
    ".txt": "lines", ".csv": "csv", ".tsv": "tsv", ".json": "jsonl", ".jsonl": "jsonl", ".conll": "conll",
    ".conllu": "conll",
}  # fmt: skip
_UNSUPPORTED = (
    ".xls",
    ".xlsx",
    ".ods",
    ".parquet",
    ".pdf",
    ".doc",
    ".docx",
    ".odt",
    ".html",
    ".zip",
    ".gz",
    ".md",
    ".rtf",
)
_PATH_START = re.compile(r"(/|\./|\.\./|~/|[A-Za-z]:\\)")


def read_inputs(inputs: Sequence[Any], task: str, pairs: bool, columns: Columns) -> list[Any]:
    """Return the texts that inputs stand for: each a str, a pair of str, or a list of words.

    Args:
        inputs: sentences, files (see ``FILE_KINDS``; a ``Path`` is always one), pairs (``FIRST ||| SECOND``, or a
            tuple), or lists of words.
        task: "text" or "tokens".
        pairs: whether the run was trained on pairs of texts; if not, " ||| " is text like other text.
        columns: of the training data, for CSV, TSV and JSON.

    Raises:
        UserError: a file that is not there or cannot be read, an empty text, something that is no text (None, NaN), or
            one text where two are needed.
    """
    texts = []
    for value in [inputs] if isinstance(inputs, str | os.PathLike) else inputs:
        if isinstance(value, os.PathLike):
            texts += _read_file(_check_input_file(Path(value).expanduser(), value), task, pairs, columns)
        elif not isinstance(value, str):
            texts.append(_words_or_pair(value, task, pairs))
        elif (file := find_input_file(value)) is not None:
            texts += _read_file(file, task, pairs, columns)
        else:
            texts.append(_split_pair(value) if pairs else value)
    if not texts or not all(text.strip() if isinstance(text, str) else "".join(text).strip() for text in texts):
        raise UserError("nothing to predict; pass --input=TEXT, once for each sentence")
    return texts


def find_input_file(value: str) -> Path | None:
    """Return the file that an input names, or None if it is a sentence.

    An input without blanks is a path if such a file exists, or if it has the ending of a file or is ASCII with a slash.
    One with blanks is a path if it begins as one does, with a slash or "./" say, and has such an ending.

    Raises:
        UserError: it looks like a path, and no file of it can be read here.
    """
    path = Path(os.path.expanduser(value))
    ending = path.suffix.lower() if path.suffix.lower() in (*FILE_KINDS, *_UNSUPPORTED) else ""
    has_blanks = re.search(r"\s", value) is not None
    if has_blanks:
        is_path = bool(ending) and _PATH_START.match(value) is not None
    else:
        is_path = bool(ending) or value.isascii() and re.search(r"[/\\]", value) is not None
    is_path = is_path and "://" not in value  # an address is a text
    # A sentence that is longer than a file name may be is no error to os.path.
    return _check_input_file(path, value) if is_path or (os.path.isfile(path) and not has_blanks) else None


def _check_input_file(path: Path, value: object) -> Path:
    """Return a path that is a readable kind of file, or raise; ``value`` is the input as it was written."""
    suffix, kinds = path.suffix.lower(), ", ".join(FILE_KINDS)
    if not os.path.isfile(path):
        problem = "is a folder" if os.path.isdir(path) else "there is no such file"
        raise UserError(f"--input={value}: {problem}; pass a file ({kinds}) or a sentence")
    if suffix in _UNSUPPORTED:
        raise UserError(f"--input={value}: {suffix} is not read; save it as one of {kinds}")
    return path


def _read_file(file: Path, task: str, pairs: bool, columns: Columns) -> list[Any]:
    kind = FILE_KINDS.get(file.suffix.lower(), "conll" if task == "tokens" else "lines")
    if kind == "conll" and task != "tokens":
        raise UserError(f"{file}: words in columns are for runs with config.task=tokens; pass whole texts")
    if kind != "conll" and task == "tokens":
        columns = columns._replace(names=(), text=columns.text[:1])  # those of a CoNLL file say nothing of tables
    texts = [example.text for example in read_examples(file, kind, columns, labelled=False)]
    return [_split_pair(text) for text in texts] if pairs and kind == "lines" else texts


def _words_or_pair(value: Any, task: str, pairs: bool) -> Any:
    expected = "a sentence, a file, a pair of texts or a list of words"
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise UserError(f"an input is {value!r}, not {expected}; pass str")
    texts = list(value)
    if not_text := [text for text in texts if not isinstance(text, str)]:
        raise UserError(f"an input has {not_text[0]!r} among its texts; pass str, and leave out what is missing")
    if task == "tokens":
        return texts
    if not pairs or len(texts) != 2:
        needed = "two texts" if pairs else "a text"
        raise UserError(f"an input is a list of {len(texts)}; this run takes {needed} for each input")
    return tuple(texts)


def _split_pair(value: str) -> tuple[str, str]:
    first, mark, second = value.partition(PAIR)
    if not mark or not first.strip() or not second.strip():
        raise UserError(f"{value[:60]!r} is one text, but the run was trained on pairs; write FIRST{PAIR}SECOND")
    return first, second


BOLD, PLAIN = "\033[1m", "\033[0m"
BATCH = 256  # inputs that go through the network together
MAX_SHOWN = 100  # inputs that are drawn; the others are in predictions.json only


def predict_texts(
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
        results, lines = _entities(net, encoder, classes, length, variables, texts, splitter)
    else:
        results, lines = _probabilities(net, encoder, classes, length, variables, texts)
    if len(results) > MAX_SHOWN:
        lines.append(f"... and {len(results) - MAX_SHOWN:,} more inputs: see predictions.json")
    return results, "\n".join(lines)


def _probabilities(
    net: TextNetwork, encoder: Encoder, classes: Sequence[str], length: int, variables: Any, texts: Sequence[Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    results, lines = [], []
    labels = np.zeros(len(texts), np.int32)
    for text, (row, _) in zip(texts, _predict(net, encoder, length, variables, texts, labels), strict=True):
        shown = text if isinstance(text, str) else PAIR.join(text)
        results.append({"input": shown, "probabilities": {c: float(p) for c, p in zip(classes, row, strict=True)}})
        lines += drawn_probabilities(shown, classes, row) if len(results) <= MAX_SHOWN else []
    return results, lines


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
    spans = [splitter.spans(text) if isinstance(text, str) else _word_spans(text) for text in inputs]
    words = [[text[a:b] for a, b in text_spans] for text, text_spans in zip(texts, spans, strict=True)]
    labels = np.empty(len(words), object)
    labels[:] = [np.zeros(len(sentence), np.int32) for sentence in words]
    results, lines, scheme = [], [], find_scheme(classes)
    for i, (row, was_read) in enumerate(_predict(net, encoder, length, variables, words, labels)):
        predicted = iter(row.argmax(-1))
        tags = [classes[int(next(predicted))] if word else scheme.outside for word in was_read]
        if scheme.name:
            tagged_spans = scheme.entities(tags)
        else:
            tagged_spans = [(tag, at, at) for at, tag in enumerate(tags) if tag != scheme.outside]
        entities = [
            {"text": texts[i][spans[i][a][0] : spans[i][b][1]], "kind": kind, "begin": spans[i][a][0],
             "end": spans[i][b][1]}
            for kind, a, b in tagged_spans
        ]  # fmt: skip
        results.append({"input": texts[i], "words": words[i], "entities": entities})
        lines += [_mark_entities(texts[i], entities)] if i < MAX_SHOWN else []
    return results, lines


def _word_spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Return (begin, end) of words in the text that they are when joined by blanks."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    return [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]


def _mark_entities(text: str, entities: list[dict[str, Any]]) -> str:
    on, off = (BOLD, PLAIN) if sys.stdout.isatty() else ("", "")
    line, end = "", 0
    for entity in entities:
        line += text[end : entity["begin"]] + f"{on}[{entity['text']}]({entity['kind']}){off}"
        end = entity["end"]
    return line + text[end:]


def _predict(
    net: TextNetwork, encoder: Encoder, length: int, variables: Any, texts: Sequence[Any], labels: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the probabilities of each text (K,), or of each word that is read (W', K), and which words are read."""
    encodings = tokenize.encode_texts(net.tokenizer, list(texts), length)
    if num_cut := sum(bool(e.overflowing) for e in encodings):
        say(f"{num_cut:,} of {len(texts):,} inputs are cut to {length} tokens: what comes after them is not read")
    data = tokenize.tokenized_texts(encodings, labels, tokenize.pad_id(net.tokenizer))
    step, size = make_eval_step(make_text_predict(encoder)), min(BATCH, len(texts))
    n = sharding.round_up(size)
    for first in range(0, len(texts), size):
        rows = np.arange(first, min(first + size, len(texts)))
        batch = data.batch(np.resize(rows, n), np.arange(n) < len(rows))
        out, counted = np.asarray(step(variables, sharding.shard_batch(batch))), np.asarray(batch["label"]) != IGNORED
        for i, row in enumerate(rows):
            if data.read_mask is None:
                yield out[i], np.ones(1, bool)
            else:
                yield out[i][counted[i]], data.read_mask[row] > 0


SYNTHETIC = {"text": "docs", "tokens": "docs_names", "masked": "docs"}  # where data.generate says so
MASKED_LM_HEAD = ("masked_dense", "masked_norm", "masked_bias")  # the head that guesses words


def make_task(config: Any, record: RunRecord = NEW_RUN) -> Task:
    """Build the task that ``config`` describes, for a run of which ``record`` is known."""
    no_examples = np.empty(0, object), np.empty(0, object if config.task == "tokens" else np.int32)
    source = record.source(lambda: load_source(config), *no_examples)
    if record.reads_data:
        warn_shared_texts(source)
        reading = reading_options(config.task, np.asarray(source.train.images))
    else:
        reading = record.facts["reading"]
    net = load_network(config, () if config.task == "masked" else source.classes)
    for note in net.notes:
        say(note)
    encoder = Encoder(net.model, Adapters(**config.adapt.to_dict()))
    raw_splits = record.split_data(config, source)
    splits = tokenize_splits(config, net, raw_splits, source.classes)
    regularize, stream_args = make_regularize(config, net), (config.seed, config.batch_size)
    uses_masked_lm = "masked" in (config.task, config.pretext.name)
    masking = tokenize.make_masking(net.tokenizer, config.pretext.mask_prob) if uses_masked_lm else None
    masked_lm = (masking, config.pretext.weight) if masking and config.pretext.weight else None
    feature_cache = TextFeatureCache(config, encoder, splits, regularize)
    masked_lm_net = load_network(config, (), "masked") if config.pretext.name else None
    test_texts = raw_splits["test"].images
    task = Task(
        name=f"{config.model.name} on {source.name}",
        classes=source.classes,
        init=functools.partial(init_variables, config, net, masked_lm_net, feature_cache, regularize),
        loss=objectives.make_text_loss(encoder, regularize, masked_lm),
        metrics=objectives.make_text_metrics(encoder),
        features=objectives.make_text_features(encoder),
        train_batch=TextStream(splits["train"], *stream_args),
        eval_batches=lambda split: tokenize.eval_batches(splits[split], config.eval_batch_size),
        sizes=record.sizes(splits),
        facts={
            "weights": str(net.path or "random"),
            "weights_sha256": net.sha256,
            "data": source.name,
            "tested": source.test_origin,
            "input": {"length": max_tokens(config, net)},
            "new_head": net.new_head,
            "reading": reading,
            **record.describe(source, raw_splits, config.data.dir),
        },
        stages=net.model.stage_names(),
        cache_features=feature_cache.task,
        predict=(objectives.make_classes if config.task == "tokens" else objectives.make_text_predict)(encoder),
        test_details=functools.partial(_details, source.classes, test_texts, rows=splits["test"].order()),
        evaluate=(sequence.token_evaluator if config.task == "tokens" else sequence.text_evaluator)(source.classes),
        predict_inputs=functools.partial(_predict_inputs, config, net, encoder, source.classes, reading),
        score="f1" if config.task == "tokens" else "accuracy",
    )
    return _with_masked_lm(task, config, encoder, masking, splits) if masking else task


def _with_masked_lm(
    task: Task, config: Any, encoder: Encoder, masking: Masking, splits: dict[str, TokenizedTexts]
) -> Task:
    """Return the task with masked language modelling: as its only objective, or as a pretext."""
    loss = objectives.make_masked_lm_loss(encoder, masking)
    if config.task == "masked":
        metrics = objectives.make_masked_lm_metrics(encoder, masking)
        unused = ("predict", "evaluate", "test_details", "predict_inputs", "cache_features")
        return task._replace(loss=loss, metrics=metrics, **dict.fromkeys(unused))
    return task._replace(pretext=Objective(loss, TextStream(splits["unlabelled"], config.seed, config.batch_size)))


def _details(classes: Sequence[str], texts: Any, scored_examples: Any, rows: Any) -> dict[str, Any]:
    """Return the details of the test split from its probabilities or tags."""
    if isinstance(scored_examples, sequence.Tags):
        names = sequence.predicted_classes(classes, scored_examples)
        return error_analysis.tag_details(names, texts, rows, *scored_examples)
    return error_analysis.text_details(classes, texts, rows, scored_examples)


def reading_options(task: str, texts: np.ndarray) -> dict[str, Any]:
    """Return how predictions must read texts: whether they are pairs, and how sentences are split into words."""
    splitter = word_splitting.learn_splitter(texts).to_json() if task == "tokens" else None
    return {"pairs": task == "text" and isinstance(texts[0], tuple), "splitter": splitter}


def _predict_inputs(
    config: Any,
    net: TextNetwork,
    encoder: Encoder,
    classes: Sequence[str],
    reading: Mapping[str, Any],
    variables: Any,
    inputs: Sequence[Any],
) -> tuple[list[dict[str, Any]], str]:
    """Return the predictions for what a user typed, read as the training texts were; see ``reading_options``."""
    splitter = word_splitting.Splitter.from_json(reading["splitter"] or {})
    options = {"splitter": splitter, "pairs": reading["pairs"], "columns": make_columns(config)}
    return predict_texts(config.task, net, encoder, classes, max_tokens(config, net), variables, inputs, **options)


def init_variables(
    config: Any,
    net: TextNetwork,
    masked_lm_net: TextNetwork | None,
    feature_cache: TextFeatureCache,
    regularize: Regularize,
    key: jax.Array,
) -> dict[str, Any]:
    """Return the variables that training starts from, drawn from ``key`` as far as they are not loaded or fitted."""
    variables = {"params": dict(net.reinitialize(key)["params"]), "batch_stats": {}}
    has_examples = len(feature_cache.splits["train"].labels) > 0  # else only a layout is wanted
    if config.init.head in head_init.PROBES and has_examples:
        probe = head_init.Probe(config.init.head, config.init.strength, feature_cache.splits, feature_cache.features)
        variables = head_init.with_probe(variables, probe)
    source_collection = head_init.source_collection(regularize, variables)
    variables = head_init.with_adapters(variables, feature_cache.encoder.adapters, jax.random.fold_in(key, 1))
    if masked_lm_net:
        head = masked_lm_net.reinitialize(jax.random.fold_in(key, 2))["params"]
        params = {**variables["params"], "extra": {"pretext": {name: head[name] for name in MASKED_LM_HEAD}}}
        variables = {**variables, "params": params}
    return {**variables, **({"source": source_collection} if source_collection else {})}


def load_source(config: Any) -> Dataset:
    """Load the texts of ``config``, or those of the installed libraries where ``data.generate`` says so."""
    data = config.data
    name = SYNTHETIC[config.task] if data.generate and not data.dir else data.name
    source = _load_cached(fingerprint.folder_stamp(name, data.dir), name, data.dir, make_columns(config))
    tagged = source.train.labels.dtype == object
    if config.task != "masked" and tagged != (config.task == "tokens"):
        label_kind, right_task = ("a tag for each word", "tokens") if tagged else ("one label for each text", "text")
        raise UserError(f"{source.name} has {label_kind}; set config.task={right_task}")
    if config.task == "text" and len(source.classes) < 2:
        raise UserError(f"{source.name} has no labels; set config.task=masked, or take another data.name")
    head_init.check_classes(config, source)
    return source


def make_columns(config: Any) -> Columns:
    """Return the columns of text and label in the files of ``config``."""
    return Columns(tuple(config.data.columns), tuple(config.data.text), config.data.label)


def warn_shared_texts(source: Dataset) -> None:
    """Warn about validation and test texts that are in the training split, too."""
    train = {_hashable(text) for text in source.train.images}
    for name, split in (("validation", source.validation), ("test", source.test)):
        shared = sum(_hashable(text) in train for text in split.images) if split else 0
        if split and shared:
            count = f"{shared:,} of {len(split.labels):,} {name} texts"
            say(f"{source.name}: {count} are in the training split, too, so scores are too high; remove them from one")


def _hashable(text: Any) -> Any:
    return tuple(text) if isinstance(text, list) else text


@functools.lru_cache(maxsize=1)  # the runs of a comparison share one copy; nobody writes to it
def _load_cached(_: str, name: str, folder: str, columns: Columns) -> Dataset:
    return text_datasets.load(name, folder, columns)


def load_network(config: Any, classes: Sequence[str], output: str = "") -> TextNetwork:
    """Return the network of ``config`` with a head for ``classes``, or for guessing words."""
    output, folder = output or config.task, huggingface.resolve_folder(config.init.source, config.init.path)
    model_options = config.model.options.to_dict()
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in model_options.items()}
    options |= {"dtype": jnp.dtype(config.model.dtype), "endpoint": config.model.endpoint, "output": output}
    options |= {"head_dropout": config.regularize.dropout} if config.regularize.dropout else {}
    options |= {"adapter": config.adapt.rank} if config.adapt.kind == "bottleneck" and config.adapt.rank else {}
    if config.init.source == "random":
        return huggingface.random(config.model.name, folder, len(classes), seed=config.seed, **options)
    task_head = "keep" if config.init.head == "keep" and output != "masked" else "new"
    head = "auto" if output == "masked" else task_head
    load_options: dict[str, Any] = {"head": head, "seed": config.seed, "rename": config.init.rename}
    net = huggingface.load(config.model.name, folder, len(classes), **load_options, **options)
    order = run_record.match_classes(net.classes, classes, str(net.path)) if task_head == "keep" else None
    return net if order is None else net._replace(variables=run_record.reorder_heads(net.variables, order))


def max_tokens(config: Any, net: TextNetwork) -> int:
    """Return the maximum number of tokens of a text."""
    return min(config.input.max_length or net.model.positions, net.model.positions)


def tokenize_splits(
    config: Any, net: TextNetwork, splits: dict[str, Any], classes: Sequence[str]
) -> dict[str, TokenizedTexts]:
    """Return the splits as token ids, and report how many texts and tagged words were cut."""
    max_length, pad = max_tokens(config, net), tokenize.pad_id(net.tokenizer)
    tokenized_splits, num_cut, total, unread = {}, 0, 0, 0
    for name, split in splits.items():
        texts = np.asarray(split.images)
        encodings = tokenize.encode_texts(net.tokenizer, texts.tolist(), max_length)
        num_cut, total = num_cut + sum(bool(e.overflowing) for e in encodings), total + len(encodings)
        tokenized = tokenized_splits[name] = tokenize.tokenized_texts(encodings, split.labels, pad)
        if tokenized.read_mask is not None:
            unread += sum(int((read == 0).sum()) for read in tokenized.read_mask)
    if num_cut:
        hint = f"config.input.max_length may be up to {net.model.positions}"
        say(f"{num_cut:,} of {total:,} texts are cut to {max_length} tokens; {hint}")
    if unread:
        say(f"{unread:,} words are behind the length limit or have no token; in scores they count as outside entities")
    return tokenized_splits


def make_regularize(config: Any, net: TextNetwork) -> Regularize:
    """Return the penalties that ``config`` asks for; dropout before the head is an attribute of the model."""
    values = {name: value for name, value in config.regularize.to_dict().items() if name in Regularize._fields}
    result = Regularize(**{**values, "endpoints": ()})
    if not result.compares_maps:
        return result
    stages = tuple(name for name in net.model.stage_names() if name != "pooler")
    return result._replace(endpoints=head_init.check_endpoints(tuple(values["endpoints"]), stages))


def export_params(config: Any, params: Any) -> dict[str, Any]:
    """Return the parameters of the network alone with adapters of low rank merged, for Hugging Face's files."""
    adapters = Adapters(**config.adapt.to_dict())
    if adapters.kind == "bottleneck":
        raise UserError("Hugging Face's files have no bottleneck adapters; take config.adapt.kind=lora to export a run")
    return merged_params(params, adapters)
