"""BERT on AG News: which of four sections is a piece of news from?

    python run.py --config=configs/agnews_bert.py --config.data.dir=FOLDER
    python run.py --config=configs/agnews_bert.py:smoke       seconds, no download: that it runs

FOLDER holds train.csv and test.csv, class, title and description in a line, without names of columns; it may be a
single file, of which a fifth is then for testing. For TFDS' set take --config.data.name=ag_news_subset
--config.data.text="('title','description')" --config.data.label=label. Title and description are a pair of texts.
``--config.init.path=PATH`` takes any BERT, a folder or a repository of the hub; the default is BERT base.
"""

from tl_jax.config import recipe
from tl_jax.transfer import methods


def get_config(variant: str = "") -> recipe.Config:
    """Return the recipe, or one of its variants."""
    config = recipe.get_config("text")
    config.name = "agnews_bert"
    recipe.fine_tuning_text(config)
    config.data.name = "csv"
    config.data.columns = ("class", "title", "description")
    config.data.text = ("title", "description")
    config.data.label = "class"
    config.input.max_length = 128
    return recipe.variants(config, variant, smoke=recipe.smoke_text, **methods.METHODS)
