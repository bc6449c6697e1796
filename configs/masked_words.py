"""Train a BERT with masked language modelling on plain texts, as a source for other tasks.

    python run.py --config=configs/masked_words.py --config.data.name=lines --config.data.dir=FOLDER
    python run.py --config=configs/masked_words.py:small        from scratch, on texts of installed libraries
    python run.py --config=configs/masked_words.py:smoke        smoke test, seconds, no download
    python run.py --mode=export --workdir=RUN                   writes RUN/export, an --config.init.path for other tasks

FOLDER holds train.txt with one text per line, and optionally dev.txt and test.txt. By default BERT base continues
pretraining on them, which adapts it to such texts (arXiv:2004.10964). To start from scratch, make a vocabulary with
``python -m experiments.build_vocabulary``, and pass its folder as --config.init.path with --config.init.source=random.
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
    """Use the small embedded network (see experiments/pretrain_sources.py) with random initialization."""
    config.init.source = "random"
    config.init.path = ""
    with config.model.options.unlocked():
        config.model.options.pooling = "mean"  # a pooler would not be trained
    config.data.name = "docs_corpus"
    config.epochs = 10.0
    config.optim.lr = 1e-3
