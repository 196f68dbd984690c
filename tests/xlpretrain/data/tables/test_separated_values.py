"""TSV is read as whoever wrote it meant its quotes, and CSV by the separator it has."""

from __future__ import annotations

import csv
import io
import random

import pytest

from xlpretrain.data.tables.separated_values import read_separated
from xlpretrain.errors import DataError

WORDS = ["a", "the film", '"', '""', 'he said " no "', '" Yes , " she said .', '"quoted"', "it's", "", "100 %"]


def _rows(count: int, *, seed: int, words: list[str] = WORDS) -> list[tuple[str, ...]]:
    rng = random.Random(seed)
    return [(str(i), " ".join(rng.choices(words, k=3)), rng.choice(words), str(rng.randrange(2))) for i in range(count)]


HEADER = ("index", "#1 String", "#2 String", "Quality")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("seed", range(20))
def test_tsv_without_quoting_keeps_every_row_and_every_quote(seed: int, end: str):
    rows = [HEADER, *_rows(60, seed=seed)]
    content = "".join("\t".join(row) + end for row in rows)
    found = read_separated(content, "\t", "a.tsv")
    assert [fields for _, fields in found] == rows
    assert [line for line, _ in found] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("seed", range(20))
def test_tsv_with_quoting_is_what_was_written(seed: int, quoting: int):
    rows = [HEADER, *_rows(60, seed=seed, words=[*WORDS, "a\ttab", "two\nlines", 'a "line"\r\nmore'])]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter="\t", quoting=quoting, lineterminator="\n").writerows(rows)
    assert [fields for _, fields in read_separated(out.getvalue(), "\t", "a.tsv")] == rows


def test_what_reads_either_way_is_read_as_text_with_a_row_per_line():
    two = 'text\tlabel\n"It begins\tpos\nand ends"\tneg\n'  # quoted, it would be one row of three fields
    assert [row for _, row in read_separated(two, "\t", "")] == [
        ("text", "label"), ('"It begins', "pos"), ('and ends"', "neg"),
    ]  # fmt: skip
    merged = 'label\ttext\n1\t"foo\n1\tbar"\n'  # quoted, it would be one row of two fields
    assert [row for _, row in read_separated(merged, "\t", "")] == [
        ("label", "text"), ("1", '"foo'), ("1", 'bar"'),
    ]  # fmt: skip
    whole = 'text\tlabel\n"A quotation."\tpos\nText.\tneg\n'
    assert read_separated(whole, "\t", "")[1][1] == ('"A quotation."', "pos")


def test_the_separator_is_the_one_in_the_first_line():
    for separator in ",;\t":
        assert read_separated(f"text{separator}label\nx{separator}1\n", ",", "a.csv")[1] == (2, ("x", "1"))
    assert read_separated('"a;b","c;d"\n1,2\n', ",", "a.csv")[0][1] == ("a;b", "c;d")
    with pytest.raises(DataError, match=r"a\.csv: line 2: unexpected end of data"):
        read_separated('text;label\nx;"1\n', ",", "a.csv")
