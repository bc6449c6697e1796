"""Actor-critic network: two towers of dense layers, after a shared convolution for images."""

from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models.layers import Conv
from tl_jax.utils.errors import UserError, nearest

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu}


class PolicyOutput(NamedTuple):
    """Output of a policy for N observations.

    Attributes:
        scores: (N, A) logits of A discrete actions, or means of A continuous actions in units of half their range.
        log_std: (A,) log standard deviations of continuous actions; empty (0,) for discrete actions.
        value: (N,) expected discounted return.
    """

    scores: jax.Array
    log_std: jax.Array
    value: jax.Array


class Policy(nn.Module):
    """Actor and critic: observations (N, ...) -> (``PolicyOutput``, endpoints).

    The stages are ``conv1`` (for images (H, W, C); shared), ``layer1``, ``layer2``, ... with ``actor`` and ``critic``
    in each, and ``head`` with ``policy`` and ``value``. Endpoints are their outputs, with both towers concatenated, and
    ``features`` (N, D), the input of the policy head. Kernels are orthogonal with the gains of PPO's published runs
    (Huang et al. 2022, "The 37 implementation details of PPO", 2): sqrt(2), 0.01 for the policy head, and 1 for the
    value head.

    Attributes:
        actions: A.
        continuous: whether actions are continuous rather than discrete.
        widths: widths of the layers.
        channels: channels of the convolution.
        activation: name in ``ACTIVATIONS``; the convolution always uses relu.
    """

    actions: int
    continuous: bool = False
    widths: tuple[int, ...] = (64, 64)
    channels: int = 16
    activation: str = "tanh"

    if TYPE_CHECKING:  # missing in flax' types: modules are hashable, and ``apply`` returns what ``__call__`` returns

        def __hash__(self) -> int: ...

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[PolicyOutput, dict[str, jax.Array]]:
        if self.activation not in ACTIVATIONS:
            raise UserError(f"unknown activation {self.activation!r}; {nearest(self.activation, ACTIVATIONS)}")
        endpoints = {}
        if x.ndim == 4:
            # As in MinAtar's networks.
            options = {"padding": "valid", "use_bias": True, "kernel_init": nn.initializers.orthogonal(2**0.5)}
            x = endpoints["conv1"] = nn.relu(Conv(self.channels, 3, **options, name="conv1")(x))
        actor = critic = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths, start=1):
            actor, critic = TowerLayers(width, self.activation, name=f"layer{i}")(actor, critic)
            endpoints[f"layer{i}"] = jnp.concatenate([actor, critic], -1)
        endpoints["features"] = actor
        return Head(self.actions, self.continuous, name="head")(actor, critic), endpoints

    def stage_names(self, image_input: bool = False) -> tuple[str, ...]:
        """Return the names of the stages, input first, without the head."""
        return (*(["conv1"] if image_input else []), *(f"layer{i + 1}" for i in range(len(self.widths))))


class TowerLayers(nn.Module):
    """One layer of both towers."""

    width: int
    activation: str

    @nn.compact
    def __call__(self, actor: jax.Array, critic: jax.Array) -> tuple[jax.Array, jax.Array]:
        act = ACTIVATIONS[self.activation]
        actor = act(_dense(self.width, 2**0.5, "actor")(actor))
        return actor, act(_dense(self.width, 2**0.5, "critic")(critic))


class Head(nn.Module):
    """Action scores and value of the observation."""

    actions: int
    continuous: bool

    @nn.compact
    def __call__(self, actor: jax.Array, critic: jax.Array) -> PolicyOutput:
        scores = _dense(self.actions, 0.01, "policy")(actor)
        value = _dense(1, 1.0, "value")(critic)[:, 0]
        size = self.actions if self.continuous else 0
        log_std = self.param("log_std", nn.initializers.zeros_init(), (size,)) if size else jnp.zeros((0,))
        return PolicyOutput(scores, log_std, value)


def _dense(width: int, gain: float, name: str) -> nn.Dense:
    return nn.Dense(width, kernel_init=nn.initializers.orthogonal(gain), name=name)


def init_variables(policy: Policy, shape: tuple[int, ...], key: jax.Array) -> dict[str, Any]:
    """Initialize variables for observations of ``shape``."""
    return dict(policy.init(key, jnp.zeros((1, *shape))))
