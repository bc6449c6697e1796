"""Where training starts: loaded or drawn weights, a head fitted to features, adapters, and what penalties remember."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tl_jax.data import dataset, loader
from tl_jax.data.dataset import Dataset, Split
from tl_jax.pretrained.network import Pretrained, init_new_leaves, initializer
from tl_jax.tasks.losses import Network
from tl_jax.tasks.probe_strength import STRENGTHS, choose_strength, make_folds, start_strength
from tl_jax.train.logging import say
from tl_jax.transfer import adapters, regularizers, self_supervised
from tl_jax.transfer.regularizers import RegularizeConfig
from tl_jax.transfer.self_supervised import ImagePretextConfig
from tl_jax.utils.errors import UserError

if TYPE_CHECKING:
    from tl_jax.data.tokenize import TokenizedTexts
    from tl_jax.transferability.probes import LinearProbe

Features = Callable[[Any, Any], np.ndarray]  # (variables, N pictures, or texts) -> (N, D)
ATTENTION_EXAMPLES = 256  # that DELTA's weights of channels are estimated from, at most


def split_data(config: Any, source: Dataset) -> dict[str, Split]:
    """Return the parts ``train``, ``validation`` and ``test`` that ``config.data`` asks for.

    A validation part that the set brings along is used as it is. With a pretext there is also ``unlabelled``: the
    whole of what ``train`` is drawn from, whose labels nobody reads.

    All networks of an ensemble have the parts of the first one, so that none is trained on what the others are
    validated on.
    """
    data, seed = config.data, config.seed - config.member
    pool, validation = source.train, source.validation
    if validation is None or not data.validation:
        pool, validation = dataset.split_validation(source.train, data.validation, seed, source.classes)
    train = dataset.subsample_train(pool, data.train_examples, data.per_class, len(source.classes), seed)
    splits = {"train": train, "validation": validation, "test": dataset.subsample_test(source.test, data.test_examples)}
    return splits | ({"unlabelled": pool} if config.pretext.name else {})


def check_classes(config: Any, source: Dataset) -> int:
    """Return the number of classes of the data, or a UserError where ``config`` names another."""
    classes = config.model.num_classes or len(source.classes)
    if classes != len(source.classes):
        raise UserError(
            f"config.model.num_classes={classes}, but {source.name} has {len(source.classes)} classes; "
            "leave it at 0 to take the number from the data"
        )
    return classes


def network_variables(net: Pretrained, key: jax.Array) -> dict[str, Any]:
    """Return the network's variables; what was not loaded is drawn from ``key``."""
    variables = initializer(net.model)(key) if net.path is None else init_new_leaves(net, key)
    return {"params": dict(variables["params"]), "batch_stats": dict(variables.get("batch_stats", {}))}


