"""Texts of the installed libraries: what counts as one, and that nothing stands on both sides."""

import numpy as np
import pytest

from tl_jax.data import text_datasets
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast

DOCSTRING = """Solve a system ``a @ x = b``.

It uses `lapack.gesv` and *nothing* else, see :func:`solve`.

Parameters
----------
a : ndarray
    Of numbers.

>>> solve(1)
"""


def test_paragraphs_of_prose_only():
    found = text_datasets.paragraphs(DOCSTRING)
    assert found == ["Solve a system ``a @ x = b``.", "It uses `lapack.gesv` and *nothing* else, see :func:`solve`."]
    assert text_datasets.strip_markup(found[1]) == "It uses lapack.gesv and nothing else, see solve."


def test_words_in_code_are_tagged():
    words, tags = text_datasets.tag_code("It uses `lapack.gesv` and *nothing* else, see :func:`solve`.")
    assert words == "It uses lapack . gesv and nothing else , see solve .".split()
    assert tags == [0, 0, 1, 2, 2, 0, 0, 0, 0, 0, 1, 0]
    assert text_datasets.tag_code("no code at all")[1] == [0, 0, 0, 0]


def test_docstrings_of_a_package_that_is_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "made_up"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text('"""Of the package."""\nraise RuntimeError("imported")\n')
    (package / "core.py").write_text(
        'class A:\n    """Of A."""\n\n    def f(self):\n        """Of f."""\n\n\ndef g():\n    pass\n\n\n'
        'add_newdoc("x", """\n    Of what is\n    written in C.\n    """)\n'
    )
    (package / "tests" / "test_a.py").write_text('"""Of a test."""\n')
    (package / "broken.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = text_datasets.docstrings("made_up")
    assert {text for _, text in found} == {"Of the package.", "Of A.", "Of f.", "Of what is\nwritten in C."}
    assert ("made_up.core", "Of f.") in found
    with pytest.raises(UserError, match="no_such_package, .*, is not installed"):
        text_datasets.docstrings("no_such_package")


@pytest.mark.parametrize("name", ["docs", "docs_names"])
def test_sets_have_parts_that_do_not_overlap(name):
    source = text_datasets.load_docstrings(name)
    parts = [source.train, source.validation, source.test]
    texts = [{" ".join(text) if isinstance(text, list) else text for text in part.inputs} for part in parts]
    assert not (texts[0] & texts[2] or texts[0] & texts[1] or texts[1] & texts[2])
    total = sum(map(len, texts))
    assert total > 1500 and 0.15 < len(texts[2]) / total < 0.25
    labels = np.concatenate(
        [np.ravel(np.concatenate(list(p.labels)) if name == "docs_names" else p.labels) for p in parts]
    )
    assert set(labels) == set(range(len(source.classes)))


@pytest.mark.parametrize("content", ["", "[" * 100_000, "[[], []]", '{"a": 1}', "[1, 2, 3]", "[[], [], []]"])
def test_a_damaged_copy_is_made_anew(tmp_path, monkeypatch, content):
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(
        text_datasets, "make_docs", lambda: (["some text", "more of it", "a third"] * 9, [0, 1, 0] * 9, ("a", "b"))
    )
    text_datasets.load_docstrings.__wrapped__("docs")
    (file,) = (tmp_path / "data").glob("docs-*.json")
    file.write_text(content)
    assert text_datasets.load_docstrings.__wrapped__("docs").classes == ("a", "b")
    assert file.read_text() != content


def test_what_was_found_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path))
    first = text_datasets.load_docstrings.__wrapped__("docs")
    monkeypatch.setattr(text_datasets, "make_docs", None)  # not called again
    again = text_datasets.load_docstrings.__wrapped__("docs")
    assert list(first.train.inputs) == list(again.train.inputs) and first.classes == again.classes
    np.testing.assert_array_equal(first.test.labels, again.test.labels)


def test_what_was_kept_and_is_damaged_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path))
    rows = ([f"text {n} about arrays" for n in range(40)], [n % 2 for n in range(40)], ["io", "linalg"])
    calls = []
    monkeypatch.setattr(text_datasets, "make_docs", lambda: calls.append(1) or rows)
    first = text_datasets.load_docstrings.__wrapped__("docs")
    (file,) = (tmp_path / "data").iterdir()
    for old, new in (("text 3 ", "text 7 "), ("}", "")):
        file.write_text(file.read_text().replace(old, new, 1))
        assert list(text_datasets.load_docstrings.__wrapped__("docs").train.inputs) == list(first.train.inputs)
    text_datasets.load_docstrings.__wrapped__("docs")
    assert len(calls) == 3
