"""Fine-tune BERT on SST-2: sentiment of film reviews.

    python run.py --config=configs/sst2_bert.py --config.data.dir=FOLDER
    python run.py --config=configs/sst2_bert.py:smoke       smoke test, seconds, no download

FOLDER holds train.tsv, dev.tsv and test.tsv with a sentence and its label (0 or 1) per line, without a header.
``--config.init.path=PATH`` accepts any BERT, as a folder or hub repository; the default is BERT base.
"""

from tl_jax.config import recipe
from tl_jax.transfer import methods


def get_config(variant: str = "") -> recipe.Config:
    """Return the recipe, or one of its variants."""
    config = recipe.get_config("text")
    config.name = "sst2_bert"
    recipe.fine_tuning_text(config)
    config.data.name = "tsv"
    config.data.columns = ("sentence", "label")
    config.data.text = ("sentence",)
    config.input.max_length = 64
    return recipe.variants(config, variant, smoke=recipe.smoke_text, **methods.METHODS)
