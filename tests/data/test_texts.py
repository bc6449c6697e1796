"""Files of texts: what is read of each kind, real ones counted, and bad ones refused with file and line."""

import numpy as np
import pytest

from tl_jax.data import texts
from tl_jax.data.texts import Columns
from tl_jax.errors import UserError

pytestmark = pytest.mark.fast
PLAIN = Columns(("text", "label"))


def write(folder, **files):
    """Write files by name, with ``_`` for the dot; return the folder."""
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


def test_tsv_takes_quotes_as_they_are(tmp_path):
    write(tmp_path, train_tsv='a "good\tyes\r\nbad\tno\n\nso so\tno', test_tsv="fine\tyes\n", dev_tsv="poor\tno\n")
    found = texts.read(tmp_path, "tsv", PLAIN)
    assert found.classes == ("no", "yes") and found.tested == "test"
    assert list(found.train.images) == ['a "good', "bad", "so so"]
    np.testing.assert_array_equal(found.train.labels, [1, 0, 0])
    assert list(found.test.images) == ["fine"] and list(found.validation.images) == ["poor"]
    assert found.train.labels.dtype == np.int32


def test_csv_has_quotes_and_names_in_its_first_line(tmp_path):
    write(
        tmp_path,
        train_csv='\ufeffclass,title,body\n10,"a, ""b""","two\nlines"\n9,c,d\n',
        test_csv="class,title,body\n9,e,f\n",
    )
    found = texts.read(tmp_path, "csv", Columns((), ("title", "body"), "class"))
    assert found.classes == ("9", "10")  # by their values
    assert list(found.train.images) == [('a, "b"', "two\nlines"), ("c", "d")]


def test_json_lines(tmp_path):
    write(tmp_path, train_jsonl='{"text": "a\\u2028b", "label": 1}\n{"label": 0, "text": "c", "more": []}\n')
    with pytest.raises(UserError, match="to hold out a fifth"):  # one example a class
        texts.read(tmp_path, "jsonl")
    write(tmp_path, test_jsonl='{"text": "d", "label": 0}')
    assert list(texts.read(tmp_path, "jsonl").train.images) == ["a\u2028b", "c"]


def test_conll_columns_become_sentences(tmp_path):
    write(
        tmp_path,
        train_txt="-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\n\nPeter NNP I-NP B-PER\n",
        test_txt="EU\tB-ORG\n",
    )
    found = texts.read(tmp_path, "conll")
    assert found.classes == ("O", "B-ORG", "B-PER")
    assert list(found.train.images) == [["EU", "rejects"], ["Peter"]]
    assert [tags.tolist() for tags in found.train.labels] == [[1, 0], [2]]


def test_of_a_single_file_a_fifth_is_held_out(tmp_path):
    lines = [f"text {i}\t{i % 2}" for i in range(20)]
    write(tmp_path, all_tsv="\n".join(lines))
    found = texts.read(tmp_path / "all.tsv", "tsv", PLAIN)
    assert len(found.train.labels) == 16 and len(found.test.labels) == 4 and found.test.labels.sum() == 2
    assert not set(found.train.images) & set(found.test.images)
    tagged = write(tmp_path, some_conll="\n\n".join(f"w{i} {'OB'[i % 2]}" for i in range(10)))
    found = texts.read(tagged / "some.conll", "conll")
    assert len(found.train.labels) == 8 and len(found.test.labels) == 2


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("tsv", {}, "has no train.tsv"),
        ("tsv", {"train_tsv": ""}, "train.tsv is empty"),
        ("tsv", {"train_tsv": "a\t1\n\nb\n"}, r"train.tsv:3: 1 columns, not 2 \(text, label\)"),
        ("csv", {"train_csv": "a,1\nb, c,2\n"}, r"train.csv:2: 3 columns, not 2 \(text, label\)"),
        ("tsv", {"train_tsv": "a\t1\nb\t\n"}, "train.tsv:2: no label in the column 'label'"),
        ("conll", {"train_conll": "a O\nb B-X\n\nc O\nd FOO\n"}, "train.conll:5: tag 'FOO' among tags such as B-X"),
        ("tsv", {"train_tsv": "a\t1\nb\t1\n"}, "a single label, '1'"),
        ("tsv", {"train_tsv": b"a\t1\nb\xff\t2\n"}, "train.tsv:2: byte 2 is not UTF-8"),
        ("tsv", {"train_tsv": "a\t1\nb\t2\n", "test_tsv": "c\t1\nd\t3\n"}, "test.tsv:2: label '3' is never seen"),
        ("csv", {"train_csv": 'a,1\n"b,2\n'}, "train.csv:3: .*mend its quotes"),
        ("jsonl", {"train_jsonl": '{"text": "a", "label": 1}\n{"text"'}, "train.jsonl:2: not JSON"),
        ("jsonl", {"train_jsonl": "[1]"}, "train.jsonl:1: list, not an object"),
        ("jsonl", {"train_jsonl": '{"sentence": "a"}'}, r":1: no column 'text' \(there are sentence\)"),
        ("conll", {"train_txt": "EU B-ORG\n\nrejects\n"}, "train.txt:3: one column, 'rejects'"),
        ("conll", {"train_txt": "EU B-ORG\nis O\n", "test_txt": "\na O\nb I-LOC\n"}, "test.txt:3: label 'I-LOC'"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path, kind, files, message):
    with pytest.raises(UserError, match=message):
        texts.read(write(tmp_path, **files), kind, PLAIN)


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no folder or file .*nowhere"):
        texts.read(tmp_path / "nowhere", "tsv")


def test_real_sets_have_their_published_sizes(data_dir):
    def sizes(source):
        return [len(part.labels) for part in (source.train, source.validation, source.test) if part]

    sst2 = texts.read(data_dir / "text" / "sst2", "tsv", PLAIN)
    assert sizes(sst2) == [6920, 872, 1821] and sst2.classes == ("0", "1")
    trec = texts.read(data_dir / "text" / "trec6", "tsv", Columns(("label", "text")))
    assert sizes(trec) == [5452, 500] and np.bincount(trec.train.labels)[2] == 86
    ner = texts.read(data_dir / "text" / "wikiann_en", "conll")
    assert sizes(ner) == [20000, 10000, 10000] and len(ner.classes) == 7 and ner.classes[0] == "O"
    assert sum(map(len, ner.train.images)) == 160_394
    assert sum(name.startswith("B-") for tags in ner.test.labels for name in np.array(ner.classes)[tags]) == 13_958
    news = texts.read(
        data_dir / "text" / "ag_news_test.csv", "csv", Columns(("class", "title", "body"), ("title", "body"), "class")
    )
    assert sizes(news) == [6080, 1520] and news.classes == ("1", "2", "3", "4")
