"""Fine-tune a small BERT that ships with the package, on texts of installed libraries, without any download.

    python run.py --config=configs/docs_bert.py                 against the same network from scratch, minutes
    python run.py --config=configs/docs_bert.py:sections        another task, on which it is no better than scratch
    python run.py --config=configs/docs_bert.py:smoke           smoke test, seconds

The task is to find code names in 300 sentences of SciPy's documentation: words marked up as code, with the markup
removed. ``sections`` classifies the first paragraph of a docstring by subpackage, which single words reveal. The
network was pretrained with masked language modelling on the documentation of other libraries, never of SciPy (see
configs/masked_words.py and experiments/pretrain_sources.py).
"""

from tl_jax.config import recipe

SCRATCH = (("init.source", "random"),)


def get_config(variant: str = "") -> recipe.Config:
    """Return the recipe, or one of its variants."""
    config = recipe.get_config("text" if variant == "sections" else "tokens")
    config.name = "docs_bert"
    recipe.fine_tuning_text(config)
    config.init.source = "tl_jax"
    config.init.path = ""
    config.data.name = "docs_names"
    config.data.train_examples = 300
    config.epochs = 8.0
    config.save_every = 4.0
    config.optim.lr = 1e-3
    config.arms = (("pretrained", ()), ("scratch", SCRATCH))
    config.seeds = (0, 1, 2)
    return recipe.variants(config, variant, sections=sections, smoke=recipe.smoke_text)


def sections(config: recipe.Config) -> None:
    """Classify whole texts."""
    config.data.name = "docs"
    config.data.train_examples = 0
    with config.model.options.unlocked():
        config.model.options.pooling = "mean"  # the pretrained network has no pooler
    config.epochs = 6.0
    config.save_every = 1.0
