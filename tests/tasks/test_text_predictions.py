"""Runs on tagged words and on texts: predictions, scores and test_details.json speak of the words of the data."""

import csv
import json

import numpy as np
import pytest
from seqeval.metrics import f1_score

from configs import sst2_bert
from tests.configs import change
from tests.text import network
from tl_jax import training
from tl_jax.data import tokenize
from tl_jax.learner import Learner
from tl_jax.pretrained import huggingface
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.slow

NAMES = ("good", "acting", "x.y", "don-t")
OTHERS = ("a", "its", "world", "cafe", ",", "\u200b", "\u00ad", ".")  # two of them have no token


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with a small network and tagged sentences, some longer than the length limit."""
    where = tmp_path_factory.mktemp("predictions")
    huggingface.save(where / "net", network(where / "net"))
    rng = np.random.default_rng(0)
    for split, count, longest in (("train", 96, 8), ("dev", 16, 8), ("test", 32, 24)):
        sentences = []
        for _ in range(count):
            words = rng.choice([*NAMES, *OTHERS], rng.integers(3, longest))
            sentences.append("\n".join(f"{word} {'B-X' if word in NAMES else 'O'}" for word in words))
        (where / f"{split}.conll").write_text("\n\n".join(sentences))
    return where


def configure(folder, *changes):
    common = (
        ("arms", ()), ("init.path", str(folder / "net")), ("data.dir", str(folder)), ("batch_size", 8),
        ("eval_batch_size", 16), ("optim.lr", 3e-3), ("input.max_length", 16), ("log_every", 4), ("task", "tokens"),
        ("data.name", "conll"), ("data.columns", ()), ("data.text", ("text",)), ("epochs", 6.0),
    )  # fmt: skip
    return change(sst2_bert.get_config(), *common, *changes)


def sentences(file):
    """Return the words and the tags of each sentence of a file."""
    blocks = [[line.split(" ") for line in block.split("\n")] for block in file.read_text().split("\n\n")]
    return [[row[0] for row in block] for block in blocks], [[row[1] for row in block] for block in blocks]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A finished run: its folder and its summary."""
    where = tmp_path_factory.mktemp("run")
    return where, training.train(configure(folder), where)


def tags_of(prediction):
    """Return the tags of a prediction's words, by where its entities stand in the text."""
    tags, at = [], 0
    begins = {entity["begin"] for entity in prediction["entities"]}
    for word in prediction["words"]:
        at = prediction["input"].index(word, at)
        tags.append("B-X" if at in begins else "O")
        at += len(word)
    return tags


def test_typed_training_sentences_have_the_words_and_tags_of_training(folder, run):
    words, tags = sentences(folder / "train.conll")
    found = Learner(configure(folder), run[0]).show_predictions([" ".join(own) for own in words])
    assert [each["words"] for each in found] == words
    assert f1_score(tags, [tags_of(each) for each in found]) > 0.98


def test_words_without_a_token_shift_nothing(folder, run):
    inputs = ["its \u200b good world", "its \u00ad good world", "its good world", "its \x01 \ufeff good world"]
    found = Learner(configure(folder), run[0]).show_predictions(inputs)
    assert [[entity["text"] for entity in each["entities"]] for each in found] == [["good"]] * 4
    assert all(each["input"][e["begin"] : e["end"]] == e["text"] for each in found for e in each["entities"])


def test_the_f1_of_a_run_is_that_of_seqeval_on_whole_sentences(folder, run):
    words, tags = sentences(folder / "test.conll")
    found = Learner(configure(folder), run[0]).show_predictions(words)  # lists of words, cut as the run cuts them
    assert [each["words"] for each in found] == words
    predicted = [tags_of(each) for each in found]
    assert run[1]["metrics"]["f1"] == pytest.approx(f1_score(tags, predicted))
    assert run[1]["metrics"]["recall"] < 0.9 < run[1]["metrics"]["precision"]  # what was cut off is missed
    hits = [
        label == tag for own, each in zip(tags, predicted, strict=True) for label, tag in zip(own, each, strict=True)
    ]
    assert run[1]["metrics"]["accuracy"] == pytest.approx(np.mean(hits))


