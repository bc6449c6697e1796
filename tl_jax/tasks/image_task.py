"""Base class of image tasks: network, inputs, initialization, previews and weight export."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import numpy as np

from tl_jax import models, pretrained
from tl_jax.config.options import group, option
from tl_jax.data import loader, registry, value_range
from tl_jax.data.augment import VIEW_COUNTS, AugmentConfig, augment
from tl_jax.data.dataset import Dataset, Split
from tl_jax.data.decode import Decoding
from tl_jax.data.preprocess import ImageInputConfig
from tl_jax.data.registry import DatasetOptions, ImageDataConfig
from tl_jax.data.text import Columns
from tl_jax.export import frameworks, model_card, stablehlo
from tl_jax.export.model_card import BundleContents
from tl_jax.models.registry import PretrainedSpec
from tl_jax.pretrained import delta, formats
from tl_jax.pretrained.catalog import CATALOG, known_sources, published_sources
from tl_jax.pretrained.network import Pretrained, check_variables, variable_shapes, with_head
from tl_jax.report.images import draw_grid
from tl_jax.report.plots import describe_bound
from tl_jax.tasks import head_init, image_inputs, probe_strength
from tl_jax.tasks.feature_cache import CacheConfig, ImageFeatureCache
from tl_jax.tasks.image_network import build_network, load_network, load_source_head, random_network
from tl_jax.tasks.losses import Inputs, Network, make_features, make_loss, make_metrics, make_predict, make_pretext_loss
from tl_jax.tasks.other_data import all_examples, with_classes_of_run
from tl_jax.tasks.run_record import RunRecord
from tl_jax.train.logging import say, say_written
from tl_jax.train.run_config import RunConfig
from tl_jax.train.state import TrainState, stream_key
from tl_jax.train.task import Objective, Task
from tl_jax.train.workdir import read_facts, read_summary
from tl_jax.transfer import adapters, freeze
from tl_jax.transfer.adapters import AdapterConfig
from tl_jax.transfer.freeze import FreezeConfig
from tl_jax.transfer.phases import PRETEXT
from tl_jax.transfer.regularizers import RegularizeConfig, class_weights
from tl_jax.transfer.self_supervised import ImagePretextConfig
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

PREVIEW_ROWS, PREVIEW_COLUMNS = 6, 7


@dataclass(frozen=True)
class ImageRunConfig(RunConfig):
    """Configuration shared by all image tasks."""

    data: ImageDataConfig = group(ImageDataConfig)
    input: ImageInputConfig = group(ImageInputConfig)
    augment: AugmentConfig = group(AugmentConfig)
    test_views: int = option(
        1, "test-time augmentation: 1 view; 2, with the mirror image; 10, also with crops", low=1, high=10
    )
    pretext: ImagePretextConfig = group(ImagePretextConfig)
    cache: CacheConfig = group(CacheConfig)


class ImageTask(Task):
    """A task on images (N, H, W, C).

    Attributes of the class:
        program_output: output of the exported program, see ``stablehlo.image_program``.
        unexported: parameter groups that are not exported.

    Attributes:
        network: with its inputs.
        splits: of the data.
        decoding: how image files are decoded, as in training.
        image_size: side in pixels to which images of differing sizes are fitted.
    """

    input_kind = data_inputs = "images"
    synthetic = "gratings"
    config_class: ClassVar[type[ImageRunConfig]] = ImageRunConfig
    program_output: ClassVar[str] = "probabilities"
    unexported: ClassVar[tuple[str, ...]] = ()

    network: Network
    splits: Mapping[str, Split]
    decoding: Decoding
    image_size: int

    @classmethod
    def networks(cls) -> tuple[str, ...]:
        return models.names()

    @classmethod
    def sources(cls) -> tuple[str, ...]:
        return (*published_sources(), "tl_jax", "random")

    @classmethod
    def stage_names(cls, config: ImageRunConfig) -> tuple[str, ...]:
        options = head_init.model_attributes(config)
        return models.create(config.model.name, 0, **{"endpoint": config.model.endpoint, **options}).stage_names()

    @classmethod
    def keeps_norms(cls, config: ImageRunConfig) -> bool:
        if config.freeze.batch_stats != FreezeConfig().batch_stats or config.regularize.stochastic_norm:
            return False  # set by the user, or both kinds of statistics are used
        has_pretext = any(phase.objective == PRETEXT for phase in config.phases)
        model = models.create(config.model.name, 0, **head_init.model_attributes(config))
        return not has_pretext and "batch_stats" in variable_shapes(model)

    @classmethod
    def conflicts(cls, config: ImageRunConfig, changed: Callable[..., bool]) -> dict[str, Any]:
        data, name, inputs = config.data, config.data.name, cls.data_inputs
        value_range.parse_range(data.range)
        ignored = {field for field in registry.FIELDS if registry.ignores(inputs, name, field)}
        with_folder, outside = registry.names(inputs, "dir"), ", ".join(registry.names(inputs, "outside"))
        advice = "set config.data.name=folder for class folders of images"
        advice = advice if "folder" in with_folder else f"choose {' or '.join(with_folder)}"
        return {
            f"test_views={config.test_views} must be 1, 2 or 10": config.test_views not in VIEW_COUNTS,
            f"pretext.name={config.pretext.name} is not available for task={cls.kind}": config.pretext.name == "masked",
            f"data.dir={data.dir!r} has no effect with config.data.name={name}, which reads no folder; {advice}": (
                data.dir and "dir" in ignored
            ),
            f"data.range has no effect with config.data.name={name}, whose images have 8 bits": (
                changed("data.range") and "range" in ignored
            ),
            f"data.max_pixels has no effect with config.data.name={name}, which reads no image files": (
                data.max_pixels and "max_pixels" in ignored
            ),
            f"data.outside has an effect with config.data.name={outside} only": data.outside and "outside" in ignored,
            f"data.label is only for texts and config.data.name={', '.join(registry.names('images', 'label'))}": (
                changed("data.label") and "label" in ignored
            ),
        }

    @classmethod
    def load_data(cls, config: ImageRunConfig) -> Dataset:
        return cls.load_source(config, usual_size(config))

    @classmethod
    def load_source(
        cls, config: ImageRunConfig, size: int, decoding: Decoding | None = None, shape: tuple[int, int] | None = None
    ) -> Any:
        """Return the dataset of ``config``; images of differing sizes are fitted to ``size``.

        Args:
            config: the configuration.
            size: side in pixels.
            decoding: how image files are decoded; None for the decoding of ``config``.
            shape: (H, W) of a run, if all examples form the test split of that run; see ``DatasetOptions``.
        """
        data = config.data
        options = DatasetOptions(
            cls.data_name(config),
            folder=data.dir,
            size=size,
            max_bytes=data.gigabytes * 1e9,
            decoding=decoding or cls.make_decoding(config),
            fit=data.fit,
            group=data.group,
            classes=cls.box_classes(config),
            columns=Columns(label=data.label),
            shape=shape,
            as_one_split=shape is not None,
        )
        return registry.load_dataset(cls.data_inputs, options)

    @classmethod
    def box_classes(cls, config: ImageRunConfig) -> tuple[str, ...]:
        """Return the configured class names of boxes."""
        return ()

    @classmethod
    def make_decoding(cls, config: ImageRunConfig) -> Decoding:
        """Return how image files are decoded."""
        data = config.data
        return Decoding((), value_range.parse_range(data.range), data.max_pixels, outside=data.outside)

    def build(
        self,
        config: ImageRunConfig,
        net: Pretrained | None,
        inputs: Inputs,
        source: Dataset,
        num_outputs: int,
        record: RunRecord,
    ) -> None:
        """Set the attributes of a task whose head reads the network's features.

        Args:
            config: the configuration.
            net, inputs: see ``load_inputs``.
            source: the dataset.
            num_outputs: outputs of the head; 0 for no head.
            record: record of the run.
        """
        head = "keep" if config.init.head == "keep" else "new"
        net = with_head(net, num_outputs, head) if net else random_network(config, num_outputs)
        for note in net.notes:
            say(note)
        check_norms(config, net)
        self.config, self.network = config, Network(net.model, inputs, config.adapt)
        self.splits = splits = record.split_data(config, source)
        weight_setting = config.regularize.class_weights if record.reads_data else ""  # predictions have no loss
        weights = class_weights(weight_setting, splits["train"].labels, source.classes)
        regularize = dataclasses.replace(make_regularize(config, net), weights=weights)
        pretext = config.pretext if config.pretext.name else None
        self.feature_cache = ImageFeatureCache(config, self.network, splits, regularize)
        self._start = functools.partial(init_variables, config, net, self.feature_cache, regularize, pretext)
        stream_args = config.seed, config.batch_size
        if pretext:
            unlabelled = splits["unlabelled"]
            self.pretext = Objective(
                make_pretext_loss(self.network, pretext),
                loader.Stream(unlabelled.inputs, unlabelled.labels, *stream_args),
            )
        augment_config, added_pretext = config.augment, pretext if config.pretext.weight else None
        for name, function in self.functions(self.network, augment_config, regularize, added_pretext).items():
            setattr(self, name, function)
        self.name, self.classes = f"{config.model.name} on {source.name}", source.classes
        self.features = make_features(self.network)
        self.train_batch = loader.Stream(splits["train"].inputs, splits["train"].labels, *stream_args)
        self.sizes, self.stages = record.sizes(splits), net.model.stage_names()
        self.facts = {
            **task_facts(net, inputs, source, splits), **record.describe(source, splits, config.data.dir)
        }  # fmt: skip

    def functions(
        self,
        network: Network,
        augment_config: AugmentConfig,
        penalties: RegularizeConfig,
        pretext: ImagePretextConfig | None,
    ) -> dict[str, Any]:
        """Return the task's functions for a network, or for its remaining layers, by attribute name."""
        num_views = self.config.test_views
        loss = make_loss(network, augment_config, penalties, pretext)
        return {"loss": loss, "metrics": make_metrics(network, num_views), "outputs": make_predict(network, num_views)}

    def init(self, key: jax.Array) -> dict[str, Any]:
        return self._start(key)

    def eval_batches(self, split: str) -> Any:
        return loader.eval_batches(self.splits[split], self.config.eval_batch_size)

    def read_inputs(self, inputs: Any) -> list[image_inputs.ImageInput]:
        return image_inputs.list_inputs(inputs, self.config.data.outside)

    def with_test(self, config: Any, classes: Mapping[str, str]) -> Self:
        height, width = map(int, self.splits["train"].inputs.shape[1:3])
        decoding = self.decoding._replace(from_run=True, outside=config.data.outside)
        other = self.load_source(config, self.image_size, decoding, (height, width))
        split = all_examples(with_classes_of_run(other, self.classes, classes))
        return self.replace(splits={**self.splits, "test": split}, sizes={**self.sizes, "test": len(split.labels)})

    def cache_features(self, variables: Any, phase: Any) -> Task:
        return self.feature_cache.task(self, variables, phase)

    def preview(self, folder: Path) -> list[Path]:
        """Draw the images of the first steps next to their augmented versions and pretext views."""
        augment_configs = {"preview": self.config.augment}
        if self.config.pretext.name:
            augment_configs["preview_pretext"] = self.config.pretext.views
        return [self._draw_preview(views, folder / f"{name}.png") for name, views in augment_configs.items()]

    def _draw_preview(self, augment_config: AugmentConfig, path: Path) -> Path:
        batch = self.train_batch(0)
        images, labels = batch["inputs"][:PREVIEW_ROWS], batch["label"][:PREVIEW_ROWS]
        keys = [jax.random.fold_in(stream_key(self.config.seed, "train"), step) for step in range(PREVIEW_COLUMNS)]
        originals, augmented, names = self.augmented_examples(images, labels, keys, augment_config)
        values = {
            k: v for k, v in augment_config.to_dict().items() if v and (k != "magnitude" or augment_config.randaugment)
        }
        enabled = ", ".join(k if v is True else f"{k} {v:g}" for k, v in values.items())
        return draw_grid(originals, augmented, names, f"{self.name}: {enabled or 'no augmentation'}", path)

    def augmented_examples(
        self, images: Any, labels: Any, keys: Any, augment_config: AugmentConfig
    ) -> tuple[Any, Any, Any]:
        """Return images (N, H, W, C), their versions augmented with each key (M, N, H, W, C), and N captions."""
        augmented = np.stack([jax.jit(augment, static_argnums=2)(images, key, augment_config) for key in keys])
        return images, augmented, [self.classes[label] for label in labels]

    def export_weights(self, folder: Path, start: TrainState | None, end: TrainState, dtype: str) -> Path:
        """Write ``export/model.safetensors``, and ``export/delta.safetensors`` relative to the initial weights.

        Adapters are merged into the kernels of the former and kept separate in the latter.
        """
        spec, facts = self._exported_spec(), {name: self.facts[name] for name in ("data", "weights_sha256")}
        facts |= {"classes": self.classes, "step": int(end.step), "metrics": read_summary(folder).get("metrics", {})}
        adapter_config, trained = self.config.adapt, self._exported_variables(end)
        path = folder / "export" / formats.WEIGHTS_FILE
        merged = {**trained, "params": adapters.merge(trained["params"], adapter_config)}
        formats.save_native(path, merged, spec, facts, dtype)
        say_written(path)
        if self.facts["weights_sha256"] and start is not None:
            source = self.config.init.source
            leaves = delta.changed_leaves(self._exported_variables(start), trained)
            base_facts = {"source": source, "sha256": self.facts["weights_sha256"]}
            delta_path = folder / "export" / delta.DELTA_FILE
            delta.save_delta(
                delta_path, leaves, dataclasses.replace(spec, source=source), adapter_config, base_facts, facts
            )
            say_written(delta_path)
            warn_useless_delta(path, delta_path)
        return path

    def _exported_spec(self) -> PretrainedSpec:
        inputs, source = self.facts["input"], self.facts["spec"]
        return PretrainedSpec(
            model=self.config.model.name,
            source="tl_jax",
            options=source["options"],
            num_classes=source["num_classes"],
            image_size=inputs["size"],
            crop=inputs["crop"],
            interpolation=inputs["interpolation"],
            scaling=inputs["scaling"],
            licence=source["licence"],
        )

    def _exported_variables(self, state: TrainState) -> dict[str, Any]:
        """Return the variables without the heads that only training uses."""
        params = {name: leaves for name, leaves in state.params.items() if name not in ("extra", *self.unexported)}
        return {"params": params, "batch_stats": state.batch_stats}

    def bundle_variables(self, folder: Path) -> dict[str, Any]:
        net = pretrained.load(self.config.model.name, "tl_jax", folder)
        return check_variables(dict(net.variables), variable_shapes(self.network.model), folder)

    def bundle_contents(self, folder: Path, step: int) -> BundleContents:
        path = folder / formats.WEIGHTS_FILE
        net, classes, config = (
            pretrained.load(self.config.model.name, "tl_jax", path),
            formats.class_names(path),
            self.config,
        )
        summary = read_summary(folder.parent)
        calibration = summary.get("calibration", {}) if summary.get("tested_step") == step else {}  # of these weights
        temperature = calibration.get("temperature", 1.0)
        origin = config.init.layout if config.init.source == "random" else config.init.source
        framework = frameworks.write_weights(folder, net, origin, self.program_output == "embeddings", classes)
        limits = read_facts(folder.parent).get("value_range", ())
        preprocessing = model_card.describe_image_input(net.spec, config.data.fit, limits)
        files = {formats.WEIGHTS_FILE: "weights of tl_jax, with the facts to build the network"}
        loaders = model_card.image_loader(net.spec.model, net.spec.image_size)
        if framework.file:
            files[framework.file] = framework.description
            loaders[framework.description] = model_card.Loader(framework.code, preprocessing["words"])
        facts = {"classes": list(classes), "spec": net.spec.to_dict(), "preprocessing": preprocessing}
        notes = (framework.reason,) if framework.reason else ()
        if self.program_output == "features":
            notes += ("This is the network below the detection head, for fine-tuning; load the run to detect objects.",)
        if temperature != 1.0:
            facts["temperature"] = temperature
            bound = f" ({words})" if (words := describe_bound(temperature)) else ""
            note = f"Logits are divided by {temperature:.4g}, the temperature of the calibration{bound}, in"
            notes += (f"{note} model.stablehlo alone.",)
        program = stablehlo.image_program(net, self.program_output, temperature)
        return BundleContents(program, facts, net.spec.licence, files, loaders, notes)


