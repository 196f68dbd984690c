"""Masked language modeling with a sentence task.

BERT (Devlin et al. 2018, arXiv:1810.04805) with next sentence prediction, ALBERT (Lan et al. 2019, arXiv:1909.11942)
with sentence order prediction and n-grams. A sample is [CLS] A [SEP] B [SEP]. Masks are sampled again in each epoch;
the originals stored 10 to 40 fixed copies of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from xlpretrain.data.samples import Sample
from xlpretrain.data.sentence_pairs.pairing import PairingRules
from xlpretrain.data.sentence_pairs.samples import PairEvalSamples, PairSamples
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.data.tokenizers.token_layout import CLS_FIRST, TokenLayout
from xlpretrain.models.backbone import Backbone, BackboneInput, Hidden, OutputLayer
from xlpretrain.models.kernels.packing import valid_tokens
from xlpretrain.models.pretraining_model import Batch, Head, Loss, TokenScores
from xlpretrain.models.stack import Pooler, draw
from xlpretrain.objectives.base import (
    EvaluationStreams,
    HubHead,
    Objective,
    TrainingStreams,
    sample_rng,
    token_prediction_loss,
)
from xlpretrain.objectives.likelihood_queries import LikelihoodQuery, pseudo_likelihood_queries
from xlpretrain.objectives.token_masking import TokenMasker
from xlpretrain.schema import Problem

_KEYS_BEFORE_NSP_PAIRS = frozenset(
    ("seq_len", "mask_rate", "max_predictions", "max_ngram", "whole_words", "sentence_task", "sop_single_sentence")
) | {"short_seq_prob", "sentence_weight"}


class MaskedLM(Objective):
    """-log p(token | the sample with some tokens masked), plus a sentence task on the two parts of the sample."""

    type: Literal["masked_lm"] = "masked_lm"
    """Kind of objective."""
    seq_len: int = Field(512, ge=8)
    """Tokens per sample, including CLS, SEP and SEP."""
    mask_rate: float = Field(0.15, gt=0, lt=1)
    """Share of a sample's tokens to predict; at least one token."""
    max_predictions: PositiveInt | None = None
    """Maximum number of tokens to predict per sample (default: from mask_rate). The published BERT and ALBERT recipes
    have 20, which is 4 % at seq_len 512."""
    max_ngram: PositiveInt = 3
    """Maximum n of masked n-grams of words; n has a probability proportional to 1/n. 1: single words."""
    whole_words: bool = True
    """Mask whole words; false: individual tokens."""
    shifted: bool = False
    """Predict a masked token from the state of the token before it, as a causal model does (masked next token
    prediction of GPT-BERT, arXiv:2410.24159)."""
    sentence_task: Literal["sop", "nsp", "none"] = "sop"
    """sop: are the two parts swapped (ALBERT); nsp: does the second follow the first (BERT); none: a single part."""
    sop_single_sentence: Literal["original", "skip", "split"] = "split"
    """Treatment of a single sentence by sop. original: as in ALBERT's code, the second part comes from another document
    and counts as swapped; skip: one part without a target; split: cut the sentence in two."""
    nsp_pairs: Literal["matched", "exchanged"] | None = None
    """Second parts from other documents in nsp. matched: the lengths of the parts do not reveal the label.
    exchanged: as in runs that started before this key existed, where they do. null: as the run started, or matched for
    a new run."""
    short_seq_prob: float = Field(0.1, ge=0, le=1)
    """Probability of a shorter target length, of 2 to seq_len - 3 tokens."""
    sentence_weight: NonNegativeFloat = 1.0
    """Weight of the sentence task in the loss."""

    requires: ClassVar[frozenset[str]] = frozenset({"bidirectional"})

    @property
    def hub_head(self) -> HubHead:  # type: ignore[override]
        """Logits of masked positions or, if shifted, of the positions before them, which no stock class expects."""
        return "tokens" if self.shifted else "masked_lm"

    @property
    def ahead(self) -> int:
        """Number of positions from the state that predicts a token to its mask."""
        return int(self.shifted)

    @property
    def remembers(self) -> bool:
        """False: samples are not consecutive."""
        return False

    @property
    def token_layout(self) -> TokenLayout:
        """[CLS] A [SEP] B [SEP]."""
        return CLS_FIRST

    @property
    def answer_names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the classes of the sentence tasks."""
        return {
            "sop": ("parts in order", "parts swapped"),
            "nsp": ("second part follows the first", "second part from elsewhere"),
        }

    def likelihood_queries(self, text: Sequence[int], vocabulary: Vocabulary) -> Iterator[LikelihoodQuery]:
        """Queries for each token, replaced by a mask."""
        return pseudo_likelihood_queries(
            text, vocabulary, self.token_layout, seq_len=self.seq_len, kind="masked", ahead=self.ahead
        )

    @model_validator(mode="before")
    @classmethod
    def _keep_old_pairs(cls, data: Any) -> Any:
        """Keep the data of runs of earlier versions, whose configs have every key except nsp_pairs."""
        is_old = isinstance(data, Mapping) and data.keys() >= _KEYS_BEFORE_NSP_PAIRS and "nsp_pairs" not in data
        return {**data, "nsp_pairs": "exchanged"} if is_old and data["sentence_task"] == "nsp" else data

    def resolved(self, begun: Objective | None) -> MaskedLM:
        """A copy with nsp_pairs resolved for nsp: as given, else as the run started, else matched."""
        if self.sentence_task != "nsp":
            return self
        before = begun.nsp_pairs if isinstance(begun, MaskedLM) else None
        return self.model_copy(update={"nsp_pairs": self.nsp_pairs or before or "matched"})

    @property
    def terms(self) -> tuple[str, ...]:
        """The loss terms: masked tokens, and the sentence task if any."""
        return ("mlm",) if self.sentence_task == "none" else ("mlm", self.sentence_task)

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss term."""
        return {term: 1.0 if term == "mlm" else self.sentence_weight for term in self.terms}

    @property
    def span_len(self) -> int:
        """The length of a sample."""
        return self.seq_len

    @property
    def new_tokens(self) -> int:
        """The length of a sample; shorter ones are padded."""
        return self.seq_len

    @property
    def predicted_share(self) -> tuple[float, float]:
        """The target share within 20 %; by default 12 to 18 %."""
        least = min(self.mask_rate, (self.max_predictions or self.seq_len) / self.seq_len)
        return 0.8 * least, 1.2 * self.mask_rate

    @property
    def pairing_rules(self) -> PairingRules:
        """The rules for cutting documents into pairs."""
        return PairingRules(
            max_tokens=self.seq_len - self.token_layout.num_symbols(self.max_texts),
            task=self.sentence_task,
            single_sentence=self.sop_single_sentence,
            nsp_pairs=self.nsp_pairs or "matched",
            short_seq_prob=self.short_seq_prob,
        )

    def run_problems(self, *, mem_len: int, global_batch_size: int) -> Iterator[Problem]:
        """Conflicts with the rest of the config: samples are not consecutive."""
        yield from self.memory_problems(mem_len)

    def data_problems(self, manifest: TokenDataset) -> Iterator[Problem]:
        """Conflicts with the data: a sentence task requires documents of several sentences."""
        yield from super().data_problems(manifest)
        if self.sentence_task != "none" and manifest.num_sentences <= manifest.num_documents:
            yield (
                "objective.sentence_task",
                f"{self.sentence_task} requires documents of two or more sentences, but the"
                f" {manifest.num_documents:,} documents of {manifest.folder} have {manifest.num_sentences:,} sentences"
                " in total; set objective.sentence_task=none, or build the data with another sentences.splitter or"
                " longer documents",
            )

    @property
    def max_texts(self) -> int:
        """Maximum number of texts per sample: one without a sentence task, else two."""
        return 1 if self.sentence_task == "none" else 2

    def num_segments(self, data: TokenDataset) -> int:
        """Number of segments of a sample with all its texts."""
        return self.token_layout.num_segments(self.max_texts)

    def training_samples(self, manifest: TokenDataset, **streams: Unpack[TrainingStreams]) -> PairSamples:
        """Shuffled pairs, from whole blocks."""
        return PairSamples(
            manifest,
            self.pairing_rules,
            num_streams=streams["num_streams"],
            seed=streams["seed"],
            shuffle_blocks=streams["shuffle_blocks"],
        )

    def evaluation_samples(self, manifest: TokenDataset, **streams: Unpack[EvaluationStreams]) -> PairEvalSamples:
        """One sample per run of sentences."""
        num_tokens, num_streams = streams["num_tokens"], streams["num_streams"]
        return PairEvalSamples(manifest, self.pairing_rules, num_tokens=num_tokens, num_streams=num_streams)

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> MaskedLMCollator:
        """The collator."""
        starts = tokenizer.word_starts()
        masking = TokenMasker(
            starts if self.whole_words else np.ones_like(starts),
            tokenizer.vocabulary.mask,
            tokenizer.vocabulary.unk,
            self.mask_rate,
            self.max_predictions,
            self.max_ngram,
        )
        task = None if self.sentence_task == "none" else self.sentence_task
        return MaskedLMCollator(self.seq_len, tokenizer.vocabulary, self.token_layout, masking, task, seed, self.ahead)

    def head(self, backbone: Backbone) -> MaskedLMHead:
        """The head."""
        predictions = min(self.max_predictions or self.seq_len, max(1, round(self.seq_len * self.mask_rate)))
        return MaskedLMHead(
            backbone.output_layer(),
            sentence=None
            if self.sentence_task == "none"
            else SentenceHead(backbone.d_model, init_std=backbone.init_std),
            task=self.sentence_task,
            predictions_per_token=predictions / self.seq_len,
            seq_len=self.seq_len,
        )


