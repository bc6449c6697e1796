"""Tasks, one class per file, each registered under its ``config.task`` name."""

from tl_jax.tasks import (  # noqa: F401  # registers the task classes
    detection,
    face_verification,
    image_classification,
    masked_words,
    reinforcement,
    text_classification,
    token_classification,
)
