"""Tasks of text: a label for a text or two ("text"), a tag for each word ("tokens"), words to guess ("masked")."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import huggingface
from tl_jax.data import changes, masking, text_sources, token_batches, tokens, words
from tl_jax.data.masking import Masking
from tl_jax.data.pictures import Source
from tl_jax.data.texts import Columns
from tl_jax.data.token_batches import Texts, TextStream
from tl_jax.errors import UserError
from tl_jax.task import Objective, Task
from tl_jax.tasks import answers, details, kept_head, starting, verdicts
from tl_jax.tasks import text_objectives as objectives
from tl_jax.tasks.objectives import plain
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.tasks.text_caching import Frozen
from tl_jax.tasks.text_objectives import Encoder
from tl_jax.text_network import TextNetwork
from tl_jax.train.log import say
from tl_jax.transfer.adapters import Adapters
from tl_jax.transfer.penalties import Regularize

DRAWN = {"text": "docs", "tokens": "docs_names", "masked": "docs"}  # where data.generate says so
WORDS = ("masked_dense", "masked_norm", "masked_bias")  # the head that guesses words


def make(config: Any, record: RunRecord = NEW_RUN) -> Task:
    """Build the task that ``config`` describes, for a run of which ``record`` is known."""
    none = np.empty(0, object), np.empty(0, object if config.task == "tokens" else np.int32)
    source = record.source(lambda: load_source(config), *none)
    if record.reads_data:
        say_shared(source)
    reading = how_read(config.task, source.train.images) if record.reads_data else record.facts["reading"]
    net = load_network(config, () if config.task == "masked" else source.classes)
    for note in net.notes:
        say(note)
    encoder = Encoder(net.model, Adapters(**config.adapt.to_dict()))
    raw = record.cut(config, source)
    parts = tokenized(config, net, raw, source.classes)
    how, seen = regularize(config, net), (config.seed, config.batch_size)
    guesses = "masked" in (config.task, config.pretext.name)
    guessing = masking.of(net.tokenizer, config.pretext.share) if guesses else None
    beside = (guessing, config.pretext.weight) if guessing and config.pretext.weight else None
    frozen = Frozen(config, encoder, parts, how)
    words_net = load_network(config, (), "masked") if config.pretext.name else None
    task = Task(
        name=f"{config.model.name} on {source.name}",
        classes=source.classes,
        init=functools.partial(start, config, net, words_net, frozen, how),
        loss=objectives.make_loss(encoder, how, beside),
        metrics=objectives.make_metrics(encoder),
        features=objectives.make_features(encoder),
        train_batch=TextStream(parts["train"], *seen),
        eval_batches=lambda part: token_batches.eval_batches(parts[part], config.eval_batch_size),
        sizes=record.sizes(parts),
        facts={
            "weights": str(net.path or "random"),
            "weights_sha256": net.sha256,
            "data": source.name,
            "tested": source.tested,
            "input": {"length": length(config, net)},
            "new_head": net.new,
            "reading": reading,
            **record.describe(source, raw, config.data.dir),
        },
        parts=net.model.part_names(),
        shortcut=frozen.task,
        predict=(objectives.make_classes if config.task == "tokens" else objectives.make_predict)(encoder),
        details=functools.partial(_details, source.classes, raw["test"].images, rows=parts["test"].order()),
        judge=(verdicts.of_tokens if config.task == "tokens" else verdicts.of_texts)(source.classes),
        answer=functools.partial(_answer, config, net, encoder, source.classes, reading),
        score="f1" if config.task == "tokens" else "accuracy",
    )
    return _guessing(task, config, encoder, guessing, parts) if guessing else task


def _guessing(task: Task, config: Any, encoder: Encoder, how: Masking, parts: dict[str, Texts]) -> Task:
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
    if isinstance(kept, verdicts.Tagged):
        return details.of_tags(verdicts.names_of(classes, kept), texts, rows, *kept)
    return details.of_texts(classes, texts, rows, kept)


def how_read(task: str, texts: Sequence[Any]) -> dict[str, Any]:
    """Return what predictions must know of the training texts: whether they are pairs, how sentences are split."""
    splitter = words.learn_splitter(texts).to_json() if task == "tokens" else None
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
    splitter = words.Splitter.of_json(reading["splitter"] or {})
    how = {"splitter": splitter, "pairs": reading["pairs"], "columns": columns_of(config)}
    return answers.answer(config.task, net, encoder, classes, length(config, net), variables, inputs, **how)


def start(
    config: Any, net: TextNetwork, words_net: TextNetwork | None, frozen: Frozen, how: Regularize, key: jax.Array
) -> dict[str, Any]:
    """Return the variables that training starts from, drawn from ``key`` as far as they are not loaded or fitted."""
    variables = {"params": dict(net.redraw(key)["params"]), "batch_stats": {}}
    if config.init.head in starting.PROBES and len(frozen.parts["train"].labels):  # else only a layout is wanted
        probe = starting.Probe(config.init.head, config.init.strength, frozen.parts, frozen.features)
        variables = starting.with_probe(variables, probe)
    kept = starting.source(how, variables)
    variables = starting.adapted(variables, frozen.encoder.adapters, jax.random.fold_in(key, 1))
    if words_net:
        head = words_net.redraw(jax.random.fold_in(key, 2))["params"]
        params = {**variables["params"], "extra": {"pretext": {name: head[name] for name in WORDS}}}
        variables = {**variables, "params": params}
    return {**variables, **({"source": kept} if kept else {})}


def load_source(config: Any) -> Source:
    """Load the texts of ``config``, or those of the installed libraries where ``data.generate`` says so."""
    data = config.data
    name = DRAWN[config.task] if data.generate and not data.dir else data.name
    source = _read(changes.stamp(name, data.dir), name, data.dir, columns_of(config))
    tagged = source.train.labels.dtype == object
    if config.task != "masked" and tagged != (config.task == "tokens"):
        have, right = ("a tag for each word", "tokens") if tagged else ("one label for each text", "text")
        raise UserError(f"{source.name} has {have}; set config.task={right}")
    if config.task == "text" and len(source.classes) < 2:
        raise UserError(f"{source.name} has no labels; set config.task=masked, or take another data.name")
    starting.check_classes(config, source)
    return source


def columns_of(config: Any) -> Columns:
    """Return where text and label stand in the files of ``config``."""
    return Columns(tuple(config.data.columns), tuple(config.data.text), config.data.label)


def say_shared(source: Source) -> None:
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
def _read(_: str, name: str, folder: str, columns: Columns) -> Source:
    return text_sources.load(name, folder, columns)


def load_network(config: Any, classes: Sequence[str], output: str = "") -> TextNetwork:
    """Return the network of ``config`` with a head for ``classes``, or for guessing words."""
    output, folder = output or config.task, huggingface.folder_of(config.init.source, config.init.path)
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in config.model.options.to_dict().items()}
    options |= {"dtype": jnp.dtype(config.model.dtype), "endpoint": config.model.endpoint, "output": output}
    options |= {"head_dropout": config.regularize.dropout} if config.regularize.dropout else {}
    options |= {"adapter": config.adapt.rank} if config.adapt.kind == "bottleneck" and config.adapt.rank else {}
    if config.init.source == "random":
        return huggingface.random(config.model.name, folder, len(classes), seed=config.seed, **options)
    keep = "keep" if config.init.head == "keep" and output != "masked" else "new"
    head = "auto" if output == "masked" else keep
    given = {"head": head, "seed": config.seed, "rename": config.init.rename}
    net = huggingface.load(config.model.name, folder, len(classes), **given, **options)
    order = kept_head.match(net.classes, classes, str(net.path)) if keep == "keep" else None
    return net if order is None else net._replace(variables=kept_head.reordered(net.variables, order))


def length(config: Any, net: TextNetwork) -> int:
    """Return how many tokens a text may have."""
    return min(config.input.length or net.model.positions, net.model.positions)


def tokenized(config: Any, net: TextNetwork, parts: dict[str, Any], classes: Sequence[str]) -> dict[str, Texts]:
    """Return the parts as ids, and say how many texts were cut, and how many words of tagged sentences."""
    most, pad = length(config, net), net.tokenizer.token_to_id("[PAD]")
    found, cut, total, unread = {}, 0, 0, 0
    for name, part in parts.items():
        texts = np.asarray(part.images)
        encodings = tokens.encode(net.tokenizer, texts.tolist(), most)
        cut, total = cut + sum(bool(e.overflowing) for e in encodings), total + len(encodings)
        found[name] = token_batches.texts(encodings, part.labels, pad)
        if found[name].read is not None:
            unread += sum(int((read == 0).sum()) for read in found[name].read)
    if cut:
        room = f"config.input.length may be up to {net.model.positions}"
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
    return how._replace(endpoints=starting.check_endpoints(tuple(values["endpoints"]), known))


def trained(config: Any, params: Any) -> dict[str, Any]:
    """Return the parameters of the network alone with adapters of low rank merged, for Hugging Face's files."""
    how = Adapters(**config.adapt.to_dict())
    if how.kind == "bottleneck":
        raise UserError("Hugging Face's files have no bottleneck adapters; take config.adapt.kind=lora to export a run")
    return plain(params, how)
