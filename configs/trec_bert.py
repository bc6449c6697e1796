"""BERT on TREC: what does a question ask for (six kinds)?

    python run.py --config=configs/trec_bert.py --config.data.dir=FOLDER
    python run.py --config=configs/trec_bert.py:smoke       seconds, no download: that it runs

FOLDER holds train.tsv and test.tsv, a label and a question in a line, without names of columns.
``--config.init.path=PATH`` takes any BERT, a folder or a repository of the hub; the default is BERT base.
"""

from tl_jax.config import recipe
from tl_jax.transfer import methods


def get_config(variant: str = "") -> recipe.Config:
    """Return the recipe, or one of its variants."""
    config = recipe.get_config("text")
    config.name = "trec_bert"
    recipe.fine_tuning_text(config)
    config.data.name = "tsv"
    config.data.columns = ("label", "question")
    config.data.text = ("question",)
    config.input.max_length = 64
    return recipe.variants(config, variant, smoke=recipe.smoke_text, **methods.METHODS)
