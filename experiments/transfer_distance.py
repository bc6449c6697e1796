"""Alias of ``python -m experiments.transferability.study``."""

from experiments.transferability.study import main
from tl_jax.utils import command

if __name__ == "__main__":
    command.run(main)
