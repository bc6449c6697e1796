"""ResNet50 at 224 pixels in bfloat16 on a GPU: tl_jax against PyTorch, compiled and channels last, in turns.

    python -m experiments.benchmarks.gpu --results=FILE.json

The flags are those of ``networks``, whose measuring it does with what suits a GPU. Needs JAX and PyTorch for CUDA; each
has its own process, and JAX takes memory as it needs it, so that both fit.
"""

import os

from absl import flags

from experiments.benchmarks import networks
from tl_jax import command

if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    flags.FLAGS.set_default("cases", ["resnet50:224:256"])
    flags.FLAGS.set_default("peers", ["torch", "torch_compile"])
    flags.FLAGS.set_default("dtype", "bfloat16")
    flags.FLAGS.set_default("results", "experiments/results/benchmarks/gpu.json")
    command.run(networks.main)
