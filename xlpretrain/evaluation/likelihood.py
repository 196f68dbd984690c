"""Likelihoods of texts under a model.

Causal: log p(text), token after token, the first after an end-of-document symbol, with the memory carried along; the
end of the text is not part of it. Masked and permutation models have no such thing: theirs is the pseudo-log-likelihood
(Salazar et al. 2020, arXiv:1910.14659, equation 1), the sum of log p(token | all the others), a sample for each token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from xlpretrain.data.samples import Sample
from xlpretrain.data.storage.dataset import EMPTY_ENDS
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.errors import ConfigError
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives.base import Objective
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.objectives.masked_lm import MaskedLM, MaskedLMHead
from xlpretrain.objectives.permutation_lm import PermutationLM, PermutationLMHead

_NUM_SYMBOLS = 2  # of a masked or permutation model's sample


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of one text. nats: the (pseudo-)log-likelihood, 0 or less."""

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def perplexity(self) -> float:
        """e to the mean loss of a token; NaN for a text without tokens."""
        return math.exp(min(-self.nats / self.num_tokens, 700.0)) if self.num_tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Comparable over tokenizers; NaN for a text without bytes."""
        return -self.nats / math.log(2) / self.num_bytes if self.num_bytes else math.nan


def longest_in_one_sample(objective: Objective) -> int | None:
    """The most tokens of a text that see each other; longer texts are scored in pieces. None: there is no limit.

    (A causal model reads on with its memory.)
    """
    return None if isinstance(objective, CausalLM) else objective.seq_len - _NUM_SYMBOLS


@torch.no_grad()
def log_likelihoods(
    model: PretrainingModel,
    objective: Objective,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    mem_len: int,
    batch_size: int = 32,
) -> list[Likelihood]:
    """The likelihood of each text, in evaluation mode. mem_len: positions of memory, for a causal model.

    Longer texts than a sample of `objective.seq_len` tokens: a causal model's memory goes on from sample to sample; for
    the others each sample is a text of its own. Raises `ConfigError` for an objective that has no likelihood of a text,
    or of which none is known here.
    """
    kind = type(objective)  # what is derived from a known one predicts something else
    if kind not in (CausalLM, MaskedLM, PermutationLM):
        raise ConfigError(
            f"objective {objective.type} has no likelihood of a text here; expected causal_lm, masked_lm or"
            " permutation_lm"
        )
    encoded = tokenizer.encode_batch(list(texts))
    if kind is CausalLM:
        causal = cast(CausalLM, objective)
        nats = _causal(model, causal, tokenizer, encoded, mem_len=mem_len, batch_size=batch_size)
    else:
        pseudo = cast(MaskedLM | PermutationLM, objective)
        nats = _pseudo(model, pseudo, tokenizer.vocabulary, encoded, batch_size=batch_size)
    return [
        Likelihood(total, len(tokens), len(text.encode()))
        for total, tokens, text in zip(nats.tolist(), encoded, texts, strict=True)
    ]


def _causal(
    model: PretrainingModel,
    objective: CausalLM,
    tokenizer: Tokenizer,
    encoded: Sequence[Sequence[int]],
    *,
    mem_len: int,
    batch_size: int,
) -> np.ndarray:
    """Texts of like length side by side, sample after sample."""
    device, collate = next(model.parameters()).device, objective.collator(tokenizer, seed=0)
    totals, seq_len = np.zeros(len(encoded)), objective.seq_len
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        longest = len(encoded[chosen[-1]])
        mems = model.backbone.empty_memory(len(chosen), mem_len)
        for start in range(0, longest, seq_len):
            samples = [
                Sample(
                    np.array([tokenizer.vocabulary.eod, *encoded[i]][start : start + seq_len + 1]),
                    EMPTY_ENDS,
                    EMPTY_ENDS,
                    stream=0,
                    epoch=0,
                    sample_index=0,
                    mem_valid_len=min(mem_len, start),
                )
                for i in chosen
            ]
            loss, mems = model(collate(samples).to(device), mems)
            scores = loss.scores["lm"]
            of_sample = np.array(chosen)[scores.samples.cpu().numpy()]
            np.subtract.at(totals, of_sample, scores.nll.double().cpu().numpy())
    return totals


@dataclass(frozen=True)
class _Question:
    """One token to predict: its text, its sample without it being hidden, and where in the sample it stands."""

    text: int
    tokens: list[int]
    segments: list[int]
    at: int


def _pseudo(
    model: PretrainingModel,
    objective: MaskedLM | PermutationLM,
    vocabulary: Vocabulary,
    encoded: Sequence[Sequence[int]],
    *,
    batch_size: int,
) -> np.ndarray:
    totals, masked = np.zeros(len(encoded)), isinstance(objective, MaskedLM)
    head = cast(MaskedLMHead | PermutationLMHead, model.head)
    questions = sorted(_questions(objective, vocabulary, encoded), key=lambda q: len(q.tokens))
    for first in range(0, len(questions), batch_size):
        asked = questions[first : first + batch_size]
        hidden = _read(model, asked, vocabulary, masked=masked)
        answers = torch.tensor([q.tokens[q.at] for q in asked], device=hidden.device)
        nll, _ = head.output.token_losses(hidden, answers, accuracy=False)
        np.subtract.at(totals, [q.text for q in asked], nll.double().cpu().numpy())
    return totals


def _questions(
    objective: MaskedLM | PermutationLM, vocabulary: Vocabulary, encoded: Sequence[Sequence[int]]
) -> Iterator[_Question]:
    """For every token of every text, laid out as in pretraining: [CLS] A [SEP], or XLNet's A SEP CLS."""
    cls, sep = [vocabulary.cls], [vocabulary.sep]
    room = objective.seq_len - _NUM_SYMBOLS
    for text, tokens in enumerate(encoded):
        for start in range(0, len(tokens), room):
            part = list(tokens[start : start + room])
            if isinstance(objective, MaskedLM):
                sample, before, segments = [*cls, *part, *sep], 1, [0] * (len(part) + 2)
            else:
                sample, before, segments = [*part, *sep, *cls], 0, [*[0] * (len(part) + 1), 2]
            yield from (_Question(text, sample, segments, before + at) for at in range(len(part)))