MAX_DELTA_SHARE = 0.95  # a delta above this fraction of the full file is not worthwhile


def warn_useless_delta(full: Path, changes: Path) -> None:
    """Warn if a delta file is about as large as the full weights."""
    full_size, size = full.stat().st_size, changes.stat().st_size
    if full_size * MAX_DELTA_SHARE <= size:
        say(
            f"{changes.name} saves nothing ({size / 1e6:.2f} MB, {full.name} {full_size / 1e6:.2f} MB): "
            "training changed nearly every value; distribute the full weights"
        )


def no_images(record: RunRecord) -> tuple[np.ndarray, np.ndarray]:
    """Return empty images uint8 (0, H, W, 3), of the size that the run stores, and labels int32 (0,)."""
    return np.zeros((0, *record.facts.get("input_shape", (0, 0)), 3), np.uint8), np.zeros(0, np.int32)


def load_inputs(config: ImageRunConfig, record: RunRecord) -> tuple[Pretrained | None, Inputs]:
    """Return the pretrained network of ``config`` (None for random initialization), and its input spec."""
    random_init = config.init.source == "random"
    # Before the data are read, so wrong weights fail at once.
    net = None if random_init else load_network(config) if record.reads_weights else build_network(config, record.facts)
    spec = net.spec if net else pretrained.spec_of(config.model.name, config.init.layout)
    inputs = Inputs(
        net.model.channels if net else config.model.channels,
        config.input.size or spec.image_size,
        config.input.crop,
        config.input.interpolation or spec.interpolation,
        spec.scaling if config.input.scaling == "spec" else config.input.scaling,
    )
    return net, inputs


