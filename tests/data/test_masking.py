"""Words to guess: how many are hidden, which never are, and what stands in their place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.text import write_vocabulary
from tl_jax.data import tokenize
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
HOW = tokenize.Masking(0.15, mask_id=4, vocab_size=1000, special_ids=(0, 1, 2, 3, 4))


def drawn(n=400, length=40):
    ids = np.random.default_rng(0).integers(5, 1000, (n, length)).astype(np.int32)
    there = (np.arange(length)[None] < np.linspace(3, length, n).astype(int)[:, None]).astype(np.int32)
    ids[:, 0] = 2
    ids[np.arange(n), there.sum(1) - 1] = 3
    return np.where(there, ids, 0), there


def test_a_share_of_each_text_is_hidden_in_three_ways():
    ids, there = drawn()
    hidden = jax.jit(tokenize.mask_tokens, static_argnums=3)(ids, there, jax.random.key(0), HOW)
    words = np.maximum(1, np.round(0.15 * (there.sum(1) - 2)))
    np.testing.assert_array_equal(hidden.weights.sum(1), words)
    old = np.take_along_axis(ids, np.asarray(hidden.positions), 1)[np.asarray(hidden.weights) > 0]
    new = np.take_along_axis(np.asarray(hidden.ids), np.asarray(hidden.positions), 1)[np.asarray(hidden.weights) > 0]
    assert not np.isin(old, HOW.special_ids).any()
    shares = [(new == HOW.mask_id).mean(), (new == old).mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1], atol=0.04)  # of 1,280; a deviation is at most 0.012
    changed = np.asarray(hidden.ids) != ids
    assert changed.sum() == (new != old).sum()  # nothing else changes


def test_positions_of_a_text_are_different_ones():
    ids, there = drawn()
    hidden = tokenize.mask_tokens(jnp.asarray(ids), there, jax.random.key(1), HOW)
    assert all(len(set(row)) == len(row) for row in np.asarray(hidden.positions))


def test_a_text_without_words_has_nothing_to_guess():
    ids = np.array([[2, 3, 0, 0], [2, 7, 3, 0]], np.int32)
    hidden = tokenize.mask_tokens(ids, ids > 0, jax.random.key(0), HOW)
    np.testing.assert_array_equal(hidden.weights.sum(1), [0, 1])
    assert int(hidden.positions[1, 0]) == 1
    np.testing.assert_array_equal(hidden.ids[0], ids[0])


def test_special_tokens_are_those_of_the_tokenizer(tmp_path):
    write_vocabulary(tmp_path)
    made = tokenize.read_tokenizer(tmp_path)
    how = tokenize.make_masking(made, 0.15)
    assert how.special_ids == (0, 1, 2, 3, 4) and made.id_to_token(how.mask_id) == "[MASK]"
    lines = (tmp_path / "vocab.txt").read_text().replace("[MASK]\n", "")
    (tmp_path / "vocab.txt").write_text(lines)
    with pytest.raises(UserError, match=r"no \[MASK\]"):
        tokenize.make_masking(tokenize.read_tokenizer(tmp_path), 0.15)
