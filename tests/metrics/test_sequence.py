"""Scores of classes and entities, against values worked by hand."""

import numpy as np
import pytest
from seqeval import scheme as schemes
from seqeval.metrics import f1_score as entity_f1
from seqeval.metrics import precision_score, recall_score
from sklearn.metrics import f1_score

from tl_jax.metrics import sequence

pytestmark = pytest.mark.fast


def test_classes_by_hand():
    batch = {"label": np.array([0, 0, 1, 1, 2, 2]), "mask": np.array([1, 1, 1, 1, 1, 0])}
    evaluation = sequence.text_evaluator(("a", "b", "c"))([np.array([0, 1, 1, 1, 0, 2])], [batch])
    # a: 1 of 2 found, 1 of 2 right; b: 2 of 2, 2 of 3; c: none of 1
    assert evaluation.per_class["a"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "examples": 2}
    assert evaluation.per_class["b"]["precision"] == pytest.approx(2 / 3) and evaluation.per_class["c"]["f1"] == 0
    assert evaluation.values["f1"] == pytest.approx((0.5 + 0.8 + 0) / 3)
    # Matthews: (c s - sum p t) / sqrt((s^2 - sum p^2) (s^2 - sum t^2)), c = 3 of s = 5; p = 2, 3, 0; t = 2, 2, 1
    assert evaluation.values["matthews"] == pytest.approx((15 - 10) / np.sqrt((25 - 13) * (25 - 9)))


TAGS = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")


def judged(true, predicted):
    label = np.array([[TAGS.index(tag) if tag else -1 for tag in row] for row in true])
    numbers = np.array([[TAGS.index(tag) for tag in row] for row in predicted])
    return sequence.token_evaluator(TAGS)([numbers], [{"label": label, "mask": np.ones(len(true))}])


def test_entities_by_hand():
    true = [["", "B-PER", "I-PER", "O", "B-LOC", ""], ["", "O", "B-LOC", "I-LOC", "O", ""]]
    found = [["O", "B-PER", "I-PER", "O", "B-PER", "O"], ["B-LOC", "O", "B-LOC", "O", "O", "O"]]
    evaluation = judged(true, found)  # of three entities one is found whole, one of another kind, one too short
    assert evaluation.values == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3})
    assert evaluation.per_class["PER"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "examples": 1}
    assert evaluation.per_class["LOC"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "examples": 2}


def test_tags_that_do_not_fit_are_read_as_conll_does():
    evaluation = judged([["B-PER", "I-PER", "O"]], [["I-PER", "I-PER", "O"]])
    assert evaluation.values["f1"] == 1.0
    evaluation = judged([["B-PER", "B-LOC", "O"]], [["B-PER", "I-LOC", "O"]])  # another kind begins another entity
    assert evaluation.values["f1"] == 1.0


def test_nothing_found_is_zero():
    evaluation = judged([["B-PER", "O"]], [["O", "O"]])
    assert evaluation.values == {"precision": 0, "recall": 0, "f1": 0} and evaluation.per_class["PER"]["examples"] == 1
    assert judged([["O", "O"]], [["O", "O"]]).values["f1"] == 0


def test_other_tags_are_classes():
    evaluate = sequence.token_evaluator(("NOUN", "VERB"))
    batch = {"label": np.array([[0, 1, -1], [1, -1, -1]]), "mask": np.array([1, 1])}
    evaluation = evaluate([np.array([[0, 0, 1], [1, 0, 0]])], [batch])
    assert evaluation.per_class["NOUN"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "examples": 1}
    assert set(evaluation.values) == {"f1", "matthews"}


def test_macro_f1_of_a_perfect_model_is_one_whatever_the_test_split_lacks():
    batch = {"label": np.array([0, 1, 0, 1]), "mask": np.ones(4)}
    evaluation = sequence.text_evaluator(("a", "b", "c"))([np.eye(3)[batch["label"]]], [batch])
    assert evaluation.values["f1"] == 1.0
    assert evaluation.per_class.keys() == {"a", "b"}
    assert evaluation.missing == {"f1 of c": "needs examples of the class, which this split lacks"}


def test_macro_f1_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for classes in (3, 6, 12):
        label, found = rng.integers(0, 5, (2, 20)) % classes
        evaluation = sequence.text_evaluator(tuple(map(str, range(classes))))(
            [found], [{"label": label, "mask": np.ones(20)}]
        )
        assert evaluation.values["f1"] == pytest.approx(f1_score(label, found, average="macro", zero_division=0))


@pytest.mark.parametrize(
    ("letters", "scheme"), [("BI", schemes.IOB2), ("BIES", schemes.IOBES), ("BILU", schemes.BILOU)]
)
def test_entity_f1_is_that_of_seqeval(letters, scheme):
    classes = ("O", *(f"{letter}-{kind}" for kind in ("LOC", "PER") for letter in letters))
    rng = np.random.default_rng(0)
    label = rng.integers(0, len(classes), (50, 9)) * (rng.random((50, 9)) < 0.5)
    found = np.where(rng.random(label.shape) < 0.8, label, rng.integers(0, len(classes), label.shape))
    evaluation = sequence.token_evaluator(classes)([found], [{"label": label, "mask": np.ones(50)}])
    names = [[[classes[tag] for tag in row] for row in rows.tolist()] for rows in (label, found)]
    how = {"mode": "strict", "scheme": scheme} if scheme != schemes.IOB2 else {}
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", entity_f1)):
        assert evaluation.values[name] == pytest.approx(score(*names, zero_division=0, **how)), name


def test_entities_behind_the_length_limit_count_as_missed():
    batch = {
        "label": np.array([[-1, 1, 0, -1]]), "mask": np.ones(1),
        "tags": np.array([[1, 0, 1, 2, 0, 1]]), "read": np.array([[1, 1, 0, 0, 0, 0]]),
    }  # fmt: skip
    evaluation = sequence.token_evaluator(("O", "B-X", "I-X"))([np.array([[0, 1, 0, 0]])], [batch])
    assert evaluation.values["recall"] == pytest.approx(1 / 3) and evaluation.values["precision"] == 1.0
    assert evaluation.values["accuracy"] == pytest.approx(3 / 6)
    assert evaluation.predictions.predictions == [["B-X", "O", "O", "O", "O", "O"]]


def test_parts_of_speech_behind_the_length_limit_count_as_missed():
    batch = {
        "label": np.array([[-1, 1, 0, -1]]), "mask": np.ones(1),
        "tags": np.array([[1, 0, 1]]), "read": np.array([[1, 1, 0]]),
    }  # fmt: skip
    evaluation = sequence.token_evaluator(("NOUN", "VERB"))([np.array([[0, 1, 0, 0]])], [batch])
    assert evaluation.per_class["VERB"]["recall"] == 0.5 and evaluation.values["f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert sequence.predicted_classes(("NOUN", "VERB"), evaluation.predictions) == ("NOUN", "VERB", sequence.UNREAD)
