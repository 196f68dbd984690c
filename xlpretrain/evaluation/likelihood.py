"""The likelihood of texts, from the queries that the objective declares.

A causal model gives log p(text) token by token, starting after an end-of-document token, with the memory; the end of
the text is not included. Masked and permutation models give the pseudo-log-likelihood instead (Salazar et al. 2020,
arXiv:1910.14659, equation 1): the sum of log p(token | all the others), with one sample per token. A token is then easy
to guess from the later tokens of its own word, which makes rare words of many tokens seem likely. PLL-word-l2r (Kauf
and Ivanova 2023, arXiv:2305.10588) hides those too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.errors import ConfigError
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives.base import Objective
from xlpretrain.objectives.likelihood_queries import LikelihoodQuery, collate_queries, hide_rest_of_word

_NOTHING = LikelihoodQuery("stream", [], [], [])


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of one text. nats: (pseudo-)log-likelihood, at most 0."""

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss per token; NaN for a text without tokens."""
        return math.exp(min(-self.nats / self.num_tokens, 700.0)) if self.num_tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte, comparable across tokenizers; NaN for an empty text."""
        return -self.nats / math.log(2) / self.num_bytes if self.num_bytes else math.nan


def longest_in_one_sample(objective: Objective, vocabulary: Vocabulary) -> int | None:
    """The maximum length of a text in tokens; longer texts are scored in parts. None: no limit.

    (A causal model continues with its memory.)
    """
    queries = objective.likelihood_queries([0], vocabulary)
    if all(query.kind == "stream" for query in queries):
        return None
    return objective.seq_len - objective.declared(objective.token_layout, "token_layout").num_symbols(1)


@torch.no_grad()
def log_likelihoods(
    model: PretrainingModel,
    objective: Objective,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    mem_len: int,
    batch_size: int = 32,
    within_word: bool = False,
) -> list[Likelihood]:
    """The likelihood of each text, in evaluation mode.

    Texts longer than `objective.seq_len` are split: a causal model carries its memory from sample to sample; other
    models score each sample as a separate text.

    Args:
        mem_len: memory length, for queries that follow one another.
        within_word: hide the later tokens of a token's word too. Words are those of `Tokenizer.word_starts`.

    Raises:
        ConfigError: the objective declares no likelihood of a text, or a causal one with `within_word`.
    """
    encoded, vocabulary = tokenizer.encode_batch(list(texts)), tokenizer.vocabulary
    begins_word = tokenizer.word_starts() if within_word else None
    chains = [
        (text, chain)
        for text, tokens in enumerate(encoded)
        for chain in _chains(_queries(objective, tokens, vocabulary, begins_word))
    ]
    chains.sort(key=lambda found: sum(len(query.tokens) for query in found[1]))
    nats, device = np.zeros(len(encoded)), next(model.parameters()).device
    for first in range(0, len(chains), batch_size):
        text_of, side_by_side = zip(*chains[first : first + batch_size], strict=True)
        remembered = mem_len if side_by_side[0][0].kind == "stream" else 0
        mems, num_read = model.backbone.empty_memory(len(text_of), remembered), [0] * len(text_of)
        for depth in range(max(map(len, side_by_side))):
            queries = [chain[depth] if depth < len(chain) else _NOTHING for chain in side_by_side]
            batch = collate_queries(
                queries,
                vocabulary,
                terms=objective.terms,
                seq_len=objective.seq_len,
                mem_valid_len=[min(remembered, read) for read in num_read],
            )
            loss, mems = model(batch.to(device), mems)
            scores = loss.scores[objective.terms[0]]
            np.subtract.at(nats, np.array(text_of)[scores.samples.cpu().numpy()], scores.nll.double().cpu().numpy())
            num_read = [read + len(query.tokens) for read, query in zip(num_read, queries, strict=True)]
    return [
        Likelihood(total, len(tokens), len(text.encode()))
        for total, tokens, text in zip(nats.tolist(), encoded, texts, strict=True)
    ]


def _queries(
    objective: Objective, tokens: Sequence[int], vocabulary: Vocabulary, begins_word: np.ndarray | None
) -> Iterator[LikelihoodQuery]:
    """The objective's queries, with the rest of words hidden if `begins_word` is given. Raises `ConfigError`."""
    for query in objective.likelihood_queries(tokens, vocabulary):
        if begins_word is not None and query.kind == "stream":
            raise ConfigError(
                f"objective {objective.type} predicts each token from those before it only, so there is nothing to hide"
                " within words; leave out within_word (--within-word)"
            )
        yield query if begins_word is None else hide_rest_of_word(query, begins_word)


def _chains(queries: Iterable[LikelihoodQuery]) -> list[list[LikelihoodQuery]]:
    """Group the queries of a text into chains: all stream queries in one chain, the others each in their own."""
    found = list(queries)
    return [found] if found and found[0].kind == "stream" else [[query] for query in found]
