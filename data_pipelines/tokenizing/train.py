"""Trains tokenizers with the special tokens that every model needs."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from data_pipelines.tokenizing.config import SentenceConfig, TokenizerConfig
from data_pipelines.tokenizing.normalization import normalization_arguments
from data_pipelines.tokenizing.sentences import split_sentences
from data_pipelines.tokenizing.word_encoder import BY_CHARACTER, SCORE_UNIT
from xlpretrain.data.tokenizers.base import SPECIAL_TOKENS, Tokenizer
from xlpretrain.data.tokenizers.byte_word import ByteTokenizer, WordTokenizer
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import DataError

NUM_THREADS = 4
"""Fixed, because the vocabulary depends on it."""

LONGEST_SENTENCE_BYTES = 1 << 16
"""SentencePiece skips longer sentences (its default is 4,192 bytes), so they are cut."""

RESERVED = "\N{LOWER FIVE EIGHTHS BLOCK}"
"""SentencePiece's symbol for unknowns. It skips sentences with this character, so it becomes a space."""
_SPACES = str.maketrans({"\0": " ", RESERVED: " "})


def make_tokenizer(sentences: Sequence[str], config: TokenizerConfig) -> Tokenizer:
    """Make the configured tokenizer. Deterministic for the same sentences in the same order. Raises `DataError`."""
    match config.model_type:
        case "unigram":
            return Tokenizer(train_tokenizer(sentences, config), name="the tokenizer just trained")
        case "bytes":
            return ByteTokenizer.make()
        case "word":
            return WordTokenizer.make(sentences, vocab_size=config.vocab_size)


def tokenizes_bytes(config: TokenizerConfig) -> bool:
    """True if every byte is a token, so that text must not be changed. Raises `DataError`."""
    if config.path is None:
        return config.model_type == "bytes"
    return isinstance(load_tokenizer(config.path), ByteTokenizer)


def train_tokenizer(sentences: Iterable[str], config: TokenizerConfig) -> bytes:
    """Train a SentencePiece model. Deterministic, given sentences in the same order. Raises `DataError`."""
    pieces = {role: spellings[0] for role, spellings in SPECIAL_TOKENS.items()}
    model = io.BytesIO()
    fallback: dict[str, Any] = {"byte_fallback": True} if config.byte_fallback else {}  # if passed at all, it is stored
    try:
        with normalization_arguments(config) as normalization:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                vocab_size=config.vocab_size,
                model_type="unigram",
                **fallback,
                **normalization,
                character_coverage=config.character_coverage,
                max_sentence_length=LONGEST_SENTENCE_BYTES,
                num_threads=NUM_THREADS,
                pad_id=0,
                unk_id=1,
                bos_id=-1,
                eos_id=-1,
                pad_piece=pieces["pad"],
                unk_piece=pieces["unk"],
                # Not user-defined symbols: those are also recognized in plain text.
                control_symbols=[pieces["cls"], pieces["sep"], pieces["mask"], pieces["eod"]],
                minloglevel=2,
            )
    except RuntimeError as error:
        raise DataError(_explain(str(error), config)) from None
    return _finish(model.getvalue())


def clean_sentences(document: str, config: SentenceConfig, tokenizer: TokenizerConfig) -> Iterator[str]:
    """The sentences of a document, as passed to the tokenizer's training."""
    for sentence in split_sentences(document, config):
        if tokenizer.model_type == "word":
            yield sentence
        elif words := sentence.translate(_SPACES).split():
            yield from _cut(" ".join(words))


def _cut(sentence: str) -> Iterator[str]:
    """Cut a sentence into parts that SentencePiece accepts, at spaces if possible."""
    if len(sentence) * 4 <= LONGEST_SENTENCE_BYTES or len(data := sentence.encode()) <= LONGEST_SENTENCE_BYTES:
        yield sentence
        return
    start = 0
    while len(data) - start > LONGEST_SENTENCE_BYTES:
        end = data.rfind(b" ", start + 1, start + LONGEST_SENTENCE_BYTES + 1)
        if end < 0:
            end = start + LONGEST_SENTENCE_BYTES
            while data[end] & 0xC0 == 0x80:  # not inside a character
                end -= 1
        yield data[start:end].decode()
        start = end + (data[end] == ord(" "))
    yield data[start:].decode()


def _finish(model: bytes) -> bytes:
    """Round the scores (see `word_encoder`), and drop the name of the rules file, a temporary name."""
    parsed = sentencepiece_model_pb2.ModelProto()
    parsed.ParseFromString(model)
    for piece in parsed.pieces:
        piece.score = round(piece.score / SCORE_UNIT) * SCORE_UNIT
    if parsed.normalizer_spec.normalization_rule_tsv:
        parsed.normalizer_spec.ClearField("normalization_rule_tsv")
        parsed.normalizer_spec.name = BY_CHARACTER
    return bytes(parsed.SerializeToString(deterministic=True))


def _explain(error: str, config: TokenizerConfig) -> str:
    if too_high := re.search(r"too high \(\d+\).*<= (\d+)", error):
        return (
            f"tokenizer.vocab_size: {config.vocab_size} is too large for this corpus, which supports at most "
            f"{too_high[1]}; lower it or add text"
        )
    if too_low := re.search(r"required_chars\. \d+ vs (\d+)", error):
        return (
            f"tokenizer.vocab_size: {config.vocab_size} is too small, the characters of this corpus alone need "
            f"{too_low[1]}; raise it or lower tokenizer.character_coverage"
        )
    if "all_chars_count" in error or "sentences_.empty()" in error:
        return "the training documents contain no text to train a tokenizer on; add text"
    return f"SentencePiece failed to train a tokenizer on this corpus: {error}"
