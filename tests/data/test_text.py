"""Files of texts: what is read of each kind, real ones counted, and bad ones refused with file and line."""

import csv
import io
import json

import numpy as np
import pytest

from tl_jax.data import text
from tl_jax.data.text import Columns
from tl_jax.utils.errors import UserError

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
    found = text.read_text_dataset(tmp_path, "tsv", PLAIN)
    assert found.classes == ("no", "yes") and found.test_origin == "test"
    assert list(found.train.inputs) == ['a "good', "bad", "so so"]
    np.testing.assert_array_equal(found.train.labels, [1, 0, 0])
    assert list(found.test.inputs) == ["fine"] and list(found.validation.inputs) == ["poor"]
    assert found.train.labels.dtype == np.int32


def test_csv_has_quotes_and_names_in_its_first_line(tmp_path):
    write(
        tmp_path,
        train_csv='\ufeffclass,title,body\n10,"a, ""b""","two\nlines"\n9,c,d\n',
        test_csv="class,title,body\n9,e,f\n",
    )
    found = text.read_text_dataset(tmp_path, "csv", Columns((), ("title", "body"), "class"))
    assert found.classes == ("9", "10")  # by their values
    assert list(found.train.inputs) == [('a, "b"', "two\nlines"), ("c", "d")]


def test_json_lines(tmp_path):
    write(tmp_path, train_jsonl='{"text": "a\\u2028b", "label": 1}\n{"label": 0, "text": "c", "more": []}\n')
    with pytest.raises(UserError, match="to hold out a fifth"):  # one example a class
        text.read_text_dataset(tmp_path, "jsonl")
    write(tmp_path, test_jsonl='{"text": "d", "label": 0}')
    assert list(text.read_text_dataset(tmp_path, "jsonl").train.inputs) == ["a\u2028b", "c"]


def test_conll_columns_become_sentences(tmp_path):
    write(
        tmp_path,
        train_txt="-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\n\nPeter NNP I-NP B-PER\n",
        test_txt="EU\tB-ORG\n",
    )
    found = text.read_text_dataset(tmp_path, "conll")
    assert found.classes == ("O", "B-ORG", "B-PER")
    assert list(found.train.inputs) == [["EU", "rejects"], ["Peter"]]
    assert [tags.tolist() for tags in found.train.labels] == [[1, 0], [2]]


