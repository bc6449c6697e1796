"""What the preview shows of texts is what the network gets: pieces, labels, tags, padding, hidden words."""

import jax
import numpy as np
import pytest

from configs import sst2_bert
from tests.configs import change
from tests.text import network
from tl_jax.config import recipe
from tl_jax.data import tokenize
from tl_jax.learner import Learner
from tl_jax.pretrained import huggingface
from tl_jax.report import images
from tl_jax.restore import make_task
from tl_jax.tasks import text_preview
from tl_jax.train.state import stream_key

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network of random weights, texts with labels, pairs, and tagged words."""
    where = tmp_path_factory.mktemp("views")
    huggingface.save(where / "net", network(where / "net"))
    rows = ["a film whose plot is unbelieving\tbad", "good acting\tgood"] * 4
    (where / "train.tsv").write_text("\n".join(rows))
    (where / "test.tsv").write_text("\n".join(rows))
    tagged = "good B-PER\nunbelieving I-PER\nfilm O\n\nworld B-LOC\n"
    (where / "train.conll").write_text(4 * (tagged + "\n"))
    (where / "test.conll").write_text(tagged)
    return where


def shown(folder, tmp_path, monkeypatch, *changes):
    """Return the texts of each picture that a preview draws, by the name of its file."""
    found, draw = {}, images.draw_tokens
    monkeypatch.setattr(images, "draw_tokens", lambda t, *rest: found.setdefault(rest[-1].name, t) and draw(t, *rest))
    common = (
        ("arms", ()), ("init.path", str(folder / "net")), ("data.dir", str(folder)), ("batch_size", 8),
        ("input.max_length", 16), ("data.validation", 0.0), ("eval_checkpoint", "last"),
    )  # fmt: skip
    config = change(sst2_bert.get_config(), *common, *changes)
    paths = Learner(config, tmp_path).preview()
    assert [path.name for path in paths] == list(found) and all(path.stat().st_size > 3000 for path in paths)
    return config, found


def words(text):
    return " ".join(piece.text for piece in text.pieces)


def test_a_text_has_its_label_and_its_padding(folder, tmp_path, monkeypatch):
    _, found = shown(folder, tmp_path, monkeypatch)
    texts = {text.caption: words(text) for text in found["preview.png"]}
    assert texts["label good: 4 tokens"].startswith("[CLS] good acting [SEP] [PAD] x ")
    (long,) = (line for caption, line in texts.items() if caption.startswith("label bad"))
    assert long.startswith("[CLS] a film whose plot is un ##believ ##ing [SEP]")
    kinds = [piece.kind for piece in found["preview.png"][0].pieces]
    assert kinds[0] == "special" and "plain" in kinds and len(found["preview.png"]) == 8


def test_the_second_of_two_texts_has_its_colour(folder, tmp_path, monkeypatch):
    changes = (("data.columns", ("sentence", "label")), ("data.text", ("sentence", "label")))
    _, found = shown(folder, tmp_path, monkeypatch, *changes)
    for text in found["preview.png"]:
        second = [piece.text for piece in text.pieces if piece.kind == "second"]
        assert second == [text.caption.partition(":")[0].removeprefix("label ")]


def test_tags_stand_below_the_first_piece_of_each_word(folder, tmp_path, monkeypatch):
    changes = (("task", "tokens"), ("data.name", "conll"), ("data.columns", ()), ("data.text", ("text",)))
    _, found = shown(folder, tmp_path, monkeypatch, *changes)
    (text, *_) = (text for text in found["preview.png"] if "good" in words(text))
    assert [(p.text, p.kind, p.note) for p in text.pieces[:7]] == [
        ("[CLS]", "special", ""), ("good", "tag PER", "B-PER"), ("un", "tag PER", "I-PER"), ("##believ", "plain", ""),
        ("##ing", "plain", ""), ("film", "plain", "O"), ("[SEP]", "special", ""),
    ]  # fmt: skip
    assert text_preview.make_legend(found["preview.png"])["tag PER"] == "PER"


@pytest.mark.parametrize("first", [True, False])
def test_a_pretext_has_a_picture_of_its_own(folder, tmp_path, monkeypatch, first):
    changes = [("pretext.name", "masked"), ("pretext.weight", 0.0 if first else 0.5)]
    if first:
        phases = ({"name": "a", "epochs": 1.0, "objective": "pretext"}, {"name": "b", "epochs": 1.0})
        changes += [("phases", phases), ("epochs", recipe.get_config().epochs)]
    _, found = shown(folder, tmp_path, monkeypatch, *changes)
    plain, hidden = found["preview.png"], found["preview_pretext.png"]
    assert not any(piece.note for text in plain for piece in text.pieces)
    assert all(any(piece.kind.startswith("hidden") for piece in text.pieces) for text in hidden)


def test_hidden_words_are_those_that_the_first_step_hides(folder, tmp_path, monkeypatch):
    config, found = shown(folder, tmp_path, monkeypatch, ("task", "masked"))
    task, seen = make_task(config), []
    hide = text_preview.tokenize.mask_tokens
    monkeypatch.setattr("tl_jax.tasks.losses.mask_tokens", lambda *a: seen.append(hide(*a)) or seen[-1])
    batch = task.train_batch(0)
    task.loss(task.init(jax.random.key(0)), batch, jax.random.fold_in(stream_key(config.seed, "train"), 0))
    tokenizer = task.net.tokenizer
    for i, text in enumerate(found["preview.png"]):
        ids = np.asarray(seen[0].ids[i])[: int(batch["attention_mask"][i].sum())]
        assert [piece.text for piece in text.pieces[: len(ids)]] == [tokenizer.id_to_token(int(id)) for id in ids]
        assert ":" not in text.caption


def test_letters_say_what_was_done_to_a_word(folder):
    tokenizer = tokenize.read_tokenizer(folder / "net")
    rng = np.random.default_rng(0)
    ids = rng.integers(10, 40, (200, 16))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    seen, marks = text_preview.mask_batch(batch, tokenizer, jax.random.key(0), 0.25)
    letters = [letter for row in marks for letter, _ in row.values()]
    shares = {letter: letters.count(letter) / len(letters) for letter in "MRK"}
    assert shares == pytest.approx({"M": 0.8, "R": 0.1, "K": 0.1}, abs=0.05)
    for before, after, row in zip(ids, seen, marks, strict=True):
        assert len(row) == 4
        for at in range(16):
            letter, word = row.get(at, ("", ""))
            assert (before[at] == after[at]) == (letter in ("", "K"))
            assert (after[at] == tokenizer.token_to_id("[MASK]")) == (letter == "M")
            assert not letter or word == tokenizer.id_to_token(int(before[at]))
