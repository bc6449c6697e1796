"""How far a source is from a target, and how well features serve a task: pure functions of features and labels."""

from tl_jax.distance.probes import logistic_probe

__all__ = ["logistic_probe"]