def _read(model: PretrainingModel, asked: Sequence[_Question], vocabulary: Vocabulary, *, masked: bool) -> Tensor:
    """The hidden state [N, D] that each answer is predicted from. A masked token, or one that nothing else attends."""
    device, longest = next(model.parameters()).device, max(len(q.tokens) for q in asked)
    shape = (len(asked), longest)
    tokens, segments = torch.full(shape, vocabulary.pad), torch.zeros(shape, dtype=torch.int64)
    valid, at = torch.zeros(shape, dtype=torch.bool), torch.tensor([q.at for q in asked])
    for i, question in enumerate(asked):
        length = len(question.tokens)
        tokens[i, :length] = torch.tensor(question.tokens)
        segments[i, :length] = torch.tensor(question.segments)
        valid[i, :length] = True
    order = None
    if masked:
        tokens[torch.arange(len(asked)), at] = vocabulary.mask
    else:
        order = torch.zeros(shape, dtype=torch.int64).scatter(1, at[:, None], 1)  # the token last, so nobody sees it
    inputs = BackboneInput(
        tokens=tokens,
        mem_valid_len=torch.zeros(len(asked), dtype=torch.int64),
        attention_mask=valid,
        segments=segments,
        perm_rank=order,
        target_positions=None if masked else at[:, None],
    ).to(device)
    hidden, _ = model.backbone(inputs, model.backbone.empty_memory(len(asked), 0))
    states: Tensor = hidden.tokens[torch.arange(len(asked), device=device), at.to(device)]
    return states if hidden.predictions is None else hidden.predictions[:, 0]
