"""The tokenizer of a folder: whether capitals and accents matter."""

import json

import pytest

from tl_jax.data import tokenize
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def pieces(folder, words, text, config=None):
    """Return the tokens of a text with a vocabulary of ``words``."""
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n", encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenize.read_tokenizer(folder).encode(text).tokens[1:-1]


@pytest.mark.parametrize("config", [None, {}, {"model_max_length": 512}])
def test_a_vocabulary_with_capitals_keeps_them(tmp_path, config):
    assert pieces(tmp_path, ["Paris", "paris", "is", "Café", "cafe"], "Paris Café", config) == ["Paris", "Café"]


@pytest.mark.parametrize("config", [None, {}])
def test_a_vocabulary_without_capitals_takes_texts_in_lower_case(tmp_path, config):
    assert pieces(tmp_path, ["paris", "is", "cafe"], "Paris Café", config) == ["paris", "cafe"]


def test_the_tokenizer_config_decides_if_it_says_anything(tmp_path):
    assert pieces(tmp_path, ["Paris", "paris"], "Paris", {"do_lower_case": True}) == ["paris"]
    words = ["café", "cafe"]
    assert pieces(tmp_path, words, "Café", {"do_lower_case": True, "strip_accents": False}) == ["café"]


def test_a_tokenizer_config_that_is_no_object_is_named(tmp_path):
    with pytest.raises(UserError, match="tokenizer_config.json is damaged .no JSON object.; copy it again"):
        pieces(tmp_path, ["paris"], "Paris", [1])


def test_the_published_vocabulary_is_uncased(tmp_path, data_dir):
    words = (data_dir / "text" / "bert-base-uncased-vocab.txt").read_text(encoding="utf-8").split("\n")
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    assert tokenize.read_tokenizer(tmp_path).encode("Paris").tokens == ["[CLS]", "paris", "[SEP]"]
