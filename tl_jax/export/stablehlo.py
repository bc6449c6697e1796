"""Export of a trained network as a StableHLO program with its weights, which needs only JAX to run.

``jax.export`` guarantees that such a file runs with a jaxlib up to six months newer, or three weeks older, than the one
that wrote it (https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from tl_jax.data import preprocess
from tl_jax.data.tokenize import TOKEN_ARRAYS
from tl_jax.models.actor_critic import Policy
from tl_jax.models.backbone import FEATURES
from tl_jax.models.ops import conv
from tl_jax.pretrained.huggingface import TextNetwork
from tl_jax.pretrained.network import Pretrained
from tl_jax.rl.policy_transfer import SourcePolicy
from tl_jax.rl.rollout import normalize
from tl_jax.transfer.arcface import l2_normalize
from tl_jax.utils import disk, tree
from tl_jax.utils.extras import require_extra

PROGRAM_FILE = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


class Program(NamedTuple):
    """A function with its weights, inputs and output.

    Attributes:
        call: arrays in the order of ``inputs`` -> one array.
        inputs: name -> (shape, dtype); dimensions chosen by each call are letters: "n" examples, "l" tokens.
        output: name of the output.
        limits: limits of these dimensions, such as "l <= 512".
    """

    call: Callable[..., jax.Array]
    inputs: Mapping[str, tuple[tuple[int | str, ...], str]]
    output: str
    limits: tuple[str, ...] = ()


def image_program(net: Pretrained, output: str = "probabilities", temperature: float = 1.0) -> Program:
    """Return the program uint8 (N, size, size, C) -> ``output``.

    The images must have the size of the spec; the program includes all further preprocessing.

    Args:
        net: the network.
        output: "probabilities" (N, K), "embeddings" (N, E), L2-normalized, or "features" (N, D), the mean of the last
            map.
        temperature: fitted temperature of the probabilities.
    """

    def call(images: jax.Array) -> jax.Array:
        inputs = preprocess.scale(images, net.spec.scaling)
        logits, endpoints = net.model.apply(net.variables, inputs, train=False)
        if output == "features":
            return endpoints[FEATURES].astype(jnp.float32)
        logits = logits.astype(jnp.float32)
        return l2_normalize(logits) if output == "embeddings" else jax.nn.softmax(logits / temperature)

    side = net.spec.image_size
    return Program(call, {"images": (("n", side, side, net.model.channels), "uint8")}, output)


def text_program(net: TextNetwork) -> Program:
    """Return the program token ids, int32 (N, L) each -> probabilities.

    The probabilities are (N, K) for text classes, (N, L, K) for token classes, or (N, L, V) for words.
    """

    def call(*tokens: jax.Array) -> jax.Array:
        output = net.model.apply(net.variables, **dict(zip(TOKEN_ARRAYS, tokens, strict=True)), train=False)[0]
        return jax.nn.softmax(output.astype(jnp.float32)) if has_head else output

    has_head = bool(net.model.num_classes) or net.model.output == "masked"
    inputs = {name: (("n", "l"), "int32") for name in TOKEN_ARRAYS}
    return Program(call, inputs, "probabilities" if has_head else "features", (f"l <= {net.model.positions}",))


def policy_program(source: SourcePolicy) -> Program:
    """Return the program observations, float32 (N, ...) -> action logits (N, A), or action means (N, A).

    Observations are those of the environment; the program includes their normalization.
    """
    leaves = tree.unflatten({path: jnp.asarray(leaf) for path, leaf in source.leaves.items()})
    low = source.spaces.get("low", ())
    policy = Policy(source.spaces.get("actions") or len(low), bool(low), **source.options)
    statistics = leaves.get("batch_stats", {}).get("observations", {})

    def call(observations: jax.Array) -> jax.Array:
        return policy.apply({"params": leaves["params"]}, normalize(statistics, observations))[0].scores

    inputs = {"observations": (("n", *source.spaces["observation"]), "float32")}
    return Program(call, inputs, "means" if low else "logits")


def write_program(path: Path, program: Program) -> tuple[int | str, ...]:
    """Write a program for CPU, CUDA and TPU into one file, and return the shape of its output."""
    scope = export.SymbolicScope(program.limits)
    arguments = []
    for shape, dtype in program.inputs.values():
        sizes = export.symbolic_shape(", ".join(map(str, shape)), scope=scope)
        arguments.append(jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype)))
    with conv.xla_only():
        exported = export.export(jax.jit(program.call), platforms=PLATFORMS)(*arguments)
    disk.write_bytes(path, exported.serialize())
    return tuple(size if isinstance(size, int) else str(size) for size in exported.out_avals[0].shape)


def run_program(path: Path, *arrays: Any) -> jax.Array:
    """Return the output of a program for the given inputs."""
    check_serialization()
    return export.deserialize(bytearray(path.read_bytes())).call(*arrays)


def check_serialization() -> None:
    """Raise MissingExtra if FlatBuffers, the format of ``jax.export``, is not installed."""
    with require_extra("export"):
        import flatbuffers  # noqa: F401
