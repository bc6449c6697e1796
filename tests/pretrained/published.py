"""Facts of published weights that a test replaces by its own."""

from tl_jax.models.registry import MODELS, PretrainedSpec


def replace_spec(spec: PretrainedSpec, monkeypatch=None) -> None:
    """Put a spec in place of the one of its network and source, until the end of the test that monkeypatches."""
    if monkeypatch:
        monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    entry = MODELS[spec.model]
    others = [other for other in entry.weights if other.source != spec.source]
    MODELS.add(spec.model, entry._replace(weights=(spec, *others)), MODELS.module(spec.model))
