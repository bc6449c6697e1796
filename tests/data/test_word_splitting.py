"""Words of typed sentences: those of the training data where these are typed, and sensible ones elsewhere."""

import pytest

from tl_jax.data import text, text_datasets
from tl_jax.data.word_splitting import Splitter, learn_splitter

pytestmark = pytest.mark.slow
CONLL = [
    "Use jax.numpy , or C++ , says Mr. Smith of the U.N. in Paris .".split(),
    "He did n't see Germany 's 1,000 St. Louis fans ( 20% ) .".split(),
    "It is n't \" 3.5 % \" , it is n't well-known : Berlin 's own , Rome 's too".split(),
]


def test_training_sentences_joined_by_blanks_have_the_words_of_training():
    splitter = learn_splitter(CONLL)
    for words in CONLL:
        assert splitter.words(" ".join(words)) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("He lives in Paris.", ["He", "lives", "in", "Paris", "."]),
        ('"Paris," he said; (really!)', ['"', "Paris", ",", '"', "he", "said", ";", "(", "really", "!", ")"]),
        ("use jax.random, not jax.numpy.", ["use", "jax.random", ",", "not", "jax.numpy", "."]),
        ("She didn't like Spain's U.K. tour", ["She", "did", "n't", "like", "Spain", "'s", "U.K.", "tour"]),
        ("2,000\u00a0fans\tof St. Louis", ["2,000", "fans", "of", "St.", "Louis"]),
    ],
)
def test_prose_is_split_as_conll_splits_it(text, words):
    splitter = learn_splitter(CONLL)
    assert splitter.words(text) == words
    assert [text[a:b] for a, b in splitter.spans(text)] == words


def test_a_blank_that_is_part_of_training_words_does_not_split():
    splitter = learn_splitter([["New\u00a0York", "is", "big"]])
    assert splitter.words("Los\u00a0Angeles is big") == ["Los\u00a0Angeles", "is", "big"]


def test_marks_that_split_everywhere_in_training_do_so_in_prose():
    splitter = learn_splitter([["scipy", ".", "stats", "has", "t_test"]] * 30)
    assert splitter.words("see jax.numpy._sum") == ["see", "jax", ".", "numpy", ".", "_sum"]


def test_chinese_characters_are_words_if_they_are_in_training():
    assert learn_splitter([list("我在北京")]).words("他在上海。") == list("他在上海") + ["。"]
    assert learn_splitter([["我", "在", "北京"]]).words("北京 在") == ["北京", "在"]


def test_without_training_words_all_marks_split():
    assert Splitter().words("jax.numpy, 它_a") == ["jax", ".", "numpy", ",", "它", "_", "a"]


def test_real_training_sentences_have_the_words_of_training(data_dir):
    for source in (
        text_datasets.load_docstrings("docs_names"),
        text.read_text_dataset(data_dir / "text" / "wikiann_en", "conll"),
    ):
        splitter = learn_splitter(source.train.inputs)
        same = [splitter.words(" ".join(words)) == words for words in source.train.inputs]
        assert all(same)
        same = [splitter.words(" ".join(words)) == words for words in source.test.inputs]
        assert sum(same) / len(same) > 0.95  # 57 % and 72 % with BERT's own pre-tokenizer