@dataclass(frozen=True, eq=False)
class MaskedLMCollator:
    """Collates samples into masked tokens, padded to seq_len, and targets.

    An empty sample is a single CLS, so that there is something to attend to, and has no targets. Padding has segment 0.
    Each target is predicted from the state `ahead` positions before it.
    """

    seq_len: int
    vocabulary: Vocabulary
    layout: TokenLayout
    masking: TokenMasker
    task: str | None
    seed: int
    ahead: int = 0

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch from any number of samples, including none."""
        tokens = np.full((len(samples), self.seq_len), self.vocabulary.pad, dtype=np.int64)
        segments, valid = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
        answers, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        labels = np.full(len(samples), -1)
        for number, sample in enumerate(samples):
            assert sample.pair_target is not None, "samples of `PairSamples`"
            split, text = sample.pair_target.split, sample.tokens
            texts = [text[:split], text[split:]] if split < len(text) else [text] if split else []
            length, parts = self.layout.write(texts, self.vocabulary, tokens[number], segments[number])
            valid[number, :length] = True
            if not len(sample.tokens):
                continue
            generator = sample_rng(self.seed, sample)
            chosen = self.masking.choose(tokens[number, :length], parts, generator)
            answers.append(tokens[number, chosen])
            places.append(chosen - self.ahead + number * self.seq_len)
            tokens[number, chosen] = self.masking.replace(answers[-1], generator)
            labels[number] = sample.pair_target.label
        valid_at, valid_from = valid_tokens(valid)
        inputs = BackboneInput(
            tokens=torch.from_numpy(tokens),
            mem_valid_len=torch.zeros(len(samples), dtype=torch.int64),
            attention_mask=torch.from_numpy(valid),
            segments=torch.from_numpy(segments),
            valid_at=valid_at,
            valid_from=valid_from,
        )
        targets = {"mlm": np.concatenate(answers), "mlm_positions": np.concatenate(places)}
        counts = {"mlm": len(targets["mlm"])}
        if self.task is not None:
            asked = np.flatnonzero(labels >= 0)
            targets |= {self.task: labels[asked], f"{self.task}_positions": asked}
            counts[self.task] = len(asked)
        return Batch(inputs, {name: torch.from_numpy(values) for name, values in targets.items()}, counts)


class SentenceHead(nn.Module):
    """Binary classification of a sample from its first token."""

    def __init__(self, d_model: int, *, init_std: float):
        super().__init__()
        self.pooler = Pooler(d_model, init_std=init_std)
        self.classifier = nn.Linear(d_model, 2)
        draw(self.classifier, init_std, truncated=True)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B 2"]:
        """The logits of each sample."""
        logits: Tensor = self.classifier(self.pooler(hidden))
        return logits

    def flops_per_sample(self) -> float:
        """FLOPs per sample, forward and backward."""
        return 6.0 * (self.pooler.linear.weight.numel() + self.classifier.weight.numel())


class MaskedLMHead(Head):
    """The vocabulary projection of masked tokens only, and the sentence task of samples with a label."""

    def __init__(
        self,
        output: OutputLayer,
        *,
        sentence: SentenceHead | None,
        task: str,
        predictions_per_token: float,
        seq_len: int,
    ):
        super().__init__()
        self.output = output
        self.sentence = sentence
        self.task, self.predictions_per_token, self.seq_len = task, predictions_per_token, seq_len

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed losses, and the loss of each prediction."""
        total, scores = token_prediction_loss(self.output, hidden.tokens, batch, "mlm")
        if self.sentence is None:
            return Loss({"mlm": total}, {"mlm": scores})
        at, labels = batch.targets[f"{self.task}_positions"], batch.targets[self.task]
        logits = self.sentence(hidden.tokens).index_select(0, at).float()
        nll = F.cross_entropy(logits, labels, reduction="none")
        correct = None if self.training else logits.argmax(dim=-1) == labels
        asked = TokenScores(samples=at, nll=nll.detach(), correct=correct)
        return Loss({"mlm": total, self.task: nll.sum()}, {"mlm": scores, self.task: asked})

    def flops_per_token(self) -> float:
        """FLOPs per token of the output layer, for the share of tokens it processes, and of the sentence task."""
        sample = self.sentence.flops_per_sample() if self.sentence is not None else 0.0
        return self.output.flops_per_token() * self.predictions_per_token + sample / self.seq_len
