"""Files of tagged sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from xlpretrain.data.tables.tagged_words import read_tagged
from xlpretrain.errors import DataError

CONLL = "-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\n\nPeter NNP I-NP B-PER\n"
CONLLU = """# sent_id = 1
1\tElle\til\tPRON\t_\t_\t2\tnsubj\t_\t_
2-3\tva au\t_\t_\t_\t_\t_\t_\t_\t_
2\tva\taller\tVERB\tV\t_\t0\troot\t_\t_
2.1\tvide\t_\tX\t_\t_\t_\t_\t_\t_
3\tà le\tà\tADP\t_\t_\t2\tcase\t_\t_
"""


def _read(path: Path, content: str, *, words: str = "tokens", tags: str = "tags"):
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    return [(found.words, found.tags, found.line) for found in read_tagged(path, words=words, tags=tags)]


def test_columns_of_conll(tmp_path: Path):
    expected = [(("EU", "rejects"), ("B-ORG", "O"), 3), (("Peter",), ("B-PER",), 7)]
    assert _read(tmp_path / "a.conll", CONLL) == expected
    assert _read(tmp_path / "a.txt", CONLL.replace(" ", "\t").replace("\n", "\r\n")) == expected
    assert _read(tmp_path / "b.txt", "EU\nrejects\n\nPeter\n") == [(("EU", "rejects"), None, 1), (("Peter",), None, 4)]


def test_conllu_has_words_without_ranges_and_empty_nodes(tmp_path: Path):
    path = tmp_path / "a.conllu"
    assert _read(path, CONLLU, tags="UPOS") == [(("Elle", "va", "à le"), ("PRON", "VERB", "ADP"), 1)]
    assert _read(path, CONLLU, tags="XPOS")[0][1] == ("_", "V", "_")


def test_json_lines(tmp_path: Path):
    lines = '{"w": ["a", "b"], "ner": ["O", "B-X"]}\n\n{"w": ["c"]}\n{"w": []}\n'
    assert _read(tmp_path / "a.jsonl", lines, words="w", tags="ner") == [
        (("a", "b"), ("O", "B-X"), 1),
        (("c",), None, 3),
    ]


@pytest.mark.parametrize(
    ("name", "content", "tags", "message"),
    [
        ("a.conll", "", "tags", "has no sentences"),
        ("a.conll", "EU B-ORG\nrejects\n", "tags", "line 1: the sentence has 2 words but 1 tags"),
        ("a.conllu", CONLLU, "tags", "in CoNLL-U the tags are in column UPOS or XPOS, got 'tags'"),
        ("a.conllu", "1\tElle\til\n", "UPOS", "line 1: has 3 columns, expected the 10 of CoNLL-U"),
        ("a.jsonl", "{", "tags", "line 1: not JSON"),
        ("a.jsonl", '{"words": ["a"]}', "tags", "line 1: expected an object with the keys 'tokens' and 'tags'"),
        ("a.jsonl", '{"tokens": ["a"], "tags": "O"}', "tags", "'tokens' and 'tags' must be lists of strings"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O", "O"]}', "tags", "has 1 words but 2 tags"),
        ("a.jsonl", '{"tokens": ["a\\ud800"], "tags": ["O"]}', "tags", "line 1: invalid Unicode"),
    ],
)
def test_what_does_not_parse_is_refused(tmp_path: Path, name: str, content: str, tags: str, message: str):
    with pytest.raises(DataError, match=message):
        _read(tmp_path / name, content, tags=tags)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.conll: no such file"):
        read_tagged(tmp_path / "none.conll", words="tokens", tags="tags")
    (tmp_path / "latin.conll").write_bytes("é O\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_tagged(tmp_path / "latin.conll", words="tokens", tags="tags")
