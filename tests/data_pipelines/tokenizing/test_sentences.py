from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizing.config import SentenceConfig
from data_pipelines.tokenizing.sentences import split_sentences

TEXT_WITH_ENDS = st.text(alphabet=st.sampled_from("aB. !?\n\r\t。é\u2028\xa0\u3000"))


LISTS = st.lists(
    st.sampled_from(
        ["1. ", "2) ", "(3) ", "a. ", "\t- ", "• ", "iv.) ", "It is so. ", "„It", "is“ ", "\n", "\n\n", "word "]
    )
).map("".join)
CODES = (
    "am ar bg bn ca da de el en es fa fi fr gu he hi it ja kk kn ko ml mr my nl pa pl pt ru sk sv ta te th tr uk vi zh"
)


@pytest.mark.parametrize("config", [{}, {"splitter": "lines"}, {"line_ends": True}, {"language": "de"}])
@given(text=st.one_of(st.text(), TEXT_WITH_ENDS, LISTS))
def test_sentences_joined_are_the_document(config: dict, text: str):
    assert "".join(split_sentences(text, SentenceConfig(**config))) == text


def lines_with(*pair: str) -> str:
    """80 sentences, one a line, of which two are given."""
    lines = [f"Her {word} number {n} was old." for n, word in zip(range(80), cycle(["house", "tree", "river"]))]
    lines[10], lines[70] = pair
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("language", CODES.split())
@pytest.mark.parametrize(
    "pair",
    [
        ("1. She was late.", "2. She was early."),
        ("1) She was late.", "2) She was early."),
        ("1.) She was late.", "2.) She was early."),
        ("(1) She was late.", "(b) She was early."),
        ("a. She was late.", "b. She was early."),
        ("ii. She was late.", "iii. She was early."),
        ("- She was late.", "- She was early."),
        ("• She was late.", "She was early."),
        ("1. She was late.", "She was early."),
        ('She was 5" tall.', 'She was 6" tall.'),
        ("She (was late.", "She was) early."),
        ("She was “late.", "She was” early."),
    ],
    ids=" ".join,
)
def test_neither_list_markers_nor_stray_quotes_join_lines(language: str, pair: tuple[str, str]):
    text = lines_with(*pair)
    for line_ends in (False, True):
        sentences = split_sentences(text, SentenceConfig(language=language, line_ends=line_ends))
        assert sentences == text.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("1. One. Two.\n2. Three. Four.\n", ["1. One. ", "Two.\n", "2. Three. ", "Four.\n"]),
        ("He came\n- late. So\n- early.\nIt is.", ["He came\n", "- late. ", "So\n", "- early.\n", "It is."]),
        ("1. One\nmore line.\n2. Two", ["1. One\nmore line.\n", "2. Two"]),
        (
            "It is 1. Then two. (a) Three. (b) Four. Five.",
            ["It is 1. ", "Then two. ", "(a) Three. ", "(b) Four. ", "Five."],
        ),
        ("1. a) One.\n   b) Two.\n2. Three.", ["1. a) One.\n   ", "b) Two.\n", "2. Three."]),
        ("1. One.\n\n2. Two.\n\n", ["1. One.\n\n", "2. Two.\n\n"]),
        ('She said: "I came.\nI saw." He left.', ['She said: "I came.\n', 'I saw." ', "He left."]),
        ("She saw (and\nwas seen by) him. He left.", ["She saw (and\nwas seen by) him. ", "He left."]),
        ("She came in\n1999. Then she left.", ["She came in\n1999. ", "Then she left."]),
    ],
)
def test_the_sentences_of_list_items_and_quotes(text: str, sentences: list[str]):
    assert split_sentences(text, SentenceConfig()) == sentences


def test_line_ends_end_sentences_only_if_it_is_said():
    text = "A title\nThis is wrapped\nat some width. And\nthis.\n"
    assert split_sentences(text, SentenceConfig()) == ["A title\nThis is wrapped\nat some width. ", "And\nthis.\n"]
    assert split_sentences(text, SentenceConfig(line_ends=True)) == [
        "A title\n", "This is wrapped\n", "at some width. ", "And\n", "this.\n",
    ]  # fmt: skip


@given(st.lists(st.text(alphabet="ab. \n", min_size=1).map(lambda text: f"x{text.strip()}"), min_size=1))
def test_a_paragraph_break_ends_a_sentence(paragraphs: list[str]):
    sentences = split_sentences("\n \n".join(paragraphs), SentenceConfig())
    assert all("\n \n" not in sentence.rstrip() for sentence in sentences)
    assert len(sentences) >= len(paragraphs)


@given(
    st.lists(
        st.sampled_from(["One. Two! ", "Dr. A", "Is it?\n x", "word. " * 1200, "\xe9. B"]), min_size=1, max_size=30
    )
)
@settings(max_examples=30)
def test_sentences_are_those_of_each_paragraph(paragraphs: list[str]):
    document = "\n\n".join(paragraphs)
    alone = [s.strip() for paragraph in paragraphs for s in split_sentences(paragraph, SentenceConfig())]
    assert [sentence.strip() for sentence in split_sentences(document, SentenceConfig())] == alone


def test_abbreviations_and_numbers_end_no_sentence():
    text = "Dr. Smith paid $3.50 in Washington D.C. on Jan. 5th. Was it good? See Fig. 3."
    assert split_sentences(text, SentenceConfig()) == [
        "Dr. Smith paid $3.50 in Washington D.C. on Jan. 5th. ",
        "Was it good? ",
        "See Fig. 3.",
    ]


def test_breaks_between_many_paragraphs_are_kept():
    text = "\n\n".join(f"Paragraph {n} has a sentence. And another" for n in range(2000))
    sentences = split_sentences(text, SentenceConfig())
    assert len(sentences) == 4000
    assert "".join(sentences) == text


def test_spaces_of_several_bytes_do_no_harm():
    # sentencex by itself panics at this
    assert split_sentences("Vitamin B\u3000. It is\xa0good.", SentenceConfig()) == [
        "Vitamin B\u3000. ",
        "It is\xa0good.",
    ]


def test_lines_can_be_sentences():
    assert split_sentences("one. two\nthree\n", SentenceConfig(splitter="lines")) == ["one. two\n", "three\n"]


def test_no_text_is_one_empty_sentence():
    assert split_sentences("", SentenceConfig()) == [""]


def test_spaces_end_sentences_where_they_are_asked_to():
    text = "  วันนี้อากาศดี เราไปตลาด\n\nแล้วกลับบ้าน\u00a0พรุ่งนี้ "
    config = SentenceConfig(splitter="spaces", language="th")
    assert split_sentences(text, config) == ["  วันนี้อากาศดี ", "เราไปตลาด\n\n", "แล้วกลับบ้าน\u00a0", "พรุ่งนี้ "]
    assert split_sentences("", config) == [""]