def test_of_a_single_file_a_fifth_is_held_out(tmp_path):
    lines = [f"text {i}\t{i % 2}" for i in range(20)]
    write(tmp_path, all_tsv="\n".join(lines))
    found = text.read_text_dataset(tmp_path / "all.tsv", "tsv", PLAIN)
    assert len(found.train.labels) == 16 and len(found.test.labels) == 4 and found.test.labels.sum() == 2
    assert not set(found.train.inputs) & set(found.test.inputs)
    tagged = write(tmp_path, some_conll="\n\n".join(f"w{i} {'OB'[i % 2]}" for i in range(10)))
    found = text.read_text_dataset(tagged / "some.conll", "conll")
    assert len(found.train.labels) == 8 and len(found.test.labels) == 2


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("tsv", {}, "has no train.tsv"),
        ("tsv", {"train_tsv": ""}, "train.tsv: empty"),
        ("tsv", {"train_tsv": "a\t1\n\nb\n"}, r"train.tsv:3: 1 columns, not 2 \(text, label\)"),
        ("csv", {"train_csv": "a,1\nb, c,2\n"}, r"train.csv:2: 3 columns, not 2 \(text, label\)"),
        ("tsv", {"train_tsv": "a\t1\nb\t\n"}, "train.tsv:2: no label in the column 'label'"),
        ("conll", {"train_conll": "a O\nb B-X\n\nc O\nd FOO\n"}, "train.conll:5: tag 'FOO' among tags such as B-X"),
        ("tsv", {"train_tsv": "a\t1\nb\t1\n"}, "all labels are '1'"),
        ("tsv", {"train_tsv": b"a\t1\nb\xff\t2\n"}, "train.tsv, line 2: not UTF-8 .byte 0xff.*LATIN1"),
        (
            "tsv",
            {"train_tsv": "a\t1\nb\t2\n", "test_tsv": "c\t1\nd\t3\n"},
            "test.tsv:2: label '3' is not in the training split",
        ),
        ("csv", {"train_csv": 'a,1\n"b,2\n'}, "train.csv:3: .*correct the quotes"),
        ("jsonl", {"train_jsonl": '{"text": "a", "label": 1}\n{"text"'}, "train.jsonl:2: not JSON"),
        ("jsonl", {"train_jsonl": "[1]"}, "train.jsonl:1: list, not an object"),
        ("jsonl", {"train_jsonl": '{"text": ' + "[" * 100_000}, "train.jsonl:1: not JSON .maximum recursion depth"),
        (
            "jsonl",
            {"train_jsonl": '{"sentence": "a"}'},
            r"no column 'text' \(columns: sentence\); set config.data.text",
        ),
        ("csv", {"train_csv": "a,1,x\nb,2,x\n"}, r"3 columns in each line, but config.data.columns has 2 \(text"),
        ("conll", {"train_txt": "EU B-ORG\n\nrejects\n"}, "train.txt:3: one column, 'rejects'"),
        ("conll", {"train_txt": "EU B-ORG\nis O\n", "test_txt": "\na O\nb I-LOC\n"}, "test.txt:3: label 'I-LOC'"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path, kind, files, message):
    with pytest.raises(UserError, match=message):
        text.read_text_dataset(write(tmp_path, **files), kind, PLAIN)


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no folder or file .*nowhere"):
        text.read_text_dataset(tmp_path / "nowhere", "tsv")


def rows(*labels, text="t{}"):
    """Return lines of a CSV file without names, a text and a label each."""
    return "".join(f"{text.format(i)},{label}\n" for i, label in enumerate(labels))


def jsonl(*objects):
    return "".join(json.dumps(each) + "\n" for each in objects)


GOOD = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(10)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_in_the_encodings_of_excel(tmp_path, encoding):
    content = "text\tlabel\ncafé\ta\nx\tb\n".encode(encoding)
    found = text.read_text_dataset(write(tmp_path, train_tsv=content, test_tsv=content), "tsv")
    assert list(found.train.inputs) == ["café", "x"] == list(found.test.inputs)


@pytest.mark.parametrize("kind, separator", [("csv", ";"), ("csv", "\t"), ("csv", ", "), ("tsv", ",")])
def test_columns_are_found_whatever_separates_them(tmp_path, kind, separator):
    lines = [separator.join(row) for row in (("text", "label"), ('"a, b; c"', "x"), ("d", "y"))]
    files = {f"{split}_{kind}": "\n".join(lines) for split in ("train", "test")}
    found = text.read_text_dataset(write(tmp_path, **files), kind)
    assert found.classes == ("x", "y") and list(found.train.inputs) == ["a, b; c", "d"]


def test_a_tsv_as_pandas_writes_it_has_no_quotes_left(tmp_path):
    stream, values = io.StringIO(), ['He said "hi"', "two\nlines", "a\ttab", "plain"]
    writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
    writer.writerows([("text", "label"), *zip(values, "abab", strict=True)])
    write(tmp_path, train_tsv=stream.getvalue(), test_tsv='text\tlabel\nHe said "hi"\ta\n"hi"\tb\n')
    found = text.read_text_dataset(tmp_path, "tsv")
    assert list(found.train.inputs) == values
    assert list(found.test.inputs) == ['He said "hi"', '"hi"']  # a raw file, whose quotes are text


def test_a_tsv_with_all_texts_in_quotes_has_none_left(tmp_path):
    content = '"text"\t"label"\n"a ""b"""\t1\n"c"\t0\n'
    found = text.read_text_dataset(write(tmp_path, train_tsv=content, test_tsv=content), "tsv")
    assert list(found.train.inputs) == ['a "b"', "c"]


