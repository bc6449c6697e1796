"""BERT on SST-2: is a sentence of a film review positive?

    python run.py --config=configs/sst2_bert.py --config.data.dir=FOLDER
    python run.py --config=configs/sst2_bert.py:smoke       seconds, no download: that it runs

FOLDER holds train.tsv, dev.tsv and test.tsv, a sentence and its label (0 or 1) in a line, without names of columns.
``--config.init.path=PATH`` takes any BERT, a folder or a repository of the hub; the default is BERT base.
"""

from configs import base, mechanisms


def get_config(variant: str = "") -> base.Config:
    """Return the recipe, or one of its variants."""
    config = base.get_config()
    config.name = "sst2_bert"
    base.fine_tuning_text(config)
    config.data.name = "tsv"
    config.data.columns = ("sentence", "label")
    config.data.text = ("sentence",)
    config.input.length = 64
    return base.variants(config, variant, smoke=base.smoke_text, **mechanisms.MECHANISMS)
