"""ResNet50 at 224 pixels and BERT-base at 128 tokens in bfloat16 on a GPU, beside PyTorch compiled, in turns.

    python -m experiments.benchmarks.gpu --results=FILE.json

The flags are those of ``networks``, whose measuring it does with what suits a GPU. Needs JAX, PyTorch and transformers
for CUDA; each peer has its own process, and JAX takes memory as it needs it, so that all fit.
"""

import os

from absl import flags

from experiments.benchmarks import networks
from tl_jax.utils import command

if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    flags.FLAGS.set_default("cases", ["resnet50:224:256", "bert_base:128:128"])
    flags.FLAGS.set_default("peers", ["torch", "torch_compile"])
    flags.FLAGS.set_default("dtype", "bfloat16")
    flags.FLAGS.set_default("results", "experiments/results/benchmarks/gpu.json")
    command.run(networks.main)
