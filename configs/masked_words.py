"""A BERT learns to guess hidden words in plain texts, so that other tasks can start from it.

    python run.py --config=configs/masked_words.py --config.data.name=lines --config.data.dir=FOLDER
    python run.py --config=configs/masked_words.py:small        from scratch, on texts that every installation has
    python run.py --config=configs/masked_words.py:smoke        seconds, no download: that it runs
    python run.py --mode=export --workdir=RUN                   writes RUN/export, an --config.init.path for other tasks

FOLDER holds train.txt, a text in a line (also dev.txt and test.txt, where there are such). By default BERT base goes on
learning from them, which fits it to their kind of text (arXiv:2004.10964). To start from scratch, make a vocabulary
with ``python -m experiments.build_vocabulary`` and give its folder as --config.init.path with
--config.init.source=random.
"""

from tl_jax.config import recipe


def get_config(variant: str = "") -> recipe.Config:
    """Return the recipe, or one of its variants."""
    config = recipe.get_config("masked")
    config.name = "masked_words"
    recipe.fine_tuning_text(config)
    config.data.name = "lines"
    config.data.validation = 0.02
    config.log_every = 100
    return recipe.variants(config, variant, small=small, smoke=recipe.smoke_text)


def small(config: recipe.Config) -> None:
    """The network that ships with the package (see experiments/pretrain_sources.py), drawn at random."""
    config.init.source = "random"
    config.init.path = ""
    with config.model.options.unlocked():
        config.model.options.pooling = "mean"  # a pooler would learn nothing here
    config.data.name = "docs_corpus"
    config.epochs = 10.0
    config.optim.lr = 1e-3
