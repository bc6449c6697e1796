"""CoNLL column files of tagged words, and the tag schemes of named entities (IOB, BIOES, BILOU and others).

A file has one word per line and a blank line between sentences. Entities are extracted as in seqeval.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tl_jax.data.text_rows import LineErrors, split_lines
from tl_jax.utils.errors import UserError
from tl_jax.utils.extras import require_extra

DOCUMENT = "-DOCSTART-"
_ID = re.compile("[0-9]{1,9}")  # longer numbers are words
_EXTRA_ID = re.compile("[0-9]+[-.][0-9]+")  # CoNLL-U: a contraction of several words, or an elided word
_BLANKS = " \t\r"

Line = tuple[int, list[str]]  # line number, cells


class Sentence(NamedTuple):
    """Words, their tags, and their line numbers."""

    words: list[str]
    tags: list[str]
    lines: list[int]


class _Layout(NamedTuple):
    word: int  # column of the words
    tag: int  # column of the tags
    width: int  # number of columns
    numbered: bool  # whether the first column numbers the words


def read_sentences(
    file: Path, text: str, names: Sequence[str] = (), word: str = "", tag: str = "", tagged: bool = True
) -> list[Sentence | UserError]:
    """Read the sentences of a file.

    Columns are separated by tabs in lines with a tab, so that words may contain blanks, else by blanks; a no-break
    space is part of a word. Without ``names``, the word is the first column and the tag the last. If the first column
    numbers the words of each sentence, the word is the second; comment lines and CoNLL-U's contractions are dropped,
    and more than three columns need ``names``.

    Args:
        file: path for messages.
        text: content of the file.
        names: names of all columns.
        word: name of the column of words.
        tag: name of the column of tags.
        tagged: whether tags are required; else a line may be a single word, tags are empty, and a sentence with an
            invalid line is replaced by its error.

    Raises:
        UserError: lines with another number of columns, or unknown columns; it gives the lines.
    """
    groups = list(_groups(text))
    if not groups:
        raise UserError(f"{file}: empty; add sentences, or remove the file")
    layout = _find_layout(file, groups, names, word, tag, tagged)
    line_errors, sentences = LineErrors(file, keep=not tagged), []
    for group in groups:
        num_errors = len(line_errors.lines)
        rows = [row for row in _comments_dropped(group, layout.numbered) if not _is_extra(row, layout.numbered)]
        for line, cells in rows:
            if len(cells) != layout.width:
                columns = f"one column, {cells[0]!r}" if len(cells) == 1 else f"{len(cells)} columns"
                problem = f"{columns}, not {layout.width} as in the first line"
                line_errors.add(line, problem, "write a word and, at the end, its tag")
            elif not all(cell.strip() for cell in (cells[layout.word], cells[layout.tag])):
                line_errors.add(line, "an empty word or tag", "fill it in, or remove the line")
        if len(line_errors.lines) > num_errors:
            sentences.append(line_errors.by_line()[line_errors.lines[num_errors][0]])
        elif rows:
            tags = [cells[layout.tag] if tagged else "" for _, cells in rows]
            sentences.append(Sentence([cells[layout.word] for _, cells in rows], tags, [line for line, _ in rows]))
    line_errors.raise_if_any()
    return sentences


def _groups(text: str) -> Iterator[list[Line]]:
    """Yield the lines of each sentence."""
    group: list[Line] = []
    for i, line in enumerate([*split_lines(text), ""], start=1):
        cells = _cells(line)
        if cells and cells[0] != DOCUMENT:
            group.append((i, cells))
        elif group:
            yield group
            group = []


def _cells(line: str) -> list[str]:
    if not line.strip():
        return []
    if "\t" in line:
        return [cell.strip(_BLANKS) for cell in line.rstrip("\r").split("\t")]
    return re.split("[ \r]+", line.strip(_BLANKS))


def _find_layout(
    file: Path, groups: Sequence[list[Line]], names: Sequence[str], word: str, tag: str, tagged: bool
) -> _Layout:
    numbered = _are_numbered(groups)
    first = next((row for group in groups for row in _comments_dropped(group, numbered)), groups[0][0])
    width = len(first[1])
    if names:
        missing = next((name for name in ((word, tag) if tagged else (word,)) if name not in names), "")
        if missing:
            raise UserError(
                f"{file}: no column {missing!r} among config.data.columns ({', '.join(names)}); "
                "set config.data.text to the column of the words, and data.label to that of the tags"
            )
        if width != len(names) and (tagged or width != 1):
            raise UserError(
                f"{file}:{first[0]}: {width} columns, not {len(names)} ({', '.join(names)}); fix config.data.columns"
            )
        word_column = names.index(word) if width > 1 else 0
        return _Layout(word_column, names.index(tag) if tagged else word_column, width, numbered)
    if numbered and width > 3:
        raise UserError(
            f"{file}:{first[0]}: the first of {width} columns numbers the words, as in GermEval or CoNLL-U, so the "
            "column of the tags is unclear; name all columns, such as config.data.columns=('id','word','tag',"
            "'other'), with config.data.text=('word',) and config.data.label=tag"
        )
    if width < 2 and tagged:
        single_column = all(len(cells) == 1 for group in groups for _, cells in group)
        action = (
            f"add tags, or predict from {file.name}" if single_column
            else "write a word and, at the end, its tag"
        )  # fmt: skip
        raise UserError(f"{file}:{first[0]}: one column, {first[1][0]!r}; {action}")
    word_column = int(numbered)
    return _Layout(word_column, width - 1 if tagged else word_column, width, numbered)


def _are_numbered(groups: Sequence[list[Line]]) -> bool:
    """Return whether the first of at least three columns numbers the words in every sentence."""
    longest = 0
    for group in groups:
        rows = [cells for _, cells in _comments_dropped(group, True) if not _EXTRA_ID.fullmatch(cells[0])]
        longest = max(longest, len(rows))
        if any(len(cells) < 3 or not _ID.fullmatch(cells[0]) for cells in rows):
            return False
        if any(int(cells[0]) != int(rows[0][0]) + i for i, cells in enumerate(rows)):
            return False
    return longest > 1


def _comments_dropped(group: list[Line], numbered: bool) -> list[Line]:
    """Return the lines of a sentence without the comments before it, which only numbered layouts have."""
    count = 0
    while numbered and count < len(group) and group[count][1][0].startswith("#"):
        count += 1
    return group[count:]


def _is_extra(row: Line, numbered: bool) -> bool:
    return numbered and _EXTRA_ID.fullmatch(row[1][0]) is not None


OUTSIDE = "O"  # tag of a word that belongs to no entity
DEFAULT_KIND = "entity"  # kind of tags without one: B, I and O
_PREFIX = re.compile(r"(?P<prefix>[BIESLUMW])(?:[-_:/](?P<kind>.+))?", re.IGNORECASE)
_SUFFIX = re.compile(r"(?P<kind>.+)[-_:/](?P<prefix>[BIESLUMW])", re.IGNORECASE)
# Prefixes of the tags of a scheme; the first scheme with all prefixes of a data set is used.
_SCHEMES = {
    "IOB": "BI", "IOE": "IE", "BIOES": "BIES", "BILOU": "BILU", "BMEWO": "BMEW", "BMES": "BMES",
}  # fmt: skip
_BIOES_PREFIXES = {"BMEWO": {"M": "I", "W": "S"}, "BMES": {"M": "I"}}  # to BIOES
_STRICT = {"BIOES": "IOBES", "BMEWO": "IOBES", "BMES": "IOBES", "BILOU": "BILOU"}  # classes of seqeval.scheme
# Parts of speech of Universal Dependencies and the Penn Treebank: tags of single words, even if a tag "O" exists.
PARTS_OF_SPEECH = frozenset(
    "ADJ ADP ADV AUX CCONJ CONJ DET INTJ NOUN NUM PART PRON PROPN PRT PUNCT SCONJ SYM VERB "
    "CC CD DT EX FW IN JJ JJR JJS LS MD NN NNP NNPS NNS PDT POS PRP PRP$ RB RBR RBS RP TO UH VB VBD VBG VBN VBP VBZ "
    "WDT WP WP$ WRB".split()
)


class TagScheme(NamedTuple):
    """The way tags mark entities.

    Attributes:
        name: "IOB" (IOB1 and IOB2), "IOE", "BIOES", "BILOU", "BMEWO", "BMES" or "IO" (kinds without a prefix, so that
            neighbours of one kind are one entity); "" if each tag is a class of words, such as a part of speech.
        tags: tag -> tag in the form of seqeval, such as "B-LOC" for "b_LOC"; empty if ``name`` is.
        outside: tag of words outside entities, "" if there is none.
    """

    name: str
    tags: Mapping[str, str]
    outside: str

    def kind(self, tag: str) -> str:
        """Return a tag without its prefix: "LOC" for "B-LOC"."""
        return self.tags[tag].partition("-")[2] or tag if self.name else tag

    def entities(self, tags: Sequence[str]) -> list[tuple[str, int, int]]:
        """Return the entities of a sentence as (kind, first word, last word).

        IOB, IOE and IO are read as by CoNLL's own script: an I- that continues nothing begins an entity. In schemes
        that mark single words, only complete entities count (seqeval's strict mode).
        """
        canonical = [self.tags.get(tag, OUTSIDE) for tag in tags]
        if self.name not in _STRICT:
            with require_extra("text"):
                from seqeval.metrics.sequence_labeling import get_entities  # takes 2 s

            return get_entities(canonical)
        with require_extra("text"):
            from seqeval import scheme

        entities = scheme.Tokens(canonical, getattr(scheme, _STRICT[self.name])).entities
        return [(entity.tag, entity.start, entity.end - 1) for entity in entities]


def find_scheme(classes: Iterable[str]) -> TagScheme:
    """Return the scheme of the tags of a data set; without a name if they are classes of single words."""
    classes = tuple(classes)
    outside = next((tag for tag in (OUTSIDE, OUTSIDE.lower()) if tag in classes), "")
    inside = [tag for tag in classes if tag != outside]
    for pattern in (_PREFIX, _SUFFIX):
        matches = [pattern.fullmatch(tag) for tag in inside]
        if inside and all(matches):
            scheme = _prefix_scheme(inside, [match.groupdict() for match in matches if match], outside)
            if scheme:
                return scheme
    if outside and inside and not PARTS_OF_SPEECH.intersection(inside) and any(len(tag) > 1 for tag in inside):
        return TagScheme("IO", {outside: OUTSIDE, **{tag: f"I-{tag}" for tag in inside}}, outside)
    return TagScheme("", {}, outside)


def has_prefix(tag: str) -> bool:
    """Return whether a tag has a prefix, such as B-LOC, i_loc or U-PER."""
    match = _PREFIX.fullmatch(tag)
    return match is not None and match["kind"] is not None


def _prefix_scheme(
    inside: Sequence[str], matches: Sequence[Mapping[str, str | None]], outside: str
) -> TagScheme | None:
    letters = [str(match["prefix"]).upper() for match in matches]
    bare = [not match["kind"] for match in matches]
    if any(bare) and not (all(bare) and outside and {"B", "I"}.intersection(letters)):
        return None  # mixed single letters are parts of speech
    name = next((name for name, allowed in _SCHEMES.items() if set(letters) <= set(allowed)), None)
    if name is None:
        return None
    renamed = _BIOES_PREFIXES.get(name, {})
    tags = {
        tag: f"{renamed.get(letter, letter)}-{match['kind'] or DEFAULT_KIND}"
        for tag, letter, match in zip(inside, letters, matches, strict=True)
    }
    return TagScheme(name, {**({outside: OUTSIDE} if outside else {}), **tags}, outside)
