"""Pretrained networks: loaded from files and repositories, or randomly initialized."""

from tl_jax.pretrained.load import Pretrained, load, own_facts, random, read_foreign, spec_of

__all__ = ["Pretrained", "load", "own_facts", "random", "read_foreign", "spec_of"]
