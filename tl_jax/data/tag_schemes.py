"""Tag schemes of named entities: recognised from the tags, and entities read from them as seqeval reads them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

OUTSIDE = "O"  # tag of a word that belongs to no entity
NO_KIND = "entity"  # kind of tags that name none: B, I and O alone
_PREFIX = re.compile(r"(?P<prefix>[BIESLUMW])(?:[-_:/](?P<kind>.+))?", re.IGNORECASE)
_SUFFIX = re.compile(r"(?P<kind>.+)[-_:/](?P<prefix>[BIESLUMW])", re.IGNORECASE)
# Prefixes that the tags of a scheme have; the first one that holds all prefixes of a data set is taken.
_SCHEMES = {
    "IOB": "BI", "IOE": "IE", "BIOES": "BIES", "BILOU": "BILU", "BMEWO": "BMEW", "BMES": "BMES",
}  # fmt: skip
_RENAMED = {"BMEWO": {"M": "I", "W": "S"}, "BMES": {"M": "I"}}  # into those of BIOES
_STRICT = {"BIOES": "IOBES", "BMEWO": "IOBES", "BMES": "IOBES", "BILOU": "BILOU"}  # classes of seqeval.scheme
# Parts of speech of Universal Dependencies and the Penn Treebank: tags of single words, even beside a tag "O".
PARTS_OF_SPEECH = frozenset(
    "ADJ ADP ADV AUX CCONJ CONJ DET INTJ NOUN NUM PART PRON PROPN PRT PUNCT SCONJ SYM VERB "
    "CC CD DT EX FW IN JJ JJR JJS LS MD NN NNP NNPS NNS PDT POS PRP PRP$ RB RBR RBS RP TO UH VB VBD VBG VBN VBP VBZ "
    "WDT WP WP$ WRB".split()
)


class Scheme(NamedTuple):
    """How the tags of a data set mark entities.

    Attributes:
        name: "IOB" (IOB1 and IOB2), "IOE", "BIOES", "BILOU", "BMEWO", "BMES" or "IO" (kinds without a prefix, so that
            neighbours of one kind are one entity); "" if each tag is a class of words, such as a part of speech.
        tags: tag -> the same tag in the form that seqeval reads, such as "B-LOC" for "b_LOC"; empty if ``name`` is.
        outside: the tag of words outside entities, "" if there is none.
    """

    name: str
    tags: Mapping[str, str]
    outside: str

    def kind(self, tag: str) -> str:
        """Return what a tag stands for, without a prefix: "LOC" for "B-LOC"."""
        return self.tags[tag].partition("-")[2] or tag if self.name else tag

    def entities(self, tags: Sequence[str]) -> list[tuple[str, int, int]]:
        """Return the entities of a sentence as (kind, first word, last word).

        IOB, IOE and IO are read as CoNLL's own script reads them: an I- that continues nothing begins an entity. Of
        the schemes that mark single words, only entities whose tags are complete count (seqeval's strict mode).
        """
        canonical = [self.tags.get(tag, OUTSIDE) for tag in tags]
        if self.name not in _STRICT:
            from seqeval.metrics.sequence_labeling import get_entities  # takes two seconds

            return get_entities(canonical)
        from seqeval import scheme

        found = scheme.Tokens(canonical, getattr(scheme, _STRICT[self.name])).entities
        return [(entity.tag, entity.start, entity.end - 1) for entity in found]


def find_scheme(classes: Iterable[str]) -> Scheme:
    """Return the scheme of the tags of a data set; one without a name if they are classes of single words."""
    classes = tuple(classes)
    outside = next((tag for tag in (OUTSIDE, OUTSIDE.lower()) if tag in classes), "")
    inside = [tag for tag in classes if tag != outside]
    for pattern in (_PREFIX, _SUFFIX):
        matches = [pattern.fullmatch(tag) for tag in inside]
        if inside and all(matches):
            scheme = _prefixed(inside, [match.groupdict() for match in matches if match], outside)
            if scheme:
                return scheme
    if outside and inside and not PARTS_OF_SPEECH.intersection(inside) and any(len(tag) > 1 for tag in inside):
        return Scheme("IO", {outside: OUTSIDE, **{tag: f"I-{tag}" for tag in inside}}, outside)
    return Scheme("", {}, outside)


def has_prefix(tag: str) -> bool:
    """Whether a tag is one such as B-LOC, i_loc or U-PER."""
    match = _PREFIX.fullmatch(tag)
    return match is not None and match["kind"] is not None


def _prefixed(inside: Sequence[str], parts: Sequence[Mapping[str, str | None]], outside: str) -> Scheme | None:
    letters = [str(part["prefix"]).upper() for part in parts]
    bare = [not part["kind"] for part in parts]
    if any(bare) and not (all(bare) and outside and {"B", "I"}.intersection(letters)):
        return None  # single letters among others are parts of speech
    name = next((name for name, allowed in _SCHEMES.items() if set(letters) <= set(allowed)), None)
    if name is None:
        return None
    renamed = _RENAMED.get(name, {})
    tags = {
        tag: f"{renamed.get(letter, letter)}-{part['kind'] or NO_KIND}"
        for tag, letter, part in zip(inside, letters, parts, strict=True)
    }
    return Scheme(name, {**({outside: OUTSIDE} if outside else {}), **tags}, outside)
