"""BERT finds names in sentences: any file of words and tags, CoNLL's for one.

    python run.py --config=configs/ner_bert.py --config.data.dir=FOLDER
    python run.py --config=configs/ner_bert.py:smoke       seconds, no download: that it runs
    python run.py --mode=predict --workdir=RUN --input="Ada Lovelace worked in London."

FOLDER holds train, dev (or valid) and test, each with .conll, .txt or no ending, or eng.train, eng.testa and eng.testb:
a word in a line, its tag the last of the columns, an empty line behind each sentence. ``--config.init.path=PATH`` takes
any BERT, a folder or a repository of the hub; the default is BERT base with capitals.
"""

from tl_jax.config import recipe


def get_config(variant: str = "") -> recipe.Config:
    """Return the recipe, or one of its variants."""
    config = recipe.get_config("tokens")
    config.name = "ner_bert"
    recipe.fine_tuning_text(config)
    config.data.name = "conll"
    config.init.path = "google-bert/bert-base-cased"
    config.input.max_length = 128
    return recipe.variants(config, variant, smoke=recipe.smoke_text)