def usual_size(config: ImageRunConfig) -> int:
    """Return the default input side in pixels, used if the weights define none."""
    if config.input.size:
        return config.input.size
    model, init = config.model.name, config.init
    sources = (init.source, init.layout, *known_sources(model))
    published = (source for source in sources if (model, source) in CATALOG)
    return pretrained.spec_of(model, next(published, "tl_jax")).image_size


def task_facts(net: Pretrained, inputs: Inputs, source: Dataset, splits: Mapping[str, Split]) -> dict[str, Any]:
    """Return the facts about weights and data that evaluation, export and reports of a run need."""
    return {
        "weights": str(net.path or "random"),
        "weights_sha256": net.sha256,
        "data": source.name,
        "tested": source.test_origin,
        "input": inputs._asdict(),
        **source.facts(),
        "new_head": net.new_head,
        "spec": net.spec.to_dict(),
        "input_shape": list(splits["train"].inputs.shape[1:3]),
    }


def check_norms(config: ImageRunConfig, net: Pretrained) -> None:
    """Raise UserError if options of norms are used with a network that has none of their kind."""
    recipes = {config.freeze.recipe, *(phase.recipe for phase in config.phases)}
    modes = {config.freeze.batch_stats, *(phase.batch_stats or "auto" for phase in config.phases)}
    shapes, name = variable_shapes(net.model), config.model.name
    if (config.regularize.stochastic_norm or modes != {"auto"}) and "batch_stats" not in shapes:
        raise UserError(
            f"{name} has no BatchNorm: config.freeze.batch_stats and regularize.stochastic_norm have no effect; omit "
            "them, or choose another network"
        )
    pattern = freeze.RECIPES["norm_only"][1][0]
    if "norm_only" in recipes and not any(re.fullmatch(pattern, path) for path in tree.flatten(shapes["params"])):
        raise UserError(f"{name} has no norms: config.freeze.recipe=norm_only trains nothing; choose another recipe")


