"""Transfer learning in JAX: use on one task what a model learned on another, and measure how well it went and why."""

__version__ = "0.2.0"
