"""Tasks: one class a file, each registered under the name that ``config.task`` has."""

from tl_jax.tasks import (  # noqa: F401  # whose classes register themselves
    detection,
    face_verification,
    image_classification,
    masked_words,
    reinforcement,
    text_classification,
    token_classification,
)