def test_a_text_may_be_as_long_as_a_book(tmp_path):
    book = "word " * 40_000
    write(tmp_path, train_csv=f'"{book}",a\nx,b\n', test_csv="x,b\n")
    assert text.read_text_dataset(tmp_path, "csv", PLAIN).train.inputs[0] == book


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"version": 1, "data": rows}])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_read(tmp_path, wrap, indent):
    write(tmp_path, train_json=json.dumps(wrap(GOOD), indent=indent), test_json=jsonl(*GOOD))
    assert list(text.read_text_dataset(tmp_path, "jsonl").train.inputs) == [row["text"] for row in GOOD]


def test_a_line_of_a_json_array_is_named(tmp_path):
    write(tmp_path, train_json=json.dumps([*GOOD, {"text": None, "label": "a"}], indent=1))
    with pytest.raises(UserError, match=r"train.json:42: the text in 'text' is null"):
        text.read_text_dataset(tmp_path, "jsonl")


@pytest.mark.parametrize("note", ["[" * 100_000, [[[["x"]]]] and {"a": [[1, 2], {"b": "{[,:}"}]}])
def test_what_stands_before_a_json_array_is_passed_over(tmp_path, note):
    """A bracket in a text is none, and a hundred thousand of them are no array to go down into."""
    rows = {"note": note, "rows": [*GOOD, {"text": None, "label": "a"}]}
    write(tmp_path, train_json=json.dumps(rows, indent=1))
    line = json.dumps(rows, indent=1).split('"text": null')[0].count("\n")
    with pytest.raises(UserError, match=rf"train.json:{line}: the text in 'text' is null"):
        text.read_text_dataset(tmp_path, "jsonl")


def test_numbers_of_words_and_tags_are_bounded(tmp_path):
    many = "".join(f"{i + 1}\tword{i}\t{'B-X' if i else 'O'}\n" for i in range(9))
    for head in (f"{'1' * 5000}\tword\tB-X\n", f"{'1' * 5000}-{'2' * 5000}\ta\tB-X\n", "²\ta\tB-X\n"):
        write(tmp_path, train_conll=f"{head}{many}", test_conll=many)
        assert len(text.read_text_dataset(tmp_path, "conll").train.labels) == 1
    write(tmp_path, train_conll=many + f"a\tword\t{'B-' + 'x' * 5000}\n", test_conll=many)
    with pytest.raises(UserError, match="train.conll: 1 labels have more than 1,000 characters"):
        text.read_text_dataset(tmp_path, "conll")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None, "label": "a"}, "the text in 'text' is null"),
        ({"text": ["a", "b"], "label": "a"}, "the text in 'text' is a list"),
        ({"text": True, "label": "a"}, "the text in 'text' is true"),
        ({"text": " ", "label": "a"}, "the text in 'text' is empty"),
        ({"text": "q", "label": None}, "the label in 'label' is null"),
        ({"text": "q", "label": ["a"]}, "the label in 'label' is a list"),
        ({"text": "q", "label": {"a": 1}}, "the label in 'label' is a dict"),
        ({"text": "q", "label": False}, "the label in 'label' is false"),
        ({"text": "q", "label": float("nan")}, "the label in 'label' is nan"),
        ({"text": "q", "label": ""}, "no label in the column 'label'"),
    ],
)
def test_what_is_no_text_and_no_label_is_refused(tmp_path, row, message):
    write(tmp_path, train_jsonl=jsonl(*GOOD, row), test_jsonl=jsonl(*GOOD))
    with pytest.raises(UserError, match=f"train.jsonl:11: {message}"):
        text.read_text_dataset(tmp_path, "jsonl")


