"""Fine-tune BERT on your own texts; cross-validation chooses the trained layers and learning rate.

    python run.py --config=configs/texts.py --config.data.dir=FILE        a .csv file with the columns text and label
    python run.py --config=configs/texts.py:smoke                         smoke test, seconds, no download

Other columns: ``--config.data.text="('body',)" --config.data.label=topic``.
``--config.init.path=PATH`` accepts any BERT, as a folder or hub repository; the default is BERT base. A linear probe
is fitted first, then the last layers or all layers are trained if that is better on held-out texts; the run reports
its trials and the reason for its choice. In Python: ``tl_jax.fine_tune(FILE, weights=PATH)``.
"""

from tl_jax.config import recipe


def get_config(variant: str = "") -> recipe.Config:
    """Return the recipe, or its variant ``smoke``."""
    config = recipe.get_config("text")
    config.name = "texts"
    recipe.fine_tuning_text(config)
    config.method = "auto"
    config.data.name = "csv"
    config.min_steps = 200
    config.optim.schedule = "cosine"
    return recipe.variants(config, variant, smoke=recipe.smoke_text)
