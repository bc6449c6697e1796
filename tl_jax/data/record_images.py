"""Encoded images inside records, as TFDS stores them: 8 bits, 16 bits, or floats hidden in four channels."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tl_jax.data import value_range
from tl_jax.data.decoding import DEFAULT, Decoding, decode_bytes, read_values
from tl_jax.data.pictures import kept
from tl_jax.errors import UserError


def decode(encoded: bytes, floats: bool = False, rules: Decoding = DEFAULT, name: str = "a record") -> np.ndarray:
    """Return an image uint8 (H, W, 3); grey is repeated into three channels.

    Args:
        encoded: JPEG or PNG.
        floats: whether the four channels of a PNG are the bytes of one float32, as in TFDS.
        rules: with the range of values, where they have more than 8 bits.
        name: for messages.
    """
    if not floats:
        return decode_bytes(encoded, name, rules)
    values, limits = _values(encoded, floats, rules, name), rules.value_range
    return np.repeat(value_range.to_bytes(values, limits or (0.0, 1.0)), 3, axis=-1)


def with_range(
    name: str, dtype: Any, files: list[str], encoded: Callable[[], Iterator[bytes]], count: int, rules: Decoding
) -> Decoding:
    """Return ``rules`` with the range of a set's images, if they have more than 8 bits: stated, or from end to end.

    Args:
        name: of the set.
        dtype: that the set declares.
        files: that hold the records.
        encoded: () -> all images.
        count: of these images.
        rules: how images become pixels.

    Raises:
        UserError: a range is stated and no image needs one, or an image cannot be decoded.
    """
    floats, stated = dtype == np.float32, rules.value_range
    first = _values(next(encoded()), floats, rules, name)
    if first.dtype == np.uint8:
        if stated:
            value_range.refuse_unused(name)
        return rules

    def ends() -> Iterator[np.ndarray]:
        values = (_values(each, floats, rules, name) for each in encoded())
        yield np.asarray([value_range.find(name, values)])

    if not stated:
        low, high = kept(files, "value range", (1, 2), np.float64, ends)[0].tolist()
        rules = rules._replace(value_range=(low, high))
    assert rules.value_range
    value_range.say(name, count, rules.value_range, bool(stated))
    return rules


def _values(encoded: bytes, floats: bool, rules: Decoding, name: str) -> np.ndarray:
    """Return the values of an image with all of their bits; ``floats`` are the channels of one each."""
    values = read_values(encoded, name, rules)
    if not floats:
        return values
    if values.dtype != np.uint8 or values.ndim != 3 or values.shape[-1] != 4:
        raise UserError(f"{name} has no floats, four channels of bytes each, as its data set says; prepare it again")
    return np.ascontiguousarray(values).view("<f4")