def init_variables(
    config: ImageRunConfig,
    net: Pretrained,
    feature_cache: ImageFeatureCache,
    regularize: RegularizeConfig,
    pretext: ImagePretextConfig | None,
    key: jax.Array,
) -> dict[str, Any]:
    """Return the initial variables; leaves that are neither loaded nor fitted are sampled with ``key``."""
    variables = head_init.network_variables(net, key)
    network, splits, size = feature_cache.network, feature_cache.splits, config.eval_batch_size
    bare, train = network._replace(adapters=AdapterConfig()), splits["train"]  # new adapters change nothing
    has_examples = len(train.labels) > 0  # else only the structure is needed, for a checkpoint
    fits_head = has_examples and config.init.head in probe_strength.PROBES
    if fits_head or (has_examples and regularize.strength("delta")):
        kind = config.init.head if fits_head else "logistic"
        strength = config.init.strength if fits_head else 1.0
        folds, seed = config.init.folds, config.seed - config.member  # the same for all networks of an ensemble
        probe = head_init.Probe(kind, strength, splits, feature_cache.features, folds, seed)
        fitted = head_init.with_probe(variables, probe)
        variables = fitted if fits_head else variables
    if fits_head and config.init.start_loss and config.trains:
        start_head = head_init.weaker_head(config.init, train, feature_cache.features, variables)
        variables = {**variables, "start_head": start_head}
    attention = (
        head_init.channel_weights(bare, fitted, regularize.endpoints, train, size)
        if has_examples and regularize.strength("delta")
        else None
    )
    width = head_init.feature_width(bare, variables, train) if pretext or regularize.strength("co_tuning") else 0
    source_head = load_source_head(config, width) if regularize.strength("co_tuning") else None
    relation = (
        head_init.class_relation(feature_cache.features, variables, source_head, train)
        if has_examples and regularize.strength("co_tuning")
        else None
    )
    source_collection = head_init.source_collection(regularize, variables, attention=attention, relation=relation)
    variables = head_init.with_adapters(variables, network.adapters, jax.random.fold_in(key, 1))
    variables = head_init.with_extras(variables, width, pretext, source_head, jax.random.fold_in(key, 2))
    return {**variables, **({"source": source_collection} if source_collection else {})}


def make_regularize(config: ImageRunConfig, net: Pretrained) -> RegularizeConfig:
    """Return the penalties of ``config``; dropout and stochastic depth are model attributes."""
    regularize = config.regularize
    if not regularize.compares_maps:
        return regularize
    endpoints = head_init.check_endpoints(regularize.endpoints, net.model.stage_names())
    return dataclasses.replace(regularize, endpoints=endpoints)
