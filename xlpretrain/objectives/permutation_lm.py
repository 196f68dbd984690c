"""Permutation language modeling (XLNet, Yang et al. 2019, arXiv:1906.08237).

A sample is `reuse_len` tokens that continue where the memory ends, followed by a pair: A, SEP, B, SEP, CLS. Each half
has spans of tokens to predict, and a factorization order. A token is predicted from the context (all tokens that are
not predicted), from the tokens before it in the order and, in the second half, from the whole first half. The content
stream reads the real tokens, which are hidden by the attention mask, never by a mask token.

Differences from the authors' code: spans and orders are sampled again in each epoch (theirs are stored on disk); a
second part from elsewhere begins at a sentence of the same block and ends with the sentence that fills the sample; a
second part that continues the first begins with the next token (theirs may first cut off the end of the first part).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt

from xlpretrain.data.samples import Sample
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.data.tokenizers.token_layout import CLS_LAST, TokenLayout
from xlpretrain.models.backbone import Backbone, BackboneInput, Hidden, OutputLayer
from xlpretrain.models.pretraining_model import Batch, Head, Loss
from xlpretrain.objectives.base import HubHead, Objective, sample_rng, token_prediction_loss
from xlpretrain.objectives.likelihood_queries import LikelihoodQuery, pseudo_likelihood_queries
from xlpretrain.objectives.span_sampling import SpanSampler
from xlpretrain.schema import Problem

_LAYOUT = CLS_LAST
NUM_SYMBOLS = _LAYOUT.num_symbols(2)
"""Number of special tokens of a pair: SEP, SEP, CLS."""


class PermutationLM(Objective):
    """-log p(token | the tokens before it in a random order), for about one token in six."""

    type: Literal["permutation_lm"] = "permutation_lm"
    """Kind of objective."""
    seq_len: PositiveInt = 512
    """Tokens per sample, including SEP, SEP and CLS."""
    reuse_len: NonNegativeInt = 256
    """Tokens at the start of a sample that continue the stream and enter the memory; samples advance by this many. 0:
    samples are consecutive pairs only, for models without a memory."""
    perm_size: PositiveInt = 256
    """Number of tokens that are permuted together; must divide both parts of a sample."""
    num_predict: PositiveInt = 85
    """Maximum number of tokens to predict per sample; those on SEP or CLS are left out."""
    max_ngram: PositiveInt = 5
    """Maximum length n of predicted spans; n has a probability proportional to 1/n."""
    span_alpha: PositiveInt = 6
    """A span of n tokens is surrounded by n * span_alpha / span_beta tokens of context."""
    span_beta: PositiveInt = 1
    """See span_alpha."""
    span_unit: Literal["token", "word"] = "token"
    """Unit of n: tokens from the start of a word (as in the authors' code), or whole words (as in their paper)."""
    bi_data: bool = True
    """Let streams 2k and 2k + 1 read the same blocks in opposite directions; requires an even global_batch_size."""

    requires: ClassVar[frozenset[str]] = frozenset({"two_stream"})
    terms: ClassVar[tuple[str, ...]] = ("plm",)
    hub_head: ClassVar[HubHead | None] = "masked_lm"

    @property
    def token_layout(self) -> TokenLayout:
        """A SEP B SEP CLS."""
        return _LAYOUT

    def likelihood_queries(self, text: Sequence[int], vocabulary: Vocabulary) -> Iterator[LikelihoodQuery]:
        """Queries with each token last in the permutation, so that it sees all the others."""
        return pseudo_likelihood_queries(
            text, vocabulary, self.token_layout, seq_len=self.seq_len, kind="second_stream"
        )

    def problems(self) -> Iterator[Problem]:
        """Conflicts between keys."""
        pair = self.seq_len - self.reuse_len
        if pair < NUM_SYMBOLS + 2:
            yield (
                "reuse_len",
                f"leaves {pair} of {self.seq_len} tokens for A SEP B SEP CLS, which needs {NUM_SYMBOLS + 2};"
                " lower it or raise seq_len",
            )
        elif self.reuse_len % self.perm_size or pair % self.perm_size:
            parts = f"{self.reuse_len} and {pair}" if self.reuse_len else f"{pair}"
            yield "perm_size", f"must divide the parts of a sample ({parts} tokens), got {self.perm_size}"
        if self.num_predict > self.seq_len - NUM_SYMBOLS:
            yield "num_predict", f"must be at most seq_len - {NUM_SYMBOLS}, got {self.num_predict}"

    def run_problems(self, *, mem_len: int, global_batch_size: int) -> Iterator[Problem]:
        """Conflicts with the rest of the config."""
        if self.bi_data and global_batch_size % 2:
            yield (
                "global_batch_size",
                f"must be even with objective.bi_data (streams come in pairs, forwards and backwards), got"
                f" {global_batch_size}; or set objective.bi_data=false",
            )
        if mem_len and not self.reuse_len:
            yield (
                "objective.reuse_len",
                f"is 0, so nothing enters the memory of {mem_len}; raise it, or set model.mem_len=0",
            )

    @property
    def remembers(self) -> bool:
        """True if a part of each sample enters the memory."""
        return self.reuse_len > 0

    @property
    def pair_len(self) -> int:
        """Total tokens of A and B."""
        return self.seq_len - self.reuse_len - NUM_SYMBOLS

    @property
    def span_len(self) -> int:
        """Tokens of the reused part, A, and B if it continues A."""
        return self.reuse_len + self.pair_len

    @property
    def new_tokens(self) -> int:
        """Tokens of the reused part; A and B are read again by the next sample."""
        return self.reuse_len or self.pair_len

    @property
    def num_predictions(self) -> int:
        """The length of the query stream."""
        return self.num_predict

    @property
    def predicted_share(self) -> tuple[float, float]:
        """The target share within 20 %, less those that may fall on SEP and CLS."""
        share = self.num_predict / self.seq_len
        return 0.8 * (share - NUM_SYMBOLS / self.seq_len), 1.2 * share

    @property
    def bidirectional_streams(self) -> bool:
        """True with `bi_data`. Evaluation always reads forwards."""
        return self.bi_data

    @property
    def random_segment(self) -> int:
        """Length of the random segment, which is the second part of half of the pairs."""
        return self.pair_len

    def num_segments(self, data: TokenDataset) -> int:
        """Number of segments: A, B and CLS."""
        return self.token_layout.num_segments(2)

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> PermutationLMCollator:
        """The collator."""
        return PermutationLMCollator(
            self,
            tokenizer.vocabulary,
            SpanSampler(
                tokenizer.word_starts(),
                max_ngram=self.max_ngram,
                alpha=self.span_alpha,
                beta=self.span_beta,
                whole_words=self.span_unit == "word",
            ),
            seed,
        )

    def head(self, backbone: Backbone) -> PermutationLMHead:
        """The head."""
        return PermutationLMHead(backbone.output_layer(), share=self.num_predict / self.seq_len)


@dataclass(frozen=True, eq=False)
class PermutationLMCollator:
    """Collates samples into token ids, segments, a factorization order and the positions to predict.

    Shapes: T is seq_len, P num_predict. Shorter and empty samples are padded within both parts and have fewer
    predictions.
    """

    objective: PermutationLM
    vocabulary: Vocabulary
    spans: SpanSampler
    seed: int

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch from any number of samples, including none."""
        batch_size, seq_len, num_predict = len(samples), self.objective.seq_len, self.objective.num_predict
        tokens = np.full((batch_size, seq_len), self.vocabulary.pad, dtype=np.int64)
        segments, order = np.zeros_like(tokens), np.zeros_like(tokens)
        valid, chosen = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
        predict = np.zeros((batch_size, num_predict), dtype=np.int64)
        there = np.zeros((batch_size, num_predict), bool)
        for i, sample in enumerate(samples):
            rng = sample_rng(self.seed, sample)
            self._lay_out(sample, rng, tokens[i], segments[i], valid[i])
            symbols = (tokens[i] == self.vocabulary.sep) | (tokens[i] == self.vocabulary.cls)
            chosen[i] = self._choose(tokens[i], valid[i], rng, reverse=sample.reversed) & ~symbols
            order[i] = self._factorize(chosen[i] | symbols, rng)
            (positions,) = np.nonzero(chosen[i])
            predict[i, : len(positions)] = positions
            there[i, : len(positions)] = True
        inputs = BackboneInput(
            tokens=torch.from_numpy(tokens),
            mem_valid_len=torch.tensor([sample.mem_valid_len for sample in samples], dtype=torch.int64),
            attention_mask=torch.from_numpy(valid),
            segments=torch.from_numpy(segments),
            perm_rank=torch.from_numpy(order),
            target_positions=torch.from_numpy(predict),
            reversed=torch.tensor([sample.reversed for sample in samples], dtype=torch.bool),
            every_query_sees=_every_query_sees(valid, chosen, order),
            reuse_len=self.objective.reuse_len,
        )
        # Both are in the order of positions, so the targets are the chosen tokens in order.
        targets = {"plm": torch.from_numpy(tokens[chosen]), "plm_positions": torch.from_numpy(np.flatnonzero(there))}
        return Batch(inputs, targets, {"plm": int(chosen.sum())})

    def _lay_out(
        self, sample: Sample, rng: np.random.Generator, tokens: np.ndarray, segments: np.ndarray, valid: np.ndarray
    ) -> None:
        """Write the tokens, segments and attention mask of one sample; the reused part has segment 0."""
        reuse_len = self.objective.reuse_len
        reused, rest = sample.tokens[:reuse_len], sample.tokens[reuse_len : self.objective.span_len]
        tokens[: len(reused)] = reused
        valid[: len(reused)] = True
        if len(rest) < 2:
            return
        pair, layout = self._split(sample, rest, rng), self.objective.token_layout
        length, _ = layout.write(pair, self.vocabulary, tokens[reuse_len:], segments[reuse_len:])
        valid[reuse_len : reuse_len + length] = True

    def _split(self, sample: Sample, rest: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Make A and B: cut at a random sentence end; B continues A or, in half of the samples, comes from elsewhere.

        The longer one is truncated on the right until both fit.
        """
        total, start = len(rest), self.objective.reuse_len
        cuts = _places_to_cut(sample) - start
        cuts = cuts[(cuts > 0) & (cuts < total)]
        goes_on = len(cuts) > 0 and rng.random() < 0.5
        cut = int(rng.choice(cuts)) if len(cuts) else total
        if goes_on:
            return rest[:cut], rest[cut:]
        second = rest[:0] if sample.random_segment is None else sample.random_segment.tokens
        if sample.random_segment is not None:
            ends = sample.random_segment.sentence_ends + 1
            enough = ends[ends >= max(1, total - cut)]
            second = second[: enough[0]] if len(enough) else second
        if not len(second):
            return rest[: total - 1], rest[total - 1 :]
        len_first, len_second = _trim(cut, len(second), total)
        return rest[:len_first], second[:len_second]

    def _choose(self, tokens: np.ndarray, valid: np.ndarray, rng: np.random.Generator, *, reverse: bool) -> np.ndarray:
        """Choose the positions to predict: half of them in each part, scaled by the part's actual length."""
        objective = self.objective
        chosen = np.zeros(len(tokens), bool)
        second = objective.num_predict // 2 if objective.reuse_len else objective.num_predict
        for start, stop, goal in (
            (0, objective.reuse_len, objective.num_predict - second),
            (objective.reuse_len, objective.seq_len, second),
        ):
            length = int(valid[start:stop].sum())
            if length:
                part = tokens[start : start + length]
                mask = self.spans.sample(part[::-1] if reverse else part, goal * length // (stop - start), rng)
                chosen[start : start + length] = mask[::-1] if reverse else mask
        return chosen

    def _factorize(self, ordered: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Ranks in the factorization order: in each part, the context shares the lowest rank, followed by the `ordered`
        tokens (predictions and special tokens) one by one.

        The second part comes after the first. Within a part, every `perm_size` tokens have the same permutation.
        """
        objective = self.objective
        ranks, base = np.zeros(len(ordered), dtype=np.int64), 0
        for start, stop in ((0, objective.reuse_len), (objective.reuse_len, objective.seq_len)):
            permutation = rng.permutation(objective.perm_size) if stop > start else np.zeros(0, np.int64)
            blocks = np.arange(0, stop - start, objective.perm_size)
            drawn = (blocks[:, None] + permutation).ravel()
            ranks[start:stop] = base + np.where(ordered[start:stop], 1 + drawn, 0)
            base += stop - start + 1
        return ranks


def _every_query_sees(valid: np.ndarray, chosen: np.ndarray, order: np.ndarray) -> bool:
    """True if there is no padding, and in every sample a token comes before all predictions."""
    first_chosen = np.where(chosen, order, np.iinfo(order.dtype).max).min(axis=1)
    return bool(valid.all() and (order.min(axis=1) < first_chosen).all())


class PermutationLMHead(Head):
    """The vocabulary projection of the query stream, and the summed loss."""

    def __init__(self, output: OutputLayer, *, share: float):
        super().__init__()
        self.output = output
        self.share = share

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss, and the loss of each prediction."""
        assert hidden.predictions is not None, "requires a two-stream backbone and positions to predict"
        total, scores = token_prediction_loss(self.output, hidden.predictions, batch, "plm")
        return Loss({"plm": total}, {"plm": scores})

    def flops_per_token(self) -> float:
        """FLOPs per token of the output layer, forward and backward."""
        return self.output.flops_per_token() * self.share


def _places_to_cut(sample: Sample) -> np.ndarray:
    """Positions after each sentence and document, but not before the token at a document's end."""
    sentences, documents = sample.sentence_ends + 1, sample.document_ends + 1
    if len(documents):
        closed = np.append(sample.document_ends, -1)
        sentences = sentences[closed[sample.document_ends.searchsorted(sentences)] != sentences]
        sentences = np.sort(np.concatenate([sentences, documents]))
        sentences = sentences[np.diff(sentences, prepend=-1) > 0]
    return sentences


def _trim(first: int, second: int, total: int) -> tuple[int, int]:
    """Reduce two lengths to a sum of at most `total`, taking from the longer one, or the second on a tie."""
    excess = max(first + second - total, 0)
    from_longer = min(excess, abs(first - second))
    if first > second:
        first -= from_longer
    else:
        second -= from_longer
    excess -= from_longer
    return first - excess // 2, second - (excess + 1) // 2