def test_test_details_have_each_tag_at_its_word(folder, run):
    details = json.loads((run[0] / "test_details.json").read_text())
    known = [list(zip(*pair, strict=True)) for pair in zip(*sentences(folder / "test.conll"), strict=True)]
    assert details["sentences"]
    for sentence in details["sentences"]:
        assert [(word, label) for word, label, _ in sentence["words"]] in known
    assert details["examples"] == sum(map(len, known))


def test_a_file_of_sentences_is_read(folder, run, tmp_path):
    (tmp_path / "a.txt").write_text("its good world.\n\nacting, a cafe\n")
    (tmp_path / "a.csv").write_text('text,more\n"its good world.",1\n')
    (tmp_path / "a.conll").write_text("its O\ngood O\n\nacting O\n")
    shown = {}
    for name in ("a.txt", "a.csv", "a.conll"):
        found = Learner(configure(folder), run[0]).show_predictions([str(tmp_path / name)])
        shown[name] = [(each["words"], [entity["text"] for entity in each["entities"]]) for each in found]
    first = (["its", "good", "world", "."], ["good"])
    assert shown["a.txt"] == [first, (["acting", ",", "a", "cafe"], ["acting"])]
    assert shown["a.csv"] == [first]
    assert shown["a.conll"] == [(["its", "good"], ["good"]), (["acting"], ["acting"])]
    (tmp_path / "a.conll").write_text("its O\ngood\nday O\n\nacting O\n")
    damaged, sound = Learner(configure(folder), run[0]).show_predictions([str(tmp_path / "a.conll")])
    assert "a.conll:2: one column, 'good', not 2" in damaged["error"] and sound["words"] == ["acting"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("test.csv", "input test.csv: file not found; pass a file"),
        ("texts/new.txt", "input texts/new.txt: file not found"),
        ("/nowhere/my texts.csv", "file not found"),
        ("/tmp", "input /tmp: is a folder"),
    ],
)
def test_a_path_that_is_not_there_is_no_sentence(folder, run, value, message):
    with pytest.raises(UserError, match=message):
        Learner(configure(folder), run[0]).show_predictions([value])


def test_a_path_object_is_a_file_and_never_a_sentence(folder, run, tmp_path):
    (tmp_path / "one good world.txt").write_text("its good world")
    for inputs in (tmp_path / "one good world.txt", [tmp_path / "one good world.txt"]):
        assert [each["words"] for each in Learner(configure(folder), run[0]).show_predictions(inputs)] == [
            ["its", "good", "world"]
        ]
    with pytest.raises(UserError, match="file not found"):
        Learner(configure(folder), run[0]).show_predictions([tmp_path / "a good cafe"])


@pytest.mark.parametrize("inputs", [[None], [float("nan")], [3], [b"good"], [["good", None]], [["good", 1.0]]])
def test_what_is_no_text_is_refused(folder, run, inputs):
    with pytest.raises(UserError, match="input .*pass str"):
        Learner(configure(folder), run[0]).show_predictions(inputs)


def test_a_sentence_about_a_file_is_a_sentence(folder, run):
    (found,) = Learner(configure(folder), run[0]).show_predictions(["its good world is in test.csv"])
    assert found["words"][-1] == "test.csv"


@pytest.mark.parametrize("pairs", [False, True])
def test_bars_make_a_pair_only_if_the_run_was_trained_on_pairs(folder, tmp_path, pairs):
    rows = [("text", "second", "label"), *((f"good film {i}", "bad world", "ab"[i % 2]) for i in range(16))]
    for split in ("train", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    columns = ("text", "second") if pairs else ("text",)
    config = configure(
        folder, ("task", "text"), ("data.name", "csv"), ("data.dir", str(tmp_path)), ("data.text", columns),
        ("epochs", 0.0), ("init.head", "new"), ("eval_checkpoint", "last"),
    )  # fmt: skip
    training.train(config, tmp_path / "run")
    rows = Learner(config, tmp_path / "run").show_predictions(["good film ||| bad world", str(tmp_path / "test.csv")])
    found = {each["input"]: each["probabilities"]["a"] for each in rows}
    assert len(found) == 17
    if not pairs:
        ids = tokenize.read_tokenizer(folder / "net").encode("good film ||| bad world").type_ids
        assert set(ids) == {0} and "good film 3" in found
        return
    assert "good film 3 ||| bad world" in found
    with pytest.raises(UserError, match="one text, but the run takes pairs"):
        Learner(config, tmp_path / "run").show_predictions(["good film"])
