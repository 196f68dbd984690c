"""The model queries whose results sum to the likelihood of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from xlpretrain.data.tokenizers.base import Vocabulary
from xlpretrain.data.tokenizers.token_layout import Ids, TokenLayout
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.kernels.packing import valid_tokens
from xlpretrain.models.pretraining_model import Batch

QueryKind = Literal["stream", "masked", "second_stream"]
"""The way the answers are hidden from the model. stream: by causal attention; the queries of a text follow one another,
each with the memory of the previous ones. masked: by a mask token in their place. second_stream: they come last in the
permutation and are predicted by the second stream. Queries of the last two kinds have no memory."""


@dataclass(frozen=True)
class LikelihoodQuery:
    """A sample, and the tokens of the text that the objective's first loss term predicts in it.

    tokens: ids of the sample. positions: indices of the tokens with predictions. answers: the target id of each
    prediction. segments: segments of the tokens (default: all 0). hidden: indices of other tokens that are hidden too,
    without a prediction; not for stream queries. ahead: number of positions from a prediction to the masked token that
    it is about; only for masked queries.
    """

    kind: QueryKind
    tokens: Ids
    positions: Sequence[int]
    answers: Ids
    segments: Ids | None = None
    hidden: Sequence[int] = ()
    ahead: int = 0


def stream_queries(context: Sequence[int], *, seq_len: int, ahead: int = 1) -> Iterator[LikelihoodQuery]:
    """Queries that read a text from left to right, `seq_len` tokens each, and predict at each token the one `ahead` of
    it.

    context: `ahead` initial tokens, followed by the text.
    """
    for start in range(0, len(context) - ahead, seq_len):
        answers = context[start + ahead : start + ahead + seq_len]
        yield LikelihoodQuery("stream", context[start : start + len(answers)], range(len(answers)), answers)


def pseudo_likelihood_queries(
    text: Sequence[int],
    vocabulary: Vocabulary,
    layout: TokenLayout,
    *,
    seq_len: int,
    kind: Literal["masked", "second_stream"],
    ahead: int = 0,
) -> Iterator[LikelihoodQuery]:
    """Queries for each token given all the others (Salazar et al. 2020, arXiv:1910.14659, equation 1).

    A text longer than `seq_len` is split into several samples, each laid out as a single text. ahead: see
    `LikelihoodQuery`; the layout must begin with as many special tokens.
    """
    room = seq_len - layout.num_symbols(1)
    for start in range(0, len(text), room):
        sample = layout.lay_out([text[start : start + room]], vocabulary)
        for at in range(*sample.texts[0]):
            answers = [int(sample.tokens[at])]
            yield LikelihoodQuery(kind, sample.tokens, [at - ahead], answers, sample.segments, ahead=ahead)


def hide_rest_of_word(query: LikelihoodQuery, begins_word: np.ndarray) -> LikelihoodQuery:
    """Hide the later tokens of the word that a query predicts a token of.

    The sum of such queries is the pseudo-log-likelihood PLL-word-l2r of Kauf and Ivanova 2023 (arXiv:2305.10588).

    begins_word: mask of the tokens that begin a word, by id [V]; special tokens are among them.
    """
    begins = begins_word[np.asarray(query.tokens, np.int64)]
    hidden = list[int]()
    for at in (position + query.ahead for position in query.positions):
        next_words = np.flatnonzero(begins[at + 1 :])
        hidden += range(at + 1, at + 1 + int(next_words[0]) if len(next_words) else len(begins))
    return replace(query, hidden=hidden)


def collate_queries(
    queries: Sequence[LikelihoodQuery],
    vocabulary: Vocabulary,
    *,
    terms: Sequence[str],
    seq_len: int,
    mem_valid_len: Sequence[int],
) -> Batch:
    """Collate queries of one kind into a micro-batch, padded on the right. Only the first loss term has targets.

    Stream queries are padded to `seq_len`, as in training, the others to the longest one.
    """
    kind = queries[0].kind
    shape = (len(queries), seq_len if kind == "stream" else max(len(query.tokens) for query in queries))
    tokens, segments = np.full(shape, vocabulary.pad, np.int64), np.zeros(shape, np.int64)
    present, asked, hidden = (np.zeros(shape, bool) for _ in range(3))
    for i, query in enumerate(queries):
        length = len(query.tokens)
        tokens[i, :length], present[i, :length] = query.tokens, True
        if query.segments is not None:
            segments[i, :length] = query.segments
        asked[i, list(query.positions)] = True
        hidden[i, [*(at + query.ahead for at in query.positions), *query.hidden]] = True
    if kind == "masked":
        tokens[hidden] = vocabulary.mask
    stream, last = kind == "stream", kind == "second_stream"
    valid_at, valid_from = valid_tokens(present)
    inputs = BackboneInput(
        tokens=torch.from_numpy(tokens),
        mem_valid_len=torch.tensor(mem_valid_len, dtype=torch.int64),
        attention_mask=None if stream else torch.from_numpy(present),  # causal attention hides the padding
        segments=None if stream else torch.from_numpy(segments),
        valid_at=None if stream else valid_at,
        valid_from=None if stream else valid_from,
        perm_rank=torch.from_numpy(hidden.astype(np.int64)) if last else None,
        target_positions=torch.from_numpy(np.stack([query.positions for query in queries])) if last else None,
        causal=stream,
    )
    answers = np.concatenate([np.asarray(query.answers, np.int64) for query in queries])
    nothing = torch.zeros(0, dtype=torch.int64)
    targets = {key: nothing for term in terms for key in (term, f"{term}_positions")}
    targets[terms[0]] = torch.from_numpy(answers)
    targets[f"{terms[0]}_positions"] = torch.arange(len(answers)) if last else torch.from_numpy(np.flatnonzero(asked))
    return Batch(inputs, targets, dict.fromkeys(terms, 0) | {terms[0]: len(answers)})
