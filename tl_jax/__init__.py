"""Transfer learning in JAX: take what a model learned on one task, use it on another, measure how well it went and why."""

__version__ = "0.1.0"
