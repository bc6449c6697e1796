"""Base class of image networks: named stages with their outputs as endpoints, features, and a head."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models.layers import glorot_uniform
from tl_jax.models.ops.conv import dense_product
from tl_jax.models.ops.dropout import Dropout
from tl_jax.models.registry import PretrainedSpec
from tl_jax.utils.errors import UserError, nearest

FEATURES = "features"  # endpoint on which a new head sits
StageFactory = Callable[[], Callable[..., jax.Array]]  # returns the layers (x, train, *stage_inputs) -> x


class Adapter(nn.Module):
    """Bottleneck adapter, (N, ..., C) -> the same: x plus two linear layers with a ReLU between them.

    Houlsby et al. 2019, arXiv:1902.00751. The second is initialized to zero, so a new adapter changes nothing.
    """

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(nn.Dense(self.width, dtype=self.dtype, name="down")(x))
        zeros = nn.initializers.zeros_init()
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=zeros, name="up")(y)


class Backbone(nn.Module):
    """Image network, (N, H, W, C) float -> (logits (N, K), endpoints).

    Subclasses define ``named_stages``. Endpoints are the output of each stage, (N, H', W', D') or of transformers
    (N, L, D'), under the stage's name, and ``features`` (N, D), pooled from the last stage, see ``pool``.
    With ``num_classes=0`` there is no head and the first output is ``features``.

    Attributes:
        num_classes: K; 0 for no head.
        start: name of the stage whose output is the input, in place of images; "features" takes features (N, D).
        endpoint: name of the last stage; empty for the whole network.
        channels: number C of input channels.
        dropout: dropout rate of the features before the head.
        adapter: width of a bottleneck adapter after each stage; 0 for none.
        dtype: computation dtype; parameters and statistics are float32.
        layouts: layouts that the class supports (its option ``layout``).
        min_size: smallest side of an image in pixels.
    """

    num_classes: int
    start: str = ""
    endpoint: str = ""
    channels: int = 3
    dropout: float = 0.0
    adapter: int = 0
    dtype: Any = jnp.float32

    layouts: ClassVar[tuple[str, ...]] = ()
    min_size: ClassVar[int] = 1

    if TYPE_CHECKING:  # missing in flax' types: modules are hashable, and ``apply`` returns what ``__call__`` returns

        def __hash__(self) -> int: ...

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    @classmethod
    def adapt_spec(cls, spec: PretrainedSpec, leaves: Mapping[str, Any]) -> PretrainedSpec:
        """Return the facts of a file with what its converted arrays, by path, say of the network."""
        return spec

    def named_stages(self) -> Sequence[tuple[str, StageFactory]]:
        """Return the stages in order, each with its name, which is also that of its parameters."""
        raise NotImplementedError

    def stage_names(self) -> tuple[str, ...]:
        """Return the names of the network's stages, input first."""
        names = [name for name, _ in self.named_stages()]
        return tuple(names[: names.index(self.endpoint) + 1] if self.endpoint in names else names)

    def head_input(self) -> str:
        """Return the head's input: "features", or the name of a stage whose feature map it reads."""
        return FEATURES

    def prepare_input(self, x: jax.Array) -> jax.Array:
        """Convert the images to the input of the first stage."""
        return x

    def stage_inputs(self, x: jax.Array) -> tuple[Any, ...]:
        """Return further arguments of every stage, which depend on the shape of the network's input."""
        return ()

    def pool(self, x: jax.Array) -> jax.Array:
        """Return the features (N, D) of the last stage's output: the average of a map (N, H, W, D)."""
        return x.astype(jnp.float32).mean(axis=(1, 2))

    def map_stage(self) -> str:
        """Return the last stage that shows where in the image the features come from."""
        return self.stage_names()[-1]

    def to_map(self, x: jax.Array, size: Sequence[int] = ()) -> jax.Array:
        """Return a stage's output as a map (N, H', W', D), for images of ``size`` (H, W), or square ones."""
        return x

    def add_endpoints(self, endpoints: dict[str, jax.Array], train: bool) -> None:
        """Add further endpoints after all stages."""

    def classify(self, endpoints: dict[str, jax.Array], train: bool) -> jax.Array:
        """Return the logits (N, K)."""
        return self.dense_head(endpoints["features"], train)

    def dense_head(self, features: jax.Array, train: bool) -> jax.Array:
        """Return the logits (N, K) for features (N, D): dropout and one linear layer."""
        features = Dropout(self.dropout, name="head_dropout")(features, train)
        head = nn.Dense(self.num_classes, kernel_init=glorot_uniform, dot_general=dense_product, name="head")
        return head(features.astype(jnp.float32))

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Apply the network; ``train`` uses batch statistics and dropout (which needs the rng "dropout")."""
        endpoints = {self.start: x} if self.start else {}
        if self.start != FEATURES:
            endpoints[FEATURES] = self.pool(self._apply_stages(x, endpoints, train)).astype(jnp.float32)
        self.add_endpoints(endpoints, train)
        return self.classify(endpoints, train) if self.num_classes else endpoints[FEATURES], endpoints

    def _apply_stages(self, x: jax.Array, endpoints: dict[str, jax.Array], train: bool) -> jax.Array:
        """Apply the stages from ``start`` to ``endpoint``, add their outputs to ``endpoints``, and return the last."""
        stages = self.named_stages()
        names = [name for name, _ in stages]
        if self.endpoint and self.endpoint not in names:
            raise UserError(f"config.model.endpoint: unknown stage {self.endpoint!r}; {nearest(self.endpoint, names)}")
        first = names.index(self.start) + 1 if self.start else 0
        last = names.index(self.endpoint) + 1 if self.endpoint else len(stages)
        if not first:
            self._check_input(x)
            x = self.prepare_input(x)
        inputs = self.stage_inputs(x)
        for name, make_stage in stages[first:last]:
            x = make_stage()(x, train, *inputs)
            if self.adapter:
                x = Adapter(self.adapter, self.dtype, name=f"adapter_{name}")(x)
            endpoints[name] = x
        return x

    def _check_input(self, x: jax.Array) -> None:
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise UserError(
                f"images {tuple(x.shape)}: the network takes (N, H, W, {self.channels}); for another number of "
                "channels use pretrained.load(..., channels=C)"
            )
        if min(x.shape[1:3]) < self.min_size:
            raise UserError(
                f"images of {x.shape[1]}x{x.shape[2]} pixels are too small: this network needs at least "
                f"{self.min_size}x{self.min_size}; raise config.input.size"
            )