def test_all_damaged_lines_are_named_at_once(tmp_path):
    write(tmp_path, train_csv="a,1\n,2\nb,\nc,2\nd\n" + "e\n" * 7)
    with pytest.raises(UserError, match=r"train.csv:5: 1 columns.*8 invalid lines; also line 6: .*, \.\.\."):
        text.read_text_dataset(tmp_path, "csv", PLAIN)
    write(tmp_path, train_csv="a,1\n,2\nb,\nc,2\n")
    with pytest.raises(UserError, match=r"csv:2: the text .* is empty.*\(2 invalid lines; also line 3: no label"):
        text.read_text_dataset(tmp_path, "csv", PLAIN)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["0.0", "1.0", "2.0", "10.0"], ("0.0", "1.0", "2.0", "10.0")),
        (["1", "1.0", "0", "0.0"], ("0", "1")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["²", "1", "2"], ("1", "2", "²")),
        (["--1", "1"], ("--1", "1")),
        (["cafe\u0301", "café", "x"], ("café", "x")),
        (["01", "02"], ("01", "02")),
        (["1" * 40, "1" * 39 + "2", "1e99"], ("1" * 40, "1" * 39 + "2", "1e99")),  # more digits than a float has
    ],
)
def test_numbers_are_one_class_by_value_and_names_by_spelling(tmp_path, labels, classes):
    write(tmp_path, train_csv=rows(*labels), test_csv=rows(labels[0]))
    found = text.read_text_dataset(tmp_path, "csv", PLAIN)
    assert found.classes == classes


def test_numbers_that_pandas_turned_into_fractions_are_the_same_classes(tmp_path):
    write(tmp_path, train_csv=rows("0", "1"), test_csv=rows("1.0", "0.0"))
    assert text.read_text_dataset(tmp_path, "csv", PLAIN).test.labels.tolist() == [1, 0]


def test_json_labels_as_text_and_as_numbers_are_the_same_classes(tmp_path):
    write(tmp_path, train_jsonl=jsonl(*({"text": "t", "label": str(i % 2)} for i in range(4))))
    write(tmp_path, test_jsonl=jsonl({"text": "t", "label": 1}, {"text": "t", "label": 0.0}))
    assert text.read_text_dataset(tmp_path, "jsonl").test.labels.tolist() == [1, 0]


@pytest.mark.parametrize("files", [{}, {"test_csv": rows("0.101")}])
def test_quantities_as_labels_are_refused(tmp_path, files):
    write(tmp_path, train_csv=rows(*(f"{0.1 + i / 1000:.3f}" for i in range(60))), **files)
    with pytest.raises(UserError, match="60 different numbers as labels.*so they are quantities"):
        text.read_text_dataset(tmp_path, "csv", PLAIN)


def test_a_gap_among_numbers_is_refused(tmp_path):
    write(tmp_path, train_csv=rows("0", "1", "nan"), test_csv=rows("0"))
    with pytest.raises(UserError, match="1 labels are 'nan', but the others are numbers"):
        text.read_text_dataset(tmp_path, "csv", PLAIN)


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("Train.csv", "valid.csv", "TEST.csv"), ("training.csv", "eval.csv", "testing.csv"),
        ("train.csv", "development.csv", "holdout.csv"), ("TRAIN.CSV", "val.csv", "test.csv"),
    ],
)  # fmt: skip
def test_splits_are_found_under_their_usual_names(tmp_path, train, validation, test):
    for i, name in enumerate((train, validation, test)):
        (tmp_path / name).write_text(rows(*"ab" * (i + 1)))
        (tmp_path / f"._{name}").write_bytes(b"\0\1")  # macOS leaves these
    found = text.read_text_dataset(tmp_path, "csv", PLAIN)
    assert [len(split.labels) for split in (found.train, found.validation, found.test)] == [2, 4, 6]


def test_two_files_of_one_split_are_refused(tmp_path):
    write(tmp_path, train_csv=rows(*"ab"), dev_csv=rows(*"ab"), val_csv=rows(*"ab"))
    with pytest.raises(UserError, match="dev.csv and val.csv are both of the validation split"):
        text.read_text_dataset(tmp_path, "csv", PLAIN)


