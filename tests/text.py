"""Texts that tokenizers stumble over, and a small vocabulary for them."""

from pathlib import Path

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
