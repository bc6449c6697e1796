"""Base class of text tasks: tokenized data, encoder, initialization, previews and weight export."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import models
from tl_jax.config.options import Options, group, option
from tl_jax.data import registry, tokenize
from tl_jax.data.dataset import Dataset
from tl_jax.data.registry import DatasetOptions, TextDataConfig
from tl_jax.data.text import Columns
from tl_jax.data.tokenize import IGNORED, TextStream, TokenizedTexts
from tl_jax.export import model_card, stablehlo
from tl_jax.export.model_card import BundleContents
from tl_jax.metrics import Batch, Evaluation
from tl_jax.models.bert import Bert
from tl_jax.pretrained import formats, huggingface
from tl_jax.pretrained.huggingface import TextNetwork
from tl_jax.tasks import head_init, probe_strength, run_record, text_preview
from tl_jax.tasks import losses as objectives
from tl_jax.tasks.feature_cache import CacheConfig, TextFeatureCache
from tl_jax.tasks.losses import Encoder, make_text_predict, merged_params
from tl_jax.tasks.other_data import all_examples, with_classes_of_run
from tl_jax.tasks.run_record import NEW_RUN, RunRecord
from tl_jax.tasks.text_inputs import read_inputs, read_other_columns
from tl_jax.train import sharding
from tl_jax.train.evaluate import make_both, run_step
from tl_jax.train.logging import say, say_written, warn
from tl_jax.train.run_config import RunConfig
from tl_jax.train.state import TrainState
from tl_jax.train.step import make_eval_step
from tl_jax.train.task import TASKS, Objective, Task
from tl_jax.train.workdir import ACTION
from tl_jax.transfer.regularizers import RegularizeConfig
from tl_jax.transfer.self_supervised import PretextConfig
from tl_jax.utils import disk, tree
from tl_jax.utils.errors import UserError

NETWORK = "network"  # in facts.json: model attributes that differ from the defaults
MASKED_LM_HEAD = ("masked_dense", "masked_norm", "masked_bias")  # the masked language modelling head
BATCH = 256  # inputs per prediction batch


@dataclass(frozen=True)
class TextInputConfig(Options):
    """Tokenization settings."""

    max_length: int = option(128, "maximum tokens per text; 0: the network's maximum", low=0, high=8192)


@dataclass(frozen=True)
class TextPretextConfig(PretextConfig):
    """Masked language modelling as a pretext."""

    mask_prob: float = option(0.15, "fraction of a text's tokens to mask and predict", low=0.01, high=0.9)


@dataclass(frozen=True)
class TextRunConfig(RunConfig):
    """Configuration shared by all text tasks."""

    data: TextDataConfig = group(TextDataConfig)
    input: TextInputConfig = group(TextInputConfig)
    pretext: TextPretextConfig = group(TextPretextConfig)
    cache: CacheConfig = group(CacheConfig)


class EncodedInputs(NamedTuple):
    """Texts to predict: the content of their rows, their tokens, and unused labels."""

    shown: Sequence[Any]
    encodings: Sequence[Any]
    labels: np.ndarray


class TextTask(Task):
    """A task on tokenized texts (N, L), or pairs of texts.

    Attributes of the class:
        head: output of the network, see ``models.bert.Bert.output``.
        caches_features: whether the head reads one vector per text, which a frozen encoder computes once.
    """

    input_kind = data_inputs = "texts"
    synthetic = "docs"
    config_class: ClassVar[type[TextRunConfig]] = TextRunConfig
    # These need images or BatchNorm.
    unused_fields = (
        "cache.views", "freeze.batch_stats", "init.layout", "model.channels", "optim.batch_norm_momentum",
        "regularize.class_weights", "regularize.cutmix", "regularize.drop_path", "regularize.mixup",
        "regularize.stochastic_norm",
    )  # fmt: skip
    random_files = True  # for the tokenizer
    head: ClassVar[str]
    caches_features: ClassVar[bool] = False
    evaluates_outputs = True

    def __init__(self, config: Any, record: RunRecord = NEW_RUN):
        """Build the task of ``config`` for a run with the given record."""
        no_examples = np.empty(0, object), np.empty(0, object if self.tags_words else np.int32)
        self.config, source = config, record.source(lambda: load_source(config, type(self)), *no_examples)
        if record.reads_data:
            warn_shared_texts(source)
            self.reading = self.reading_options(np.asarray(source.train.inputs))
        else:
            self.reading = record.facts["reading"]
        load = functools.partial(load_network if record.reads_weights else build_network, record=record)
        self.net = net = load(config, classes=source.classes if self.needs_labels else (), output=self.head)
        for note in net.notes:
            say(note)
        self.encoder = Encoder(net.model, config.adapt)
        raw_splits = record.split_data(config, source)
        self.splits = splits = tokenize_splits(config, net, raw_splits, source.classes)
        self.regularize, self.classes = make_regularize(config, net), source.classes
        self.feature_cache = TextFeatureCache(config, self.encoder, splits, self.regularize, self.caches_features)
        self.test_texts, self.test_order = np.asarray(raw_splits["test"].inputs), splits["test"].order()
        self.name = f"{config.model.name} on {source.name}"
        self.features, self.stages = objectives.make_text_features(self.encoder), net.model.stage_names()
        self.train_batch = TextStream(splits["train"], config.seed, config.batch_size)
        self.sizes = record.sizes(splits)
        self.facts = {
            "weights": str(net.path or "random"),
            "weights_sha256": net.sha256,
            "data": source.name,
            "tested": source.test_origin,
            "input": {"length": max_tokens(config, net)},
            "new_head": net.new_head,
            "reading": self.reading,
            NETWORK: models.model_options(config.model.name, net.model),
            **record.describe(source, raw_splits, config.data.dir),
        }
        self._masked_lm_net = (
            load(config, classes=(), output="masked") if config.pretext.name else None
        )  # its head is the pretext's
        self._set_functions()

    def _set_functions(self) -> None:
        """Set loss, metrics and outputs, and the pretext, if any."""
        config, masked_lm = self.config, None
        if config.pretext.name:
            masking = tokenize.make_masking(self.net.tokenizer, config.pretext.mask_prob)
            stream = TextStream(self.splits["unlabelled"], config.seed, config.batch_size)
            self.pretext = Objective(objectives.make_masked_lm_loss(self.encoder, masking), stream)
            masked_lm = (masking, config.pretext.weight) if config.pretext.weight else None
        self.loss = objectives.make_text_loss(self.encoder, self.regularize, masked_lm)
        self.metrics = objectives.make_text_metrics(self.encoder)
        self.outputs = (objectives.make_classes if self.tags_words else make_text_predict)(self.encoder)

    @classmethod
    def networks(cls) -> tuple[str, ...]:
        return models.names("texts")

    @classmethod
    def sources(cls) -> tuple[str, ...]:
        return ("huggingface", "tl_jax", "random")

    @classmethod
    def stage_names(cls, config: Any) -> tuple[str, ...]:
        """Return the names of the stages; those of BERT base until the files are downloaded."""
        options = {"endpoint": config.model.endpoint, **head_init.model_attributes(config)}
        name, path = config.model.name, config.init.path
        if path and not Path(path).expanduser().is_dir():
            return models.create(name, 0, **options).stage_names()
        return huggingface.stage_names(name, config.init.source, path, **options)

    @classmethod
    def conflicts(cls, config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
        name, pretext = config.data.name, config.pretext.name
        ignored = [field for field in ("text", "label", "columns") if registry.ignores(cls.data_inputs, name, field)]
        columns = [f"data.{field}" for field in ignored if changed(f"data.{field}")]
        return {
            f"pretext.name={pretext} is not available for task={cls.kind}": pretext and pretext != "masked",
            f"data.text={config.data.text} must name one or two columns": len(config.data.text) not in (1, 2),
            "phases set batch_stats, but a text network has no BatchNorm; omit it": (
                any(phase.batch_stats is not None for phase in config.phases)
            ),
            f"{(columns or [''])[0]} has no effect with config.data.name={name}, which has no columns": columns,
        }

    @classmethod
    def load_data(cls, config: Any) -> Dataset:
        return load_source(config, cls)

    @classmethod
    def is_portable(cls, folder: Path, facts: Mapping[str, Any]) -> bool:
        return NETWORK in facts and (folder / tokenize.FILES[0]).is_file()

    def keep(self, folder: Path) -> None:
        """Write the tokenizer into the folder of the run, which then does not need the source."""
        disk.write_text(folder / tokenize.FILES[0], self.net.tokenizer.to_str())

    def reading_options(self, texts: np.ndarray) -> dict[str, Any]:
        """Return how predictions read texts: whether they are pairs, and how sentences are split into words."""
        return {"pairs": False, "splitter": None}

    def init(self, key: jax.Array) -> dict[str, Any]:
        return init_variables(self.config, self.net, self._masked_lm_net, self.feature_cache, self.regularize, key)

    def eval_batches(self, split: str) -> Iterator[Batch]:
        return tokenize.eval_batches(self.splits[split], self.config.eval_batch_size)

    def with_test(self, config: Any, classes: Mapping[str, str]) -> Self:
        split = all_examples(with_classes_of_run(load_source(config, type(self), True), self.classes, classes))
        tokens = tokenize_splits(self.config, self.net, {"test": split}, self.classes)["test"]
        return self.replace(
            splits={**self.splits, "test": tokens}, sizes={**self.sizes, "test": len(split.labels)},
            test_texts=np.asarray(split.inputs[:]), test_order=tokens.order(),
        )  # fmt: skip

    def cache_features(self, variables: Any, phase: Any) -> Task:
        return self.feature_cache.task(self, variables, phase)

    def evaluate(self, outputs: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
        raise NotImplementedError

    def read_inputs(self, inputs: Any) -> list[Any]:
        """Return the texts of ``inputs``, read like the training texts."""
        return read_inputs(inputs, self.tags_words, self.reading["pairs"], make_columns(self.config))

    def input_columns(self, inputs: Any) -> list[dict[str, Any]] | None:
        """Return the columns of table files besides their texts, such as ids, for tables of predictions."""
        return None if self.tags_words else read_other_columns(inputs, make_columns(self.config))

    def predict(self, variables: Any, inputs: Sequence[Any], embeddings: bool = False) -> Iterator[dict[str, Any]]:
        length, num_cut, size = max_tokens(self.config, self.net), 0, min(BATCH, len(inputs))
        predict = make_text_predict(self.encoder)
        step = make_eval_step(make_both(predict, self.features) if embeddings else predict)
        for first in range(0, len(inputs), size):
            texts = [text for text in inputs[first : first + size] if not isinstance(text, UserError)]
            encoded = self._encode(texts, length)
            num_cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
            rows = (
                self._predict_batch(variables, encoded, step, sharding.round_up(size), embeddings)
                if texts
                else iter(())
            )
            for text in inputs[first : first + size]:
                yield {"input": "", "error": str(text)} if isinstance(text, UserError) else next(rows)
        if num_cut:
            say(f"{num_cut:,} of {len(inputs):,} inputs are truncated to {length} tokens")

    def _encode(self, texts: Sequence[Any], length: int) -> EncodedInputs:
        shown, pieces, labels = self.split_inputs(texts)
        encodings = tokenize.encode_texts(self.net.tokenizer, list(pieces), length)
        return EncodedInputs(shown, encodings, labels)

    def split_inputs(self, texts: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], np.ndarray]:
        """Return for N texts the arguments of ``make_row``, the pieces to tokenize, and unused labels.

        Labels are int32 (N,), or an object array (N,) of arrays (W,) if lists of words are tokenized.
        """
        return texts, texts, np.zeros(len(texts), np.int32)

    def make_row(self, text: Any, probabilities: np.ndarray, was_read: np.ndarray) -> dict[str, Any]:
        """Return the row of a text.

        Args:
            text: from ``split_inputs``.
            probabilities: (K,), or (W', K) for the words that were not truncated.
            was_read: (W,), which words those are.
        """
        raise NotImplementedError

    def _predict_batch(
        self, variables: Any, encoded: EncodedInputs, step: Any, size: int, embeddings: bool
    ) -> Iterator[dict[str, Any]]:
        """Yield the row of each of N encoded texts, which form one batch of ``size``."""
        data = tokenize.tokenized_texts(encoded.encodings, encoded.labels, tokenize.pad_id(self.net.tokenizer))
        n = len(encoded.encodings)
        batch = data.batch(np.resize(np.arange(n), size), np.arange(size) < n)
        out = run_step(step, variables, sharding.shard_batch(batch))
        probabilities, features = out if embeddings else (out, None)
        counted = np.asarray(batch["label"]) != IGNORED
        for i, text in enumerate(encoded.shown):
            if data.read_mask is None:
                row = self.make_row(text, probabilities[i], np.ones(1, bool))
            else:
                row = self.make_row(text, probabilities[i][counted[i]], data.read_mask[i] > 0)
            yield row if features is None else {**row, "embedding": features[i]}

    def preview(self, folder: Path) -> list[Path]:
        """Draw texts of the first step as tokens, with labels, padding and masked words."""
        return text_preview.draw_previews(self, self.config, folder)

    def export_weights(self, folder: Path, start: TrainState | None, end: TrainState, dtype: str) -> Path:
        """Write the folder ``export`` in the format of transformers."""
        classes = self.classes if self.needs_labels else ()
        net = self.net._replace(variables={"params": export_params(self.config, end.params)})
        huggingface.save(folder / "export", net, classes, dtype)
        say_written(folder / "export" / "model.safetensors")
        return folder / "export"

    def bundle_variables(self, folder: Path) -> dict[str, Any]:
        formats.check_bundle(folder, huggingface.SAVED_FILES)
        net = huggingface.load(self.config.model.name, folder, **network_options(self.config, self.head))
        if tree.flatten(net.variables).keys() != self.net.random_leaves:
            raise UserError(f"{folder}: the weights do not fit the network of the run; export the run again")
        return {"params": net.variables["params"], "batch_stats": {}}

    def bundle_contents(self, folder: Path, step: int) -> BundleContents:
        net = huggingface.load(self.config.model.name, folder)
        length = max_tokens(self.config, net)
        descriptions = (
            "weights with Hugging Face's names",
            "the network configuration",
            "the tokenizer",
            "the tokenizer configuration of transformers",
        )
        files: dict[str, str] = dict(zip(huggingface.SAVED_FILES, descriptions, strict=True))
        facts = {"classes": list(net.classes), "preprocessing": model_card.describe_text_input(length)}
        output = net.model.output if net.model.num_classes else "masked"
        loaders = model_card.text_loaders(output, net.model.pooling, length)
        return BundleContents(stablehlo.text_program(net), facts, "", files, loaders)


def init_variables(
    config: Any,
    net: TextNetwork,
    masked_lm_net: TextNetwork | None,
    feature_cache: TextFeatureCache,
    regularize: RegularizeConfig,
    key: jax.Array,
) -> dict[str, Any]:
    """Return the initial variables; leaves that are neither loaded nor fitted are sampled with ``key``."""
    variables = {"params": dict(net.reinitialize(key)["params"]), "batch_stats": {}}
    has_examples = len(feature_cache.splits["train"].labels) > 0  # else only the structure is needed
    if config.init.head in probe_strength.PROBES and has_examples:
        init, cache, seed = config.init, feature_cache, config.seed - config.member
        probe = head_init.Probe(init.head, init.strength, cache.splits, cache.features, init.folds, seed)
        variables = head_init.with_probe(variables, probe)
        if init.start_loss and config.trains:
            start_head = head_init.weaker_head(init, cache.splits["train"], cache.features, variables)
            variables = {**variables, "start_head": start_head}
    source_collection = head_init.source_collection(regularize, variables)
    variables = head_init.with_adapters(variables, feature_cache.encoder.adapters, jax.random.fold_in(key, 1))
    if masked_lm_net:
        head = masked_lm_net.reinitialize(jax.random.fold_in(key, 2))["params"]
        params = {**variables["params"], "extra": {"pretext": {name: head[name] for name in MASKED_LM_HEAD}}}
        variables = {**variables, "params": params}
    return {**variables, **({"source": source_collection} if source_collection else {})}


def load_source(config: Any, kind: type[TextTask], as_one_split: bool = False) -> Dataset:
    """Load the texts of ``config`` for a task, or texts of the installed libraries with ``data.generate``.

    With ``as_one_split`` they are all examples of another dataset on which a run is tested, see ``DatasetOptions``.
    """
    name = kind.data_name(config)
    options = DatasetOptions(name, config.data.dir, columns=make_columns(config), as_one_split=as_one_split)
    source = registry.load_dataset(kind.data_inputs, options)
    tagged = source.train.labels.dtype == object
    if kind.needs_labels and tagged != kind.tags_words:
        label_kind = "a tag for each word" if tagged else "one label for each text"
        raise UserError(f"{source.name}: has {label_kind}; {_advise_task(tagged)}")
    if as_one_split:
        return source
    if kind.needs_labels and not tagged and len(source.classes) < 2:
        raise UserError(f"{source.name}: has no labels; use another data.name, or a recipe with {_unlabelled_tasks()}")
    head_init.check_classes(config, source)
    return source


def _advise_task(tagged: bool) -> str:
    """Return advice if the labels are those of other tasks."""
    kinds = [cls.kind for cls in _text_kinds() if cls.needs_labels and cls.tags_words == tagged]
    return f"use a recipe with task={' or '.join(kinds)}"


def _unlabelled_tasks() -> str:
    return " or ".join(f"task={cls.kind}" for cls in _text_kinds() if not cls.needs_labels)


def _text_kinds() -> list[type[TextTask]]:
    return [cls for cls in TASKS.values() if issubclass(cls, TextTask)]


def make_columns(config: Any) -> Columns:
    """Return the text and label columns of ``config``."""
    return Columns(config.data.columns, config.data.text, config.data.label)


def warn_shared_texts(source: Dataset) -> None:
    """Warn about validation and test texts that are also in the training split."""
    train = {_hashable(text) for text in source.train.inputs}
    for name, split in (("validation", source.validation), ("test", source.test)):
        shared = sum(_hashable(text) in train for text in split.inputs) if split else 0
        if split and shared:
            count = f"{shared:,} of {len(split.labels):,} {name} texts"
            warn(f"{source.name}: {count} are also in the training split, so scores are too high; remove them from one")


def _hashable(text: Any) -> Any:
    return tuple(text) if isinstance(text, list) else text


def load_network(config: Any, classes: Sequence[str], output: str, record: RunRecord = NEW_RUN) -> TextNetwork:
    """Load the network of ``config`` with a head ``output`` for ``classes``, or for masked language modelling."""
    folder, options = huggingface.resolve_folder(config.init.source, config.init.path), network_options(config, output)
    if isinstance(known := record.facts.get(NETWORK), Mapping):  # keep the run's tokenization
        options = {"pooling": known.get("pooling", Bert.pooling), **options}
    if config.init.source == "random":
        return huggingface.random(config.model.name, folder, len(classes), seed=config.seed, **options)
    task_head = "keep" if config.init.head == "keep" and output != "masked" else "new"
    head = "auto" if output == "masked" else task_head
    load_options: dict[str, Any] = {"head": head, "seed": config.seed, "rename": config.init.rename}
    net = huggingface.load(config.model.name, folder, len(classes), **load_options, **options)
    order = run_record.match_classes(net.classes, classes, str(net.path)) if task_head == "keep" else None
    return net if order is None else net._replace(variables=run_record.reorder_heads(net.variables, order))


def network_options(config: Any, output: str) -> dict[str, Any]:
    """Return the model attributes set by ``config``, with the head ``output``."""
    options = head_init.model_attributes(config)
    options |= {"dtype": jnp.dtype(config.model.dtype), "endpoint": config.model.endpoint, "output": output}
    options |= {"head_dropout": config.regularize.dropout} if config.regularize.dropout else {}
    return options | ({"adapter": config.adapt.rank} if config.adapt.kind == "bottleneck" and config.adapt.rank else {})


def build_network(config: Any, record: RunRecord, classes: Sequence[str], output: str) -> TextNetwork:
    """Return the network described by a run's files, with random weights, which a checkpoint replaces."""
    if not isinstance(record.facts[NETWORK], Mapping):
        raise UserError(f"{record.folder}/facts.json: {NETWORK} is not an object; {ACTION}")
    attributes = {name: tuple(v) if isinstance(v, list) else v for name, v in record.facts[NETWORK].items()}
    if unknown := attributes.keys() - {field.name for field in dataclasses.fields(Bert)}:
        raise UserError(f"{record.folder}/facts.json: {NETWORK} has the unknown field {min(unknown)!r}; {ACTION}")
    model = models.create(config.model.name, len(classes), **{**attributes, **network_options(config, output)})
    leaves = frozenset(tree.flatten(jax.eval_shape(huggingface.initializer(model), jax.random.key(0))))
    tokenizer, path = tokenize.read_tokenizer(Path(record.folder)), Path(str(record.facts.get("weights", "")))
    net = TextNetwork(model, {}, tokenizer, config.model.name, tuple(classes), leaves, path)
    return net._replace(sha256=str(record.facts.get("weights_sha256", "")))


def max_tokens(config: Any, net: TextNetwork) -> int:
    """Return the maximum number of tokens of a text."""
    return min(config.input.max_length or net.model.positions, net.model.positions)


def tokenize_splits(
    config: Any, net: TextNetwork, splits: dict[str, Any], classes: Sequence[str]
) -> dict[str, TokenizedTexts]:
    """Return the splits as token ids, and report how many texts and tagged words are truncated."""
    max_length, pad = max_tokens(config, net), tokenize.pad_id(net.tokenizer)
    tokenized_splits, num_cut, total, unread = {}, 0, 0, 0
    for name, split in splits.items():
        texts = np.asarray(split.inputs)
        encodings = tokenize.encode_texts(net.tokenizer, texts.tolist(), max_length)
        num_cut, total = num_cut + sum(bool(e.overflowing) for e in encodings), total + len(encodings)
        tokenized = tokenized_splits[name] = tokenize.tokenized_texts(encodings, split.labels, pad)
        if tokenized.read_mask is not None:
            unread += sum(int((read == 0).sum()) for read in tokenized.read_mask)
    if num_cut:
        hint = f"config.input.max_length may be up to {net.model.positions}"
        say(f"{num_cut:,} of {total:,} texts are truncated to {max_length} tokens; {hint}")
    if unread:
        say(f"{unread:,} words are truncated or have no token; scores count them as outside entities")
    return tokenized_splits


def make_regularize(config: Any, net: TextNetwork) -> RegularizeConfig:
    """Return the penalties of ``config``; dropout before the head is a model attribute."""
    regularize = config.regularize
    if not regularize.compares_maps:
        return regularize
    stages = tuple(name for name in net.model.stage_names() if name != "pooler")
    return dataclasses.replace(regularize, endpoints=head_init.check_endpoints(regularize.endpoints, stages))


def export_params(config: Any, params: Any) -> dict[str, Any]:
    """Return the network's parameters with low-rank adapters merged, for Hugging Face's files."""
    adapters = config.adapt
    if adapters.kind == "bottleneck":
        raise UserError("config.adapt.kind=bottleneck: not supported by Hugging Face's files; use lora to export a run")
    return merged_params(params, adapters)