def test_files_of_other_names_are_listed(tmp_path):
    write(tmp_path, reviews_csv=rows(*"ab"), more_csv=rows(*"ab"))
    with pytest.raises(UserError, match=r"has no train.csv \(there: more.csv, reviews.csv\); .*or pass a single file"):
        text.read_text_dataset(tmp_path, "csv", PLAIN)


@pytest.mark.parametrize(
    ("kind", "train", "test"),
    [
        ("csv", "text,label\na,x\nb,y\n", "text\nq\nw\n"),
        ("jsonl", jsonl(*GOOD), jsonl({"text": "q"})),
        ("csv", "text,label\na,0\nb,1\n", "text,label\nq,-1\nw,-1\n"),
        ("conll", "a O\nb B-X\n", "q\nw\n"),
    ],
)
def test_a_test_file_without_labels_is_for_predict(tmp_path, kind, train, test):
    write(tmp_path, **{f"train_{kind}": train, f"test_{kind}": test})
    with pytest.raises(UserError, match=f"test.{kind}.* predict from"):
        text.read_text_dataset(tmp_path, kind)


def test_two_columns_of_one_name_are_refused(tmp_path):
    write(tmp_path, train_csv="text,label,label\na,x,1\n")
    with pytest.raises(UserError, match="two columns are named 'label'; rename one"):
        text.read_text_dataset(tmp_path, "csv")


def test_names_in_the_first_line_are_no_example(tmp_path):
    write(tmp_path, train_csv="text,label\na,x\nb,y\n", test_csv="c,x\n")
    assert list(text.read_text_dataset(tmp_path, "csv", PLAIN).train.inputs) == ["a", "b"]


def test_a_header_with_other_names_is_no_example(tmp_path):
    write(tmp_path, train_csv="text,label\na,x\nb,y\nc,x\n", test_csv="c,x\n")
    with pytest.raises(UserError, match=r"train.csv: the header \(text, label\) has no column 'sentence'"):
        text.read_text_dataset(tmp_path, "csv", Columns(("sentence", "label"), ("sentence",)))
    write(tmp_path, train_csv="what a label,label\na,x\nb,label\n")  # a class of that name
    found = text.read_text_dataset(tmp_path, "csv", Columns(("sentence", "label"), ("sentence",)))
    assert found.classes == ("label", "x")


@pytest.mark.parametrize("content", ["text\na\nb\n", "id,text\n7,a\n8,b\n", "label,text\nx,a\ny,b\n"])
def test_a_file_to_predict_may_name_its_columns_where_training_files_do_not(tmp_path, content):
    file = write(tmp_path, q_csv=content) / "q.csv"
    found = text.read_unlabelled(file, "csv", PLAIN)
    assert [example.text for example in found] == ["a", "b"]


# CoNLL columns
TAIL = "a O\nb B-LOC\n\n" * 5
SIDE = {"test_conll": "q O\nw B-LOC\n"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("New York\tB-LOC\nis\tO\n\n" + TAIL, ["New York", "is"]),
        ("New\u00a0York B-LOC\nis O\n\n" + TAIL, ["New\u00a0York", "is"]),
        ("# O\nYork B-LOC\n\n" + TAIL, ["#", "York"]),
        ("1\tNew\tO\n2\tYork\tB-LOC\n\n" * 3, ["New", "York"]),
        ("# text = New York\n1\tNew\tO\n2-3\tdu\tO\n2\tYork\tB-LOC\n\n" * 3, ["New", "York"]),
        ("New O\r\nYork B-LOC\r\n\r\nis O\r\n", ["New", "York"]),
        ("7 O\nYork B-LOC\n\n" + TAIL, ["7", "York"]),
    ],
)
def test_words_are_the_column_that_holds_them(tmp_path, content, words):
    found = text.read_text_dataset(write(tmp_path, train_conll=content, **SIDE), "conll")
    assert found.train.inputs[0] == words and found.classes == ("O", "B-LOC")


