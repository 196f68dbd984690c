from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from corpus import make_documents
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizing.config import SentenceConfig
from data_pipelines.tokenizing.encode import EncodedDocuments, EncodedStream, choose_block_tokens, concatenate
from data_pipelines.tokenizing.encode import encode as encode_documents
from data_pipelines.tokenizing.sentences import split_sentences
from data_pipelines.tokenizing.word_encoder import token_dtype
from xlpretrain.data.tokenizers.open import load_tokenizer


def encode(documents: list[str], tokenizer: Path) -> EncodedDocuments:
    return encode_documents(documents, load_tokenizer(tokenizer), SentenceConfig())


def test_a_document_is_its_sentences_and_the_end_symbol(tiny_tokenizer: Path):
    documents = make_documents(20, seed=3)
    encoded, tokenizer = encode(documents, tiny_tokenizer), load_tokenizer(tiny_tokenizer)
    expected: list[int] = []
    sentence_ends, document_ends = [], []
    for document in documents:
        for sentence in split_sentences(document, SentenceConfig()):
            expected += tokenizer.encode(sentence)
            sentence_ends.append(len(expected) - 1)
        expected.append(tokenizer.vocabulary.eod)
        document_ends.append(len(expected) - 1)
    assert encoded.tokens.tolist() == expected
    assert encoded.sentence_ends.tolist() == sentence_ends
    assert encoded.document_ends.tolist() == document_ends


@settings(max_examples=50)
@given(documents=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_every_byte_is_counted_once_even_where_text_has_no_tokens(tiny_tokenizer: Path, documents: list[str]):
    documents = [*documents, "\u200b", "Something. \u200b\n\n\u200b"]
    tokenizer = load_tokenizer(tiny_tokenizer)
    kept = [document for document in documents if tokenizer.encode(document)]  # one without any token is left out
    encoded = encode(documents, tiny_tokenizer)
    assert encoded.text_bytes.sum() == sum(len(document.encode()) for document in kept)
    assert len(encoded.document_ends) == len(kept) < len(documents)
    assert np.all(np.diff(encoded.text_ends) > 0)


def test_parts_join_to_the_whole(tiny_tokenizer: Path):
    documents = make_documents(30, seed=4)
    whole, parts = encode(documents, tiny_tokenizer), [encode([document], tiny_tokenizer) for document in documents]
    joined = concatenate(parts)
    for field in ("tokens", "document_ends", "sentence_ends", "text_ends", "text_bytes"):
        np.testing.assert_array_equal(getattr(joined, field), getattr(whole, field))


def test_any_part_of_a_run_is_what_it_is_in_the_whole(tiny_tokenizer: Path, tmp_path: Path):
    documents = make_documents(12, seed=4)
    whole = encode(documents, tiny_tokenizer)
    cuts = [documents[:3], [], documents[3:4], documents[4:]]
    folders = [tmp_path / str(number) for number in range(len(cuts))]
    for folder, cut in zip(folders, cuts, strict=True):
        encode(cut, tiny_tokenizer).save(folder)
    run = EncodedStream(folders, EncodedDocuments.open)
    assert run.num_tokens == len(whole.tokens)
    steps = [*range(0, run.num_tokens, 97), run.num_tokens]
    blocks = [run.slice(start, stop) for start, stop in pairwise(steps)]
    joined = concatenate(blocks)
    for field in ("tokens", "document_ends", "sentence_ends", "text_ends", "text_bytes"):
        np.testing.assert_array_equal(getattr(joined, field), getattr(whole, field))


@pytest.mark.parametrize(
    ("num_tokens", "block_tokens"),
    [(0, 1 << 14), (10**7, 1 << 14), (40 * 10**6, 1 << 15), (10**9, 1 << 19), (10**12, 1 << 20)],
)
def test_blocks_are_chosen_so_that_there_are_about_a_thousand(num_tokens: int, block_tokens: int):
    assert choose_block_tokens(num_tokens) == block_tokens


def test_tokens_are_kept_in_the_smallest_type():
    assert token_dtype(65_535) == np.uint16
    assert token_dtype(65_536) == np.uint32
