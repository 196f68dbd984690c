"""SentencePiece tokenizers with the special symbols that every model needs."""

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
"""Fixed: another number gives another vocabulary."""

LONGEST_SENTENCE_BYTES = 1 << 16
"""SentencePiece leaves out longer ones, at 4,192 bytes by default; so they are cut."""

RESERVED = "\N{LOWER FIVE EIGHTHS BLOCK}"
"""SentencePiece leaves out sentences with this character, its own for what is unknown; so it is left out by itself."""
_SPACES = str.maketrans({"\0": " ", RESERVED: " "})


def make_tokenizer(sentences: Sequence[str], config: TokenizerConfig) -> Tokenizer:
    """The kind of tokenizer that is asked for: the same one for the same sentences, in the same order.

    Raises `DataError`.
    """
    match config.model_type:
        case "unigram":
            return Tokenizer(train_tokenizer(sentences, config), name="the tokenizer just trained")
        case "bytes":
            return ByteTokenizer.make()
        case "word":
            return WordTokenizer.make(sentences, vocab_size=config.vocab_size)


def tokenizes_bytes(config: TokenizerConfig) -> bool:
    """Tell whether every byte of a text is a token, so that a text must stay as it is. Raises `DataError`."""
    if config.path is None:
        return config.model_type == "bytes"
    return isinstance(load_tokenizer(config.path), ByteTokenizer)


def train_tokenizer(sentences: Iterable[str], config: TokenizerConfig) -> bytes:
    """A SentencePiece model: the same one for the same sentences, in the same order. Raises `DataError`."""
    pieces = {role: spellings[0] for role, spellings in SPECIAL_TOKENS.items()}
    model = io.BytesIO()
    fallback: dict[str, Any] = {"byte_fallback": True} if config.byte_fallback else {}  # told in the model if given
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
                # Not user-defined symbols: those are also recognised where a text merely contains them.
                control_symbols=[pieces["cls"], pieces["sep"], pieces["mask"], pieces["eod"]],
                minloglevel=2,
            )
    except RuntimeError as error:
        raise DataError(_explain(str(error), config)) from None
    return _finish(model.getvalue())


def clean_sentences(document: str, config: SentenceConfig, tokenizer: TokenizerConfig) -> Iterator[str]:
    """The sentences of a document as a tokenizer is trained on them."""
    for sentence in split_sentences(document, config):
        if tokenizer.model_type == "word":
            yield sentence
        elif words := sentence.translate(_SPACES).split():
            yield from _cut(" ".join(words))


def _cut(sentence: str) -> Iterator[str]:
    """A sentence in pieces that SentencePiece takes, at spaces where there are any."""
    if len(sentence) * 4 <= LONGEST_SENTENCE_BYTES or len(data := sentence.encode()) <= LONGEST_SENTENCE_BYTES:
        yield sentence
        return
    start = 0
    while len(data) - start > LONGEST_SENTENCE_BYTES:
        end = data.rfind(b" ", start + 1, start + LONGEST_SENTENCE_BYTES + 1)
        if end < 0:
            end = start + LONGEST_SENTENCE_BYTES
            while data[end] & 0xC0 == 0x80:  # not within a character
                end -= 1
        yield data[start:end].decode()
        start = end + (data[end] == ord(" "))
    yield data[start:].decode()


def _finish(model: bytes) -> bytes:
    """The same model with rounded scores (see `words`), and without the name of the file its rules came from, which is
    another each time."""
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
            f"tokenizer.vocab_size: {config.vocab_size} pieces are too many for this corpus, which gives at most "
            f"{too_high[1]}; lower it or add text"
        )
    if too_low := re.search(r"required_chars\. \d+ vs (\d+)", error):
        return (
            f"tokenizer.vocab_size: {config.vocab_size} pieces are too few, the characters of this corpus alone need "
            f"{too_low[1]}; raise it or lower tokenizer.character_coverage"
        )
    if "all_chars_count" in error or "sentences_.empty()" in error:
        return "the training documents hold no text that a tokenizer could be trained on; add text"
    return f"SentencePiece cannot train a tokenizer on this corpus: {error}"
