"""A small BERT that ships with the package, on texts that every installation has: nothing is downloaded.

    python run.py --config=configs/docs_bert.py                 against the same network from scratch, a few minutes
    python run.py --config=configs/docs_bert.py:names           finds names of code in sentences
    python run.py --config=configs/docs_bert.py:smoke           seconds: that it runs

The text is the first paragraph of a docstring of SciPy, the label the subpackage that it stands in. The network guessed
words in the documentation of other libraries before (see configs/masked_words.py), never in SciPy's.
"""

from configs import base

SCRATCH = (("init.source", "random"),)


def get_config(variant: str = "") -> base.Config:
    """Return the recipe, or one of its variants."""
    config = base.get_config()
    config.name = "docs_bert"
    base.fine_tuning_text(config)
    config.init.source = "tl_jax"
    config.init.path = ""
    config.data.name = "docs"
    with config.model.options.unlocked():
        config.model.options.pooling = "mean"  # that network came by no pooler of its own
    config.epochs = 6.0
    config.optim.lr = 1e-3
    config.arms = (("pretrained", ()), ("scratch", SCRATCH))
    return base.variants(config, variant, names=names, smoke=smoke)


def names(config: base.Config) -> None:
    """Tag the words that were set as code."""
    config.task = "tokens"
    config.data.name = "docs_names"


def smoke(config: base.Config) -> None:
    """Run both arms on 64 texts."""
    base.smoke_text(config)
