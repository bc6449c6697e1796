"""Preview of the texts of the first step, as the network gets them: tokens, labels, tags, padding, masked words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from tl_jax.data import tokenize
from tl_jax.data.conll import find_scheme
from tl_jax.data.tokenize import IGNORED
from tl_jax.metrics import Batch
from tl_jax.report import images
from tl_jax.report.images import PADDING, PLAIN, SECOND, SPECIAL, Piece, Text
from tl_jax.tasks.losses import PRETEXT_KEY
from tl_jax.train.state import stream_key

if TYPE_CHECKING:
    import tokenizers

    from tl_jax.tasks.text import TextTask

ROWS = 8
LEGEND = {
    PLAIN: "a token (## continues a word)",
    SECOND: "of the second text",
    SPECIAL: "special",
    PADDING: "padding, masked out",
}
HIDDEN = {  # below each stands the token to predict
    "hidden M": "M, to predict: replaced by [MASK]",
    "hidden R": "R, to predict: replaced by a random token",
    "hidden K": "K, to predict: left as it is",
}
TAG = "tag "  # prefix of a tagged token's kind


def draw_previews(task: TextTask, config: Any, folder: Path) -> list[Path]:
    """Draw the first texts of the first step, and those of the pretext, if any; return the PNGs."""
    tokenizer, key = task.net.tokenizer, stream_key(config.seed, "train")
    key, is_masked_lm = jax.random.fold_in(key, 0), not task.needs_labels
    batch = task.train_batch(0)
    previews = [("preview", batch, key if is_masked_lm else None)]
    if config.pretext.name:
        is_added = config.pretext.weight > 0
        pretext_batch = batch if is_added or task.pretext is None else task.pretext.train_batch(0)
        previews.append(("preview_pretext", pretext_batch, jax.random.fold_in(key, PRETEXT_KEY) if is_added else key))
    return [
        _draw_batch(task, config, tokenizer, preview_batch, mask_key, folder / f"{name}.png")
        for name, preview_batch, mask_key in previews
    ]


def _draw_batch(
    task: TextTask, config: Any, tokenizer: tokenizers.Tokenizer, batch: Batch, mask_key: jax.Array | None, path: Path
) -> Path:
    """Draw the first texts of a batch, with words masked by ``mask_key``, if given."""
    batch = {name: np.asarray(values) for name, values in batch.items()}
    count, length = min(ROWS, len(batch["mask"])), batch["input_ids"].shape[1]
    ids, marks, classes = batch["input_ids"], [{}] * len(batch["input_ids"]), task.classes
    if mask_key is not None:
        ids, marks = mask_batch(batch, tokenizer, mask_key, config.pretext.mask_prob)
        classes = ()  # unused by masked language modelling
    rows = [{name: values[i] for name, values in batch.items()} for i in range(count)]
    texts = [_make_text(tokenizer, ids[i], row, classes, marks[i]) for i, row in enumerate(rows)]
    title = f"{task.name}: the first {count} texts of step 0, in a batch of {length} tokens each"
    return images.draw_tokens(texts, make_legend(texts), title, path)


def mask_batch(
    batch: Batch, tokenizer: tokenizers.Tokenizer, key: jax.Array, mask_prob: float
) -> tuple[np.ndarray, list[dict[int, tuple[str, str]]]]:
    """Return masked ids (N, L), and for each text position -> (M, R or K, masked token)."""
    masking, ids = tokenize.make_masking(tokenizer, mask_prob), np.asarray(batch["input_ids"])
    masked = jax.device_get(tokenize.mask_tokens(ids, batch["attention_mask"], key, masking))
    marks: list[dict[int, tuple[str, str]]] = []
    for before, after, positions, weights in zip(ids, *masked, strict=True):
        masked_positions = sorted(positions[weights > 0].tolist())
        letters = [
            "M" if after[i] == masking.mask_id else "K" if after[i] == before[i] else "R" for i in masked_positions
        ]
        marks.append(
            {
                i: (letter, _piece(tokenizer, int(before[i])))
                for i, letter in zip(masked_positions, letters, strict=True)
            }
        )
    return masked.ids, marks


def _piece(tokenizer: tokenizers.Tokenizer, token: int) -> str:
    return cast(str, tokenizer.id_to_token(token))  # None only for ids outside the vocabulary


def make_legend(texts: Sequence[Text]) -> dict[str, str]:
    """Return the legend of the colors in these texts; kinds of tags are their own legend."""
    used = {piece.kind for text in texts for piece in text.pieces}
    entries = {kind: words for kind, words in (LEGEND | HIDDEN).items() if kind in used}
    if PLAIN in entries and any(kind.startswith(TAG) for kind in used):
        entries[PLAIN] += "; only a word's first token has a tag"
    return entries | {kind: kind.removeprefix(TAG) for kind in sorted(used - set(entries))}


def _make_text(
    tokenizer: tokenizers.Tokenizer,
    ids: np.ndarray,
    row: Mapping[str, np.ndarray],
    classes: Sequence[str],
    marks: Mapping[int, tuple[str, str]],
) -> Text:
    """Return one text; consecutive padding is one box."""
    labels, length = row["label"], int(row["attention_mask"].sum())
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    pieces, scheme = [], find_scheme(classes)
    for position, (token, second) in enumerate(zip(ids[:length].tolist(), row["token_type_ids"], strict=False)):
        tag = classes[int(labels[position])] if classes and labels.ndim and labels[position] != IGNORED else ""
        kind = SPECIAL if token in special and position not in marks else SECOND if second else PLAIN
        note = tag
        if tag and tag != scheme.outside:
            kind = TAG + scheme.kind(tag)  # B-PER and I-PER have the same kind
        if position in marks:
            kind, note = f"hidden {marks[position][0]}", " ".join(marks[position])
        pieces.append(Piece(_piece(tokenizer, token), kind, note))
    if padding := len(ids) - length:
        pieces.append(Piece(f"[PAD] x {padding}", PADDING))
    label = f"label {classes[int(labels)]}: " if classes and not labels.ndim else ""
    return Text(f"{label}{length} tokens", pieces)
