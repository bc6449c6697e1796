"""Entities must not depend on the scheme that marks them; seqeval says which they are."""

import pytest
from seqeval import scheme as schemes
from seqeval.metrics.sequence_labeling import get_entities

from tl_jax.data.conll import find_scheme

pytestmark = pytest.mark.fast
ENTITIES = [("LOC", 0, 1), ("PER", 3, 3), ("PER", 4, 6)]  # kind, first word, last word


def written(single, first, inside, last, between="-", kind_first=False):
    """Return the tags of ENTITIES in a scheme of these prefixes."""
    tags = ["O"] * 8
    for kind, a, b in ENTITIES:
        for i in range(a, b + 1):
            prefix = single if a == b else first if i == a else last if i == b else inside
            tags[i] = f"{kind}{between}{prefix}" if kind_first else f"{prefix}{between}{kind}"
    return tags


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("IOB", written("B", "B", "I", "I")),
        ("IOB", written("b", "b", "i", "i")),
        ("IOB", written("B", "B", "I", "I", "_")),
        ("IOB", written("B", "B", "I", "I", "-", kind_first=True)),
        ("IOB", ["I-LOC", "I-LOC", "O", "I-PER", "B-PER", "I-PER", "I-PER", "O"]),  # IOB1
        ("IOE", ["I-LOC", "I-LOC", "O", "E-PER", "I-PER", "I-PER", "I-PER", "O"]),  # IOE1
        ("IOE", written("E", "I", "I", "E")),  # IOE2
        ("BIOES", written("S", "B", "I", "E")),
        ("BIOES", written("s", "b", "i", "e")),
        ("BILOU", written("U", "B", "I", "L")),
        ("BMEWO", written("W", "B", "M", "E")),
        ("BMES", written("S", "B", "M", "E")),
    ],
)
def test_entities_are_the_same_in_all_schemes(name, tags):
    scheme = find_scheme(sorted(set(tags)))
    assert scheme.name == name and scheme.entities(tags) == ENTITIES
    assert {scheme.kind(tag) for tag in tags if tag != "O"} == {"LOC", "PER"}


def test_neighbours_of_one_kind_are_one_entity_in_io():
    tags = ["LOC", "LOC", "O", "PER", "PER"]
    scheme = find_scheme(("O", "LOC", "PER"))
    assert scheme.name == "IO" and scheme.entities(tags) == [("LOC", 0, 1), ("PER", 3, 4)]
    assert scheme.entities(tags) == get_entities([tag if tag == "O" else f"I-{tag}" for tag in tags])


def test_tags_without_a_kind_are_entities():
    assert find_scheme(("O", "B", "I")).entities(["B", "I", "O", "B"]) == [("entity", 0, 1), ("entity", 3, 3)]


@pytest.mark.parametrize(
    "tags", [("NOUN", "VERB"), ("O", "NOUN", "VERB"), ("O", "N", "V"), ("B", "N", "O"), ("O", "B-X", "FOO-")[:1]]
)
def test_parts_of_speech_are_no_entities(tags):
    assert find_scheme(tags).name == ""


@pytest.mark.parametrize("predicted", ["B-LOC O S-PER", "B-LOC E-LOC I-PER", "S-LOC E-LOC S-PER", "O E-LOC S-LOC"])
def test_tags_that_do_not_fit_are_read_as_seqeval_reads_them(predicted):
    scheme = find_scheme(["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("LOC", "PER"))])
    right = schemes.Tokens(predicted.split(), schemes.IOBES).entities
    assert scheme.entities(predicted.split()) == [(entity.tag, entity.start, entity.end - 1) for entity in right]
