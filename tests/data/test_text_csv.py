"""Tables of texts: quoting, columns, labels, parts, and every wrong line by its number."""

import json

import pytest

from edgetl.data.text_csv import TextCsv
from edgetl.errors import BadInput

GOOD = 'text\tlabel\na "good" film\tpos\nbad\tneg\nfine , "half quoted\tpos\n'


def write(folder, **files):
    for name, text in files.items():
        stem, _, suffix = name.partition("_")
        (folder / f"{stem}.{suffix}").write_text(text, encoding="utf-8")
    return folder


def texts(e):
    return [e.read(row).decode() for row in range(len(e.y))]


def test_a_quote_in_a_tsv_is_a_plain_character(tmp_path):
    e = TextCsv(root=write(tmp_path, train_tsv=GOOD)).examples()
    assert texts(e) == ['a "good" film', "bad", 'fine , "half quoted']
    assert (e.labels, e.y.tolist(), e.raw.kind) == (("neg", "pos"), [1, 0, 1], "text")


def test_a_csv_quotes_as_usual(tmp_path):
    write(tmp_path, a_csv='label,text\n1,"one, ""two""\nthree"\n0,four\n')
    e = TextCsv(root=tmp_path / "a.csv").examples()
    assert texts(e) == ['one, "two"\nthree', "four"]
    assert e.describe(1).endswith("a.csv:4")


def test_parts_are_kept_and_labels_sort_by_their_number(tmp_path):
    body = "".join(f"t{i}\t{i}\n" for i in range(11))
    e = TextCsv(root=write(tmp_path, train_tsv="text\tlabel\n" + body, dev_tsv=GOOD[:11] + "a\t10\n")).examples()
    assert e.labels == tuple(map(str, range(11)))
    assert (list(e.parts), e.y[-1]) == (["train", "validation"], 10)


def test_labels_json_gives_names_to_numbers_or_orders_names(tmp_path):
    write(tmp_path, labels_json=json.dumps(["neg", "pos"]), train_tsv="text\tlabel\na\t1\nb\t0\n")
    assert TextCsv(root=tmp_path).examples().y.tolist() == [1, 0]
    write(tmp_path, labels_json=json.dumps(["pos", "neg"]), train_tsv=GOOD)
    assert TextCsv(root=tmp_path).examples().y.tolist() == [0, 1, 0]


def test_columns_are_chosen_by_name(tmp_path):
    write(tmp_path, a_csv="id,query,intent\n1,hello,x\n2,bye,y\n")
    assert texts(TextCsv(root=tmp_path / "a.csv", text="query", label="intent").examples()) == ["hello", "bye"]
    with pytest.raises(BadInput, match="no column 'text'") as caught:
        TextCsv(root=tmp_path / "a.csv").examples()
    assert "data.text" in caught.value.fix


WRONG = {
    "text\tlabel\na\t1\n \t0\n": r"train\.tsv:3: the text is empty",
    "text\tlabel\na\t1\nb\n": r"train\.tsv:3: 1 cells",
    "text\tlabel\na\t1\nb\t\n": r"train\.tsv:3: '' is no label",
    "text\tlabel\n": "holds no rows",
    "": "no column 'text'",
    "text\tlabel\na\t1\nb\t1\n": "1 class",
}


@pytest.mark.parametrize("content", WRONG)
def test_wrong_lines_are_named(tmp_path, content):
    with pytest.raises(BadInput, match=WRONG[content]) as caught:
        TextCsv(root=write(tmp_path, train_tsv=content)).examples()
    assert caught.value.fix


def test_a_label_of_the_test_part_that_train_lacks_is_named_by_line(tmp_path):
    write(tmp_path, train_tsv="text\tlabel\na\t1\nb\t2\n", test_tsv="text\tlabel\nc\t0\n")
    with pytest.raises(BadInput, match=r"test\.tsv:2: '0' is no class"):
        TextCsv(root=tmp_path).examples()


def test_files_that_are_no_tables_are_named(tmp_path):
    (tmp_path / "train.tsv").write_bytes(b"text\tlabel\n\xff\xfe\t1\n")
    with pytest.raises(BadInput, match="UTF-8"):
        TextCsv(root=tmp_path).examples()
    (tmp_path / "train.csv").write_text("text,label\na,1\n")
    with pytest.raises(BadInput, match="both stand for"):
        TextCsv(root=tmp_path).examples()
    (tmp_path / "a.csv").write_text('text,label\n"a"b,1\n')
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    (tmp_path / "a.xlsx").write_bytes(b"")
    for name in ("a.csv", "a.parquet", "a.xlsx", "none.csv"):
        with pytest.raises(BadInput, match=name):
            TextCsv(root=tmp_path / name).examples()


def test_parquet_reads_like_tsv(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"text": ["a", "b", "c"], "label": [1, 0, 1]})
    parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    e = TextCsv(root=tmp_path).examples()
    assert (texts(e), e.labels, e.y.tolist()) == (["a", "b", "c"], ("0", "1"), [1, 0, 1])
    write(tmp_path, b_csv="text,label\na,1\nb,0\nc,1\n")
    assert TextCsv(root=tmp_path / "b.csv").examples().digest == e.digest
    parquet.write_table(pyarrow.table({"text": [None, "b"], "label": [1, 0]}), tmp_path / "c.parquet")
    with pytest.raises(BadInput, match="row 0: the text is NoneType"):
        TextCsv(root=tmp_path / "c.parquet").examples()
