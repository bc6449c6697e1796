"""Batches of texts: every text once an epoch, like with like, filled up and masked, and labels on first tokens."""

import numpy as np
import pytest

from tests.text import write_vocabulary
from tl_jax.data import tokenize
from tl_jax.data.tokenize import IGNORED, TextStream, TokenizedTexts

pytestmark = pytest.mark.fast


def data(n=103, longest=60, seed=0):
    lengths = np.random.default_rng(seed).integers(2, longest, n)
    ids, types = np.empty(n, object), np.empty(n, object)
    ids[:] = [np.full(length, i + 1, np.int32) for i, length in enumerate(lengths)]
    types[:] = [np.zeros(length, np.int32) for length in lengths]
    return TokenizedTexts(ids, types, np.arange(n, dtype=np.int32), pad=0)


@pytest.mark.parametrize(("n", "size"), [(103, 8), (64, 8), (5, 8), (1, 4), (997, 16)])
def test_every_text_comes_once_an_epoch(n, size):
    stream = TextStream(data(n), 3, size)
    seen = np.concatenate([stream.rows(step) for step in range(-(-3 * n // size))])
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert n == 1 or (seen[:n] != seen[n : 2 * n]).any()


def test_a_batch_is_a_function_of_seed_and_step():
    one, other = TextStream(data(), 3, 8), TextStream(data(), 3, 8)
    rows = [one.rows(step) for step in range(60)]
    for step in (59, 3, 40, 12):  # in another order
        np.testing.assert_array_equal(other.rows(step), rows[step])
    assert (TextStream(data(), 4, 8).rows(0) != rows[0]).any()


def test_batches_hold_texts_of_like_length():
    many = data(4000)
    stream, lengths = TextStream(many, 0, 16), many.lengths
    steps = [stream.rows(step) for step in range(250)]
    filled = np.mean([lengths[rows].mean() / lengths[rows].max() for rows in steps])
    assert filled > 0.95  # 0.53 in random batches
    means = [lengths[rows].mean() for rows in steps]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # and do not come by length


def test_filling_up():
    texts = data(10)
    batch = texts.batch(np.array([0, 3]), np.array([True, False]))
    longest = max(len(texts.ids[0]), len(texts.ids[3]))
    length = batch["input_ids"].shape[1]
    assert length in tokenize.BATCH_LENGTHS and length >= longest
    for i, row in enumerate((0, 3)):
        size = len(texts.ids[row])
        assert batch["attention_mask"][i].sum() == size and (batch["input_ids"][i, :size] == row + 1).all()
        assert not batch["input_ids"][i, size:].any()
    np.testing.assert_array_equal(batch["mask"], [1, 0])
    np.testing.assert_array_equal(batch["label"], [0, 3])
    assert texts.batch(np.array([0]), np.ones(1), length=77)["input_ids"].shape == (1, 77)


def test_evaluation_sees_each_text_once():
    batches = list(tokenize.eval_batches(data(), 16))
    labels = np.concatenate([batch["label"][batch["mask"] > 0] for batch in batches])
    assert sorted(labels) == list(range(103)) and all(len(batch["label"]) == 16 for batch in batches)


def test_the_first_token_of_a_word_has_its_tag(tmp_path):
    write_vocabulary(tmp_path)
    made = tokenize.read_tokenizer(tmp_path)
    words = [["a", "film", "acting", "world"], ["badx"]]
    labels = np.empty(2, object)
    labels[:] = [np.array([0, 1, 2, 3], np.int32), np.array([4], np.int32)]
    found = tokenize.tokenized_texts(tokenize.encode_texts(made, words, 20), labels, 0)
    assert found.labels[0].tolist() == [IGNORED, 0, 1, 2, 3, IGNORED]
    pieces = [made.id_to_token(i) for i in found.ids[1]]
    assert pieces == ["[CLS]", "bad", "##x", "[SEP]"] and found.labels[1].tolist() == [IGNORED, 4, IGNORED, IGNORED]
    batch = found.batch(np.arange(2), np.ones(2))
    assert batch["label"].shape == batch["input_ids"].shape and (batch["label"][:, 6:] == IGNORED).all()
    assert tokenize.encode_texts(made, [["a"] * 30], 8)[0].ids.__len__() == 8
