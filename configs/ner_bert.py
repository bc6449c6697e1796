"""Fine-tune BERT for named entity recognition, on any file of words and tags, such as CoNLL's.

    python run.py --config=configs/ner_bert.py --config.data.dir=FOLDER
    python run.py --config=configs/ner_bert.py:smoke       smoke test, seconds, no download
    python run.py --mode=predict --workdir=RUN --input="Ada Lovelace worked in London."

FOLDER holds train, dev (or valid) and test, with suffix .conll, .txt or none, or eng.train, eng.testa and eng.testb:
one word per line with its tag in the last column, and an empty line after each sentence. ``--config.init.path=PATH``
accepts any BERT, as a folder or hub repository; the default is cased BERT base.
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
