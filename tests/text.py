"""Texts that tokenizers stumble over, and a small vocabulary for them."""

from pathlib import Path

import jax

from tl_jax import models
from tl_jax.data import tokenize
from tl_jax.pretrained import huggingface
from tl_jax.pretrained.huggingface import TextNetwork
from tl_jax.utils import tree

SIZES = {"width": 16, "depth": 2, "heads": 2, "hidden": 32, "positions": 40}
TEXTS = [
    "a film whose plot is as good as its acting .",
    "Café naïve résumé, Ångström",
    "你好 world",
    "so good 😀😀 !!!",
    "x" * 120,
    "",
    "\t bad\u00a0\u200bacting\r\n",
    "un##believ [MASK] [SEP] don't",
]


def write_vocabulary(folder: Path) -> None:
    """Write a ``vocab.txt`` with the words and letters of these texts, and pieces of words."""
    words = "a film whose plot is as good its acting the bad world cafe naive so don t un believ".split()
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789.,!'#[]你好😀")
    pieces = [f"##{letter}" for letter in letters] + ["##ing", "##believ", "##ve"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys([*special, *words, *letters, *pieces])) + "\n")


def network(folder, kind="bert", classes=0, **options):
    """Return a network with random weights and the small vocabulary."""
    write_vocabulary(folder)
    made = tokenize.read_tokenizer(folder)
    options = {**SIZES, "vocabulary": made.get_vocab_size(), **options}
    model = models.create(kind, classes, **options)
    variables = huggingface.initializer(model)(jax.random.key(0))
    leaves = {p: leaf + 0.1 * jax.random.normal(jax.random.key(i), leaf.shape)
              for i, (p, leaf) in enumerate(tree.flatten(variables).items())}  # fmt: skip
    names = tuple(f"class{i}" for i in range(classes))
    return TextNetwork(model, tree.unflatten(leaves), made, kind, names)