class Probe:
    """The head as a linear classifier fitted to the features of the training part, as they are before any training."""

    def __init__(
        self,
        kind: str,
        strength: float,
        splits: "Mapping[str, Split] | Mapping[str, TokenizedTexts]",
        features: Features,
        folds: int = 0,
        seed: int = 0,
    ):
        """``kind`` is one of ``PROBES``; a ``strength`` of 0 is replaced by the best one.

        That is the best on ``folds`` of the training part, drawn with ``seed``; with 0, or a class of fewer examples,
        the best on the part "validation".
        """
        self.kind, self.strength, self.splits, self.features = kind, strength, splits, features
        self.folds, self.seed = folds, seed

    def fit(self, variables: Any) -> "LinearProbe":
        """Fit the probe to the features of the variables."""
        x, y = self._examples(variables, "train")
        from tl_jax.transferability import probes  # with all distances, which take two seconds to import

        fit_probe = {"logistic": probes.logistic_probe, "ridge": probes.ridge_probe}[self.kind]
        pool = self.splits["train"]
        if not self.strength and self.folds and (folds := make_folds(pool, y.max() + 1, self.seed, self.folds)):
            best, score = choose_strength(x, y, folds, kind=self.kind)
            say(f"{self.kind} probe: C = {best:g}, accuracy {score.accuracy:.4f} in {len(folds)} folds")
            return fit_probe(x, y, best)
        if self.strength or not len(self.splits["validation"].labels):
            return fit_probe(x, y, self.strength or 1.0)
        held_out = self._examples(variables, "validation")
        probes = {c: fit_probe(x, y, c) for c in STRENGTHS}
        scores = {c: probe.accuracy(*held_out) for c, probe in probes.items()}
        best = max(scores, key=lambda c: (scores[c], -c))  # of equals the one most regularised
        say(f"{self.kind} probe: C = {best:g} of {len(scores)}, validation accuracy {scores[best]:.4f}")
        return probes[best]

    def _examples(self, variables: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
        return self.features(variables, self.splits[split]), self.splits[split].labels


def with_probe(variables: Any, probe: Probe) -> dict[str, Any]:
    """Return the variables with the fitted probe as their head.

    Raises:
        UserError: the head does not sit on ``features``, or a class has no training example.
    """
    head = variables["params"]["head"]
    fitted = probe.fit(variables)
    if fitted.kernel.shape != head["kernel"].shape:
        raise UserError(
            f"config.init.head={probe.kind} gives a head {fitted.kernel.shape}, the network takes "
            f"{head['kernel'].shape}; each class needs a training example, and the head must sit on features (fc=False)"
        )
    # Its scale, which a penalty decides, is kept; where it came out tiny, fine-tuning needs longer.
    params = {**variables["params"], "head": {"kernel": fitted.kernel, "bias": fitted.bias}}
    return {**variables, "params": params}


def weaker_head(init: Any, split: "Split | TokenizedTexts", features: Features, variables: Any) -> dict[str, Any]:
    """Return the parameters of the head that fine-tuning starts from, see ``probe_strength.start_strength``."""
    from tl_jax.transferability import probes  # with all distances, which take two seconds to import

    x, y = features(variables, split), split.labels
    strength = start_strength(x, y, init.start_loss, init.head)
    say(f"fine-tuning starts from a head with C = {strength:g}")
    fitted = {"logistic": probes.logistic_probe, "ridge": probes.ridge_probe}[init.head](x, y, strength)
    return {**variables["params"]["head"], "kernel": fitted.kernel, "bias": fitted.bias}


def feature_width(net: Network, variables: Any, split: Split) -> int:
    """Return the number of features, which is not that of the head's inputs where hidden layers lie between."""
    example = jax.ShapeDtypeStruct((1, *split.inputs.shape[1:]), split.inputs.dtype)
    return jax.eval_shape(net.predict, variables, example)[1]["features"].shape[-1]


def with_extras(
    variables: Any, dims: int, pretext: ImagePretextConfig | None, source_head: Any, key: jax.Array
) -> dict[str, Any]:
    """Return the variables with the further heads on ``dims`` features, under ``extra`` in the parameters."""
    extra = {"pretext": self_supervised.init_heads(pretext, dims, key)} if pretext else {}
    extra |= {"source_head": source_head} if source_head is not None else {}
    return {**variables, "params": {**variables["params"], **({"extra": extra} if extra else {})}}


def class_relation(features: Features, variables: Any, source_head: Any, split: Split) -> jax.Array:
    """Return p(source class | target class) (K, Z) as the source's head sees the training part."""
    probs = jax.nn.softmax(features(variables, split) @ source_head["kernel"] + source_head["bias"][None])
    classes = variables["params"]["head"]["bias"].shape[0]
    return regularizers.category_relation(probs, jnp.asarray(split.labels), classes)


def channel_weights(
    net: Network, variables: Any, names: tuple[str, ...], split: Split, batch_size: int
) -> dict[str, Any]:
    """Return DELTA's weights of channels (C,) for each endpoint of ``names``; the head must have been fitted."""
    gradients = _make_map_gradients(net, names)
    rises: dict[str, list[jax.Array]] = {name: [] for name in names}
    for batch in loader.eval_batches(_random_subset(split, ATTENTION_EXAMPLES), batch_size):
        mask = batch["mask"] > 0
        maps, grads = gradients(variables, batch)
        for name in names:
            rises[name].append(regularizers.first_order_drops(maps[name][mask], grads[name][mask]) * mask.sum())
    sums = {name: cast(jax.Array, sum(rows)) for name, rows in rises.items()}  # of one batch at least
    return {name: regularizers.channel_attention(_standardize(total)) for name, total in sums.items()}


def source_collection(regularize: RegularizeConfig, variables: Any, **estimates: Any) -> dict[str, Any]:
    """Return the collection "source" of the variables: what penalties remember of the start."""
    collection = {name: variables[name] for name in ("params", "batch_stats")} if regularize.needs_source else {}
    return collection | {name: value for name, value in estimates.items() if value is not None}


def with_adapters(variables: Any, config: adapters.AdapterConfig, key: jax.Array) -> dict[str, Any]:
    """Return the variables with adapters beside the kernels."""
    return {**variables, "params": adapters.add(variables["params"], config, key)}


def _random_subset(split: Split, n: int) -> Split:
    rows = np.random.default_rng(0).permutation(len(split.labels))[:n]
    return dataset.select_rows(split, rows)


def _standardize(rises: jax.Array) -> jax.Array:
    """Bring rises to mean 0 and deviation 1/5, as DELTA's published code does: the softmax is near equal otherwise."""
    return (rises - rises.mean()) / jnp.maximum(rises.std(), 1e-12) / 5


@functools.cache
def _make_map_gradients(net: Network, names: tuple[str, ...]):
    """Return the jitted function (variables, batch) -> maps and gradients of each example's loss, by endpoint."""

    def run(variables, batch, offsets):
        def intercept(call, args, kwargs, context):
            out = call(*args, **kwargs)
            name = "/".join(context.module.path)
            return out + offsets[name] if name in offsets and context.method_name == "__call__" else out

        with nn.intercept_methods(intercept):
            logits, endpoints = net.predict(variables, batch["inputs"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.sum(), {name: endpoints[name] for name in names}

    @jax.jit
    def gradients(variables, batch):
        shapes = jax.eval_shape(lambda: run(variables, batch, {})[1])
        zeros = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
        grads, maps = jax.grad(run, argnums=2, has_aux=True)(variables, batch, zeros)
        return maps, grads

    return gradients


def check_endpoints(names: tuple[str, ...], stages: tuple[str, ...]) -> tuple[str, ...]:
    """Return the endpoints whose maps are compared, by default the last two parts.

    Raises:
        UserError: a name that is no part of the network.
    """
    unknown = [name for name in names if name not in stages]
    if unknown:
        raise UserError(f"config.regularize.endpoints has {unknown[0]!r}, which is none of {', '.join(stages)}")
    return tuple(names) or stages[-2:]


def model_attributes(config: Any) -> dict[str, Any]:
    """Return the attributes of the model that ``config`` sets."""
    return dict(config.model.options)
