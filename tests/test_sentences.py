import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.config import SentenceConfig
from data_pipelines.sentences import split_sentences

TEXT_WITH_ENDS = st.text(alphabet=st.sampled_from("aB. !?\n\r\t。é\u2028\xa0\u3000"))


@pytest.mark.parametrize("splitter", ["sentencex", "lines"])
@given(text=st.one_of(st.text(), TEXT_WITH_ENDS))
def test_sentences_joined_are_the_document(splitter: str, text: str):
    assert "".join(split_sentences(text, SentenceConfig(splitter=splitter))) == text


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