GERMEVAL = "#\thttp://x\n1\tNew\tB-LOC\tO\n2\tYork\tI-LOC\tB-LOC\n\n" * 5


def test_columns_are_named_where_they_are_not_certain(tmp_path):
    write(tmp_path, train_conll=GERMEVAL, test_conll=GERMEVAL)
    with pytest.raises(UserError, match="first of 4 columns numbers the words.*config.data.columns="):
        text.read_text_dataset(tmp_path, "conll")
    found = text.read_text_dataset(tmp_path, "conll", Columns(("id", "word", "outer", "inner"), ("word",), "outer"))
    assert found.train.inputs[0] == ["New", "York"] and found.classes == ("O", "B-LOC", "I-LOC")[1:]
    with pytest.raises(UserError, match="no column 'label' among config.data.columns"):
        text.read_text_dataset(tmp_path, "conll", Columns(("id", "word", "outer", "inner"), ("word",)))


def test_a_line_with_a_missing_column_is_refused(tmp_path):
    write(tmp_path, train_conll="EU NNP B-ORG\nrejects VBZ\n10 000 CD O\n")
    with pytest.raises(UserError, match=r"train.conll:2: 2 columns, not 3.*2 invalid lines; also line 3"):
        text.read_text_dataset(tmp_path, "conll")


def test_conll_2003_is_read_under_its_own_names(tmp_path):
    for name, size in (("eng.train", 3), ("eng.testa", 2), ("eng.testb", 1)):
        (tmp_path / name).write_text("-DOCSTART- -X- O O\n\n" + "EU NNP I-NP B-ORG\nis VBZ I-VP O\n\n" * size)
    found = text.read_text_dataset(tmp_path, "conll")
    assert [len(split.labels) for split in (found.train, found.validation, found.test)] == [3, 2, 1]


def test_a_longer_entity_of_a_known_kind_may_be_in_test_only(tmp_path):
    found = text.read_text_dataset(write(tmp_path, train_conll=TAIL, test_conll="q B-LOC\nw I-LOC\n"), "conll")
    assert found.classes == ("O", "B-LOC", "I-LOC") and found.test.labels[0].tolist() == [1, 2]
    for other in ("q B-PER\nw O\n", "q S-LOC\nw O\n"):  # another kind, another scheme
        with pytest.raises(UserError, match="test.conll:1: label '.-...' is not in the training split"):
            text.read_text_dataset(write(tmp_path, test_conll=other), "conll")


def test_real_sets_have_their_published_sizes(data_dir):
    def sizes(source):
        return [len(part.labels) for part in (source.train, source.validation, source.test) if part]

    sst2 = text.read_text_dataset(data_dir / "text" / "sst2", "tsv", PLAIN)
    assert sizes(sst2) == [6920, 872, 1821] and sst2.classes == ("0", "1")
    trec = text.read_text_dataset(data_dir / "text" / "trec6", "tsv", Columns(("label", "text")))
    assert sizes(trec) == [5452, 500] and np.bincount(trec.train.labels)[2] == 86
    ner = text.read_text_dataset(data_dir / "text" / "wikiann_en", "conll")
    assert sizes(ner) == [20000, 10000, 10000] and len(ner.classes) == 7 and ner.classes[0] == "O"
    assert sum(map(len, ner.train.inputs)) == 160_394
    assert sum(name.startswith("B-") for tags in ner.test.labels for name in np.array(ner.classes)[tags]) == 13_958
    news = text.read_text_dataset(
        data_dir / "text" / "ag_news_test.csv", "csv", Columns(("class", "title", "body"), ("title", "body"), "class")
    )
    assert sizes(news) == [6080, 1520] and news.classes == ("1", "2", "3", "4")
