"""BERT on TREC: what does a question ask for (six kinds)?

    python run.py --config=configs/trec_bert.py --config.data.dir=FOLDER
    python run.py --config=configs/trec_bert.py:smoke       seconds, no download: that it runs

FOLDER holds train.tsv and test.tsv, a label and a question in a line, without names of columns.
``--config.init.path=PATH`` takes any BERT, a folder or a repository of the hub; the default is BERT base.
"""

from configs import base, mechanisms


def get_config(variant: str = "") -> base.Config:
    """Return the recipe, or one of its variants."""
    config = base.get_config()
    config.name = "trec_bert"
    base.fine_tuning_text(config)
    config.data.name = "tsv"
    config.data.columns = ("label", "question")
    config.data.text = ("question",)
    config.input.length = 64
    return base.variants(config, variant, smoke=base.smoke_text, **mechanisms.MECHANISMS)
