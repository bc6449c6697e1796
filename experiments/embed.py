r"""Turn a finished run into weights that ship with the package, with a model card beside them.

python -m experiments.embed --workdir=RUN --name=resnet8_cifar10 --data="what the network saw" \
        --date=YYYY-MM-DD --commit=HASH
"""

from pathlib import Path

from absl import flags, logging

from experiments import model_card
from tl_jax.config import stored
from tl_jax.utils import command

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
NAME = flags.DEFINE_string("name", None, "Name of the file, without suffix.", required=True)
DATA = flags.DEFINE_string("data", None, "What the network was trained on, in words.", required=True)
DATE = flags.DEFINE_string("date", None, "Day of the run, YYYY-MM-DD.", required=True)
COMMIT = flags.DEFINE_string("commit", None, "Commit that the run was made at.", required=True)


def main(_: list[str]) -> None:
    """Embed one run."""
    logging.set_verbosity(logging.WARNING)
    config = stored.get_config(WORKDIR.value).name
    command_line = f"python run.py --config=configs/{config}.py --workdir=RUN ..., then python -m experiments.embed"
    model_card.embed_weights(
        Path(WORKDIR.value), model_card.Card(NAME.value, DATA.value, DATE.value, COMMIT.value), command_line
    )


if __name__ == "__main__":
    command.run(main)
