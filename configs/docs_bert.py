"""A small BERT that ships with the package, on texts that every installation has: nothing is downloaded.

    python run.py --config=configs/docs_bert.py                 against the same network from scratch: minutes
    python run.py --config=configs/docs_bert.py:sections        another task, on which it is no better than scratch
    python run.py --config=configs/docs_bert.py:smoke           seconds: that it runs

It finds the names of code in 300 sentences of SciPy's documentation: the words that were set as code there, which the
texts no longer show. ``sections`` says which subpackage the first paragraph of a docstring is from; single words tell
that. The network guessed words in the documentation of other libraries before, never of SciPy (see
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
        config.model.options.pooling = "mean"  # that network came by no pooler of its own
    config.epochs = 6.0
    config.save_every = 1.0
