r"""Train the bank of small source networks that ships with the package, each with its model card.

    python -m experiments.pretrain_sources --data_dir=FOLDER --workdir=DIR [--sources=mnist,shapes]

FOLDER holds ``tfds`` (mnist), ``flowers``, ``faces_orl`` and ``ct_covid``. Finished runs are not repeated; the files go
to tl_jax/pretrained/embedded, as float16.
"""

import time
from pathlib import Path

from absl import flags, logging

from configs import source_small
from experiments import model_card, record
from tl_jax import api
from tl_jax.utils import command
from tl_jax.utils.errors import UserError, nearest

DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
SOURCES = flags.DEFINE_list("sources", list(source_small.SOURCES), "Which.")

# folder under --data_dir, and what the network saw
DATA = {
    "mnist": ("tfds", "the first 20,000 training pictures of MNIST"),
    "shapes": ("", "ten drawn shapes (tl_jax/data/synthetic.py)"),
    "flowers": ("flowers", "photos of five kinds of flowers, enlarged from about 32x32"),
    "faces": ("faces_orl", "the ORL (AT&T) faces of 40 people; credit to Olivetti Research Laboratory"),
    "ct": ("ct_covid", "CT slices with and without covid, figures of papers; not fit for any clinical conclusion"),
}


def main(_: list[str]) -> None:
    """Train and write what is still to be written."""
    logging.set_verbosity(logging.WARNING)
    for name in SOURCES.value:
        if name not in DATA:
            raise UserError(f"no source {name!r}; {nearest(name, DATA)}")
        folder, about = DATA[name]
        config, workdir = source_small.get_config(name), Path(WORKDIR.value) / name
        config.data.dir = str(Path(DATA_DIR.value) / folder) if folder else ""
        api.run(config, workdir)
        card = model_card.Card(f"resnet8_{name}", about, time.strftime("%Y-%m-%d"), record.commit())
        model_card.embed_weights(workdir, card, f"python -m experiments.pretrain_sources --sources={name} ...")


if __name__ == "__main__":
    command.run(main)
