"""Words to guess: some tokens of a text are hidden, and a network is asked for them (BERT, arXiv:1810.04805)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import tokenizers

from tl_jax.errors import UserError

HIDDEN, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stays as it is


class Masking(NamedTuple):
    """What is hidden, and how.

    Attributes:
        share: of a text's tokens.
        mask: id of the token that hides.
        vocabulary: ids below which a random one is drawn.
        special: ids that are never chosen.
    """

    share: float
    mask: int
    vocabulary: int
    special: tuple[int, ...]


class Hidden(NamedTuple):
    """Texts with hidden words.

    Attributes:
        ids: (N, L) int, changed where something is hidden.
        positions: (N, P) int, where something is.
        weights: (N, P) float, 1, or 0 where a text has fewer hidden words.
    """

    ids: jax.Array
    positions: jax.Array
    weights: jax.Array


def of(tokenizer: tokenizers.Tokenizer, share: float) -> Masking:
    """Return how the texts of a tokenizer are masked; a UserError where it has no [MASK]."""
    mask = tokenizer.token_to_id("[MASK]")
    if mask is None:
        raise UserError("the vocabulary has no [MASK], so that no words can be hidden; take another one")
    special = tuple(sorted(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special))
    return Masking(share, mask, tokenizer.get_vocab_size(), special)


def hide(ids: jax.Array, there: jax.Array, key: jax.Array, how: Masking) -> Hidden:
    """Choose tokens of each text; of these 80 % become [MASK], 10 % a random token, and 10 % stay.

    Of a text with any words one at least is chosen.

    Args:
        ids: (N, L) int.
        there: (N, L), 0 where a token is padding.
        key: of the draw.
        how: what is hidden.
    """
    ids, (draws, kinds, words) = jnp.asarray(ids), jax.random.split(key, 3)
    eligible = (there > 0) & ~jnp.isin(ids, jnp.asarray(how.special))
    most = max(1, round(how.share * ids.shape[1]))  # P: known beforehand, so that only these go through the head
    _, chosen = jax.lax.top_k(jnp.where(eligible, jax.random.uniform(draws, ids.shape), -1.0), most)
    count = eligible.sum(1, keepdims=True)
    wanted = jnp.minimum(jnp.maximum(1, jnp.round(how.share * count)), count)
    weights = (jnp.arange(most)[None] < wanted).astype(jnp.float32)
    kind = jax.random.uniform(kinds, chosen.shape)
    random = jax.random.randint(words, chosen.shape, 0, how.vocabulary)
    old = jnp.take_along_axis(ids, chosen, 1)
    new = jnp.where(kind < HIDDEN, how.mask, jnp.where(kind < HIDDEN + RANDOM, random, old))
    rows = jnp.arange(len(ids))[:, None]
    return Hidden(ids.at[rows, chosen].set(jnp.where(weights > 0, new, old)), chosen, weights)
