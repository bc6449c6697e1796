"""Configurations for tests: those of a recipe with changes, for another kind of task too."""

from tl_jax.config import recipe


def change(config: recipe.Config, *changes: tuple[str, object]) -> recipe.Config:
    """Return a recipe's configuration with (field, value) pairs put in; "task" keeps the fields that the other has."""
    kind = dict(changes).get("task", config.task)
    config = config if kind == config.task else recipe.with_task(config, kind)
    return recipe.override(config, tuple(pair for pair in changes if pair[0] != "task"))
