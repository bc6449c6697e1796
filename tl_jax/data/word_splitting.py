"""Split user sentences into words in the way of the training sentences."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

MIN_EVIDENCE = 20  # occurrences as a word, with none inside one, from which a mark splits words everywhere
MIN_COUNT = 3  # occurrences of a clitic
_CLITIC = re.compile(r"['’][^\W\d_]{1,3}|n['’]t", re.IGNORECASE)
_ELISION = re.compile(r"[^\W\d_]{1,5}['’]")
_ABBREVIATION = re.compile(r"([^\W\d_]\.)*[^\W\d_]")  # U.N or J, followed by a dot that belongs to the word
_PUNCTUATION = frozenset(".,;:!?()[]{}\"'…¿¡«»“”„‘’`")  # split off even if the data have none of it
_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


class Splitter(NamedTuple):
    """Rules of word splitting, learned from training sentences given as lists of words.

    Attributes:
        known: training words with a mark, which are not split.
        marks: words without a letter or digit, such as "," and "``".
        clitics: words that begin with an apostrophe, such as "'s", and "n't"; the longest first.
        elisions: words that end with one, such as the French "l'"; the longest first.
        leading: marks that are split off the beginning of a word; None for all.
        trailing: marks that are split off the end of a word; None for all.
        attached: characters inside words besides letters, such as the dot of "jax.numpy".
        separators: marks that split words anywhere; None for all.
        single: whether each Chinese character is a word.
    """

    known: frozenset[str] = frozenset()
    marks: frozenset[str] = frozenset()
    clitics: tuple[str, ...] = ()
    elisions: tuple[str, ...] = ()
    leading: frozenset[str] | None = None
    trailing: frozenset[str] | None = None
    attached: frozenset[str] = frozenset()
    separators: frozenset[str] | None = None
    single: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON, for the facts of a run."""
        return {
            name: sorted(value) if isinstance(value, frozenset) else value for name, value in self._asdict().items()
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Splitter":
        """Return a splitter from the fields of ``to_json``."""
        sequences = {"clitics": tuple, "elisions": tuple}
        values: dict[str, Any] = {
            name: sequences.get(name, frozenset)(value) if isinstance(value, list | tuple) else value
            for name, value in fields.items()
        }
        return cls(**values)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return (begin, end) of each word of a text."""
        spans, begin = [], None
        for i, character in enumerate(text + " "):
            if character.isspace() and character not in self.attached:
                if begin is not None:
                    spans += [(begin + a, begin + b) for a, b in self._pieces(text[begin:i])]
                begin = None
            elif begin is None:
                begin = i
        return spans

    def words(self, text: str) -> list[str]:
        """Return the words of a text."""
        return [text[a:b] for a, b in self.spans(text)]

    def _pieces(self, chunk: str) -> list[tuple[int, int]]:
        """Split the text between two blanks: marks at both ends, clitics, and separators."""
        begin, end = 0, len(chunk)
        head: list[tuple[int, int]] = []
        tail: list[tuple[int, int]] = []
        while not self._is_known(chunk[begin:end]) and (size := self._mark_length(chunk[begin:end], last=False)):
            head.append((begin, begin + size))
            begin += size
        while not self._is_known(chunk[begin:end]) and (size := self._mark_length(chunk[begin:end], last=True)):
            tail.insert(0, (end - size, end))
            end -= size
        word = chunk[begin:end]
        if not self._is_known(word):
            size = next((len(c) for c in self.clitics if word[: -len(c)].isalnum() and word.endswith(c)), 0)
            tail, end = [(end - size, end), *tail] if size else tail, end - size
            size = next((len(e) for e in self.elisions if word.startswith(e) and word[len(e) :][:1].isalnum()), 0)
            head, begin = [*head, (begin, begin + size)] if size else head, begin + size
        return [*head, *self._inner(chunk, begin, end), *tail]

    def _is_known(self, word: str) -> bool:
        return not word or word in self.known

    def _mark_length(self, word: str, last: bool) -> int:
        """Return the length of the mark at the beginning, or end, of a word; 0 for none."""
        edge, split = (word[-1], self.trailing) if last else (word[0], self.leading)
        if not self._is_mark(edge):
            return 0
        if last and edge == "." and "." in self.attached and _ABBREVIATION.fullmatch(word[:-1]):
            return 0
        for size in range(min(3, len(word) - 1), 1, -1):  # "...", "''"
            if (word[-size:] if last else word[:size]) in self.marks:
                return size
        return int(split is None or edge in split)

    def _inner(self, chunk: str, begin: int, end: int) -> list[tuple[int, int]]:
        if self._is_known(chunk[begin:end]):
            return [(begin, end)] if begin < end else []
        pieces, start = [], begin
        for i in range(begin, end):
            if self._splits(chunk[i]):
                pieces += [(start, i)] if start < i else []
                pieces.append((i, i + 1))
                start = i + 1
        return [*pieces, (start, end)] if start < end else pieces

    def _splits(self, character: str) -> bool:
        if self.single and _CJK.match(character):
            return True
        return self._is_mark(character) if self.separators is None else character in self.separators

    def _is_mark(self, character: str) -> bool:
        """Return whether a character is punctuation or a symbol; "_" is a letter if training words have it."""
        return unicodedata.category(character)[0] in "PS" and not (character == "_" and "_" in self.attached)


def learn_splitter(sentences: Iterable[Sequence[str]]) -> Splitter:
    """Learn the splitting rules from sentences given as words.

    Joining the words of a training sentence with blanks and splitting it gives the same words. In other texts,
    punctuation at either end of a word is split off if the data have it as a word. Another mark, such as a dash, is
    split off if it is more often a word than at that end of a longer word. Marks that never occur in longer words split
    words anywhere.
    """
    counts = Counter(word for sentence in sentences for word in sentence)
    frequent = {word for word, count in counts.items() if count >= MIN_COUNT}
    clitics = {word for word in frequent if _CLITIC.fullmatch(word)}
    elisions = {word for word in frequent if _ELISION.fullmatch(word)}
    standalone: Counter[str] = Counter()
    first: Counter[str] = Counter()
    last: Counter[str] = Counter()
    attached: set[str] = set()
    for word, count in counts.items():
        if not any(map(str.isalnum, word)):
            standalone[word] += count
        elif not word.isalnum():
            attached.update(character for character in word if not character.isalnum())
            first[word[0]] += count if word not in clitics else 0
            last[word[-1]] += count
    single_marks = {mark for mark in (*standalone, *_PUNCTUATION) if len(mark) == 1}

    def split_off(mark: str, at_edge: int) -> bool:
        """Return whether a mark is split off, given how many words have it at this end."""
        return not at_edge or standalone[mark] >= at_edge or (mark in _PUNCTUATION and standalone[mark] > 0)

    chinese = [word for word in counts if _CJK.search(word)]
    return Splitter(
        known=frozenset(word for word in counts if not word.isalnum()),
        marks=frozenset(standalone),
        clitics=tuple(sorted(clitics, key=len, reverse=True)),
        elisions=tuple(sorted(elisions, key=len, reverse=True)),
        leading=frozenset(mark for mark in single_marks if split_off(mark, first[mark])),
        trailing=frozenset(mark for mark in single_marks if split_off(mark, last[mark])),
        attached=frozenset(attached),
        separators=frozenset(
            mark for mark in single_marks if standalone[mark] >= MIN_EVIDENCE and mark not in attached
        ),
        single=bool(chinese) and max(map(len, chinese)) == 1,
    )
