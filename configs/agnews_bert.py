"""Fine-tune BERT on AG News: classify news into four sections.

    python run.py --config=configs/agnews_bert.py --config.data.dir=FOLDER
    python run.py --config=configs/agnews_bert.py:smoke       smoke test, seconds, no download

FOLDER holds train.csv and test.csv with class, title and description per line, without a header. A single file also
works; a fifth of it is then the test split. For the TFDS dataset pass --config.data.name=ag_news_subset
--config.data.text="('title','description')" --config.data.label=label. Title and description are a pair of texts.
``--config.init.path=PATH`` accepts any BERT, as a folder or hub repository; the default is BERT base.
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
