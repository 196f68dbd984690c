"""The interface of a training objective: samples of the data, a collator (CPU, pure) and a head (device) that gives
sums.

Shapes: B samples, T new tokens, N predictions of a micro-batch, V vocabulary, D d_model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NotRequired, Protocol, TypedDict, TypeVar, Unpack, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from xlpretrain.data.evaluation_samples import WindowEvalSamples
from xlpretrain.data.order import hash_ints
from xlpretrain.data.samples import CorpusSamples, EvalSamples, Sample, StreamSamples
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.data.tokenizers.token_layout import TokenLayout
from xlpretrain.errors import ConfigError
from xlpretrain.models.backbone import Backbone, OutputLayer
from xlpretrain.models.pretraining_model import Batch, Head, TokenScores
from xlpretrain.objectives.likelihood_queries import LikelihoodQuery
from xlpretrain.schema import Problem, Section

HubHead = Literal["causal_lm", "masked_lm", "tokens"]
"""The logits of an exported model, and so the classes of `transformers` that load it. causal_lm: of the next token
(`AutoModelForCausalLM`, which generates). masked_lm: of the token at a masked position or in the second stream, and
perhaps of a sentence task (`AutoModelForPreTraining`, `AutoModelForMaskedLM`). tokens: of any other token
(`AutoModelForPreTraining`)."""
_T = TypeVar("_T")


@runtime_checkable
class Collator(Protocol):
    """Samples into a micro-batch: pure, picklable, on the CPU."""

    def __call__(self, samples: Sequence[Sample]) -> Batch: ...


class TrainingStreams(TypedDict):
    """The keyword arguments of `Objective.training_samples`.

    block_tokens: read blocks as if they were so small (default: as they are); it divides their size.
    """

    mem_len: int
    num_streams: int
    seed: int
    shuffle_blocks: int
    block_tokens: NotRequired[int | None]


class EvaluationStreams(TypedDict):
    """The keyword arguments of `Objective.evaluation_samples`, which reads the first `num_tokens` tokens."""

    num_tokens: int
    num_streams: int
    mem_len: int


class Objective(Section, ABC):
    """The config of an objective, which knows how to build its parts.

    What can be done with a trained model, beside evaluating it, an objective declares: `token_layout`, `hub_head`,
    `likelihood_queries`, `generates`, `class_labels`. Undeclared uses are refused. A derived class declares `hub_head`,
    `likelihood_queries` and `generates` anew, since it may predict something else than its parent.
    """

    type: str
    seq_len: int

    requires: ClassVar[frozenset[str]]
    """Capabilities, among memory, causal, two_stream and bidirectional, that a backbone must provide."""
    predicts_tokens: ClassVar[bool] = True
    """True if it learns from a corpus; else from labelled texts."""

    hub_head: ClassVar[HubHead | None] = None
    """The head that the model has in `transformers`; its weights are those of `head.output` (and `head.sentence`)."""
    generates: ClassVar[bool] = False
    """True if the logits at a token are of the next one, so that the model can write text."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Take back what a parent has declared of its predictions."""
        super().__pydantic_init_subclass__(**kwargs)
        for name in ("hub_head", "generates", "likelihood_queries"):
            if name not in vars(cls):
                setattr(cls, name, getattr(Objective, name))

    @property
    def token_layout(self) -> TokenLayout | None:
        """The special tokens and segments around a text or a pair of texts; None: undeclared.

        For fine-tuning, generation and the exported tokenizer.
        """
        return None

    @property
    def class_labels(self) -> tuple[str, ...]:
        """The labels of a classifier, whose head has `class_logits`; empty: it is none."""
        return ()

    def num_cut(self, examples: Iterable[Sequence[Sequence[int]]]) -> int:
        """Count the examples (the tokens of their one or two texts) of a classifier that lose their end."""
        return 0

    def describe_cut(self, num_cut: int, total: int) -> str:
        """Say how many examples lose their end, and why."""
        return (
            f"{num_cut:,} of {total:,} examples are longer than a sample of {self.seq_len} tokens (objective.seq_len)"
            " and lose their end"
        )

    @property
    def answer_names(self) -> Mapping[str, tuple[str, ...]]:
        """The meaning of each answer, 0, 1, ..., of the terms that do not predict tokens."""
        return {}

    def likelihood_queries(self, text: Sequence[int], vocabulary: Vocabulary) -> Iterable[LikelihoodQuery]:
        """The samples whose predictions by the first term add up to the log-likelihood of a text, in order.

        text: ids without special tokens. Raises `ConfigError` if none are declared.
        """
        raise ConfigError(
            f"objective {self.type} has no likelihood of a text: its class {type(self).__name__} does not define"
            " `likelihood_queries` (docs/extend/objective.md)"
        )

    def declared(self, value: _T | None, name: str) -> _T:
        """`value`, which the objective declares under `name`. Raises `ConfigError` if it does not."""
        if not value:
            raise ConfigError(
                f"objective {self.type} does not declare `{name}`, so this cannot be done; its class"
                f" {type(self).__name__} would have to define it (docs/extend/objective.md)"
            )
        return value

    def resolved(self, begun: Objective | None) -> Objective:
        """The same with every key decided that follows from the run as it began. begun: its objective; None: a new run.

        Default: nothing does.
        """
        return self

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """The names of the loss terms. The first one's perplexity is reported, where it predicts tokens."""

    @property
    @abstractmethod
    def span_len(self) -> int:
        """Tokens that a sample takes from the data, from its first input to its last target."""

    @property
    @abstractmethod
    def new_tokens(self) -> int:
        """Tokens by which a stream advances in one sample, and by which its memory grows."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss term in the step's loss."""
        return dict.fromkeys(self.terms, 1.0)

    @property
    def predicted_share(self) -> tuple[float, float] | None:
        """The least and the most that may be predicted of the tokens of many samples; None: no warning is called
        for."""
        return None

    @property
    def num_predictions(self) -> int:
        """The most positions of a sample that a second stream predicts; 0 without one."""
        return 0

    @property
    def bidirectional_streams(self) -> bool:
        """True if streams 2k and 2k + 1 read the same samples in training, the second from the other end."""
        return False

    @property
    def random_segment(self) -> int:
        """Tokens from a random other place that each sample brings along."""
        return 0

    @property
    def needs_boundaries(self) -> bool:
        """True if training samples must carry the ends of documents and sentences."""
        return True

    def data_notes(self, data: TokenDataset) -> Iterator[str]:
        """Sentences that tell a user what becomes of this data in particular. Default: none."""
        yield from ()

    def num_segments(self, data: TokenDataset) -> int:
        """The number of segments that samples of this data have at most, counted from 0. Default: 1."""
        return 1

    @abstractmethod
    def collator(self, tokenizer: Tokenizer, *, seed: int) -> Collator:
        """The CPU half. What it draws is keyed by (seed, epoch, sample) of each sample (`sample_rng`)."""

    @abstractmethod
    def head(self, backbone: Backbone) -> Head:
        """The device half, for a freshly built backbone."""

    def training_samples(self, manifest: TokenDataset, **streams: Unpack[TrainingStreams]) -> CorpusSamples:
        """The samples of a run's streams: with a memory, block after block, else shuffled."""
        return StreamSamples.of(
            manifest,
            window=self.span_len,
            stride=self.new_tokens,
            both_ways=self.bidirectional_streams,
            elsewhere=self.random_segment,
            ends=self.needs_boundaries,
            **streams,
        )

    def evaluation_samples(self, manifest: TokenDataset, **streams: Unpack[EvaluationStreams]) -> EvalSamples:
        """The samples of an evaluation: consecutive windows."""
        return WindowEvalSamples(
            manifest,
            span_len=self.span_len,
            new_tokens=self.new_tokens,
            random_segment=self.random_segment,
            **streams,
        )

    def run_problems(self, *, mem_len: int, global_batch_size: int) -> Iterator[Problem]:
        """Yield what contradicts the rest of the config; keys are those of the whole config."""
        yield from ()

    def memory_problems(self, mem_len: int) -> Iterator[Problem]:
        """A memory, where samples do not follow each other."""
        if mem_len:
            yield "model.mem_len", f"must be 0 with {self.type}, whose samples do not follow each other, got {mem_len}"

    def data_problems(self, manifest: TokenDataset) -> Iterator[Problem]:
        """Yield what does not fit the data; keys are those of the whole config."""
        if self.span_len > manifest.block_tokens:
            yield (
                "objective.seq_len",
                f"a sample of {self.span_len} tokens does not fit a block of {manifest.block_tokens}",
            )


def sample_rng(seed: int, sample: Sample) -> np.random.Generator:
    """The source of every random choice about a sample: the same in any process, and anew in each epoch."""
    return np.random.Generator(np.random.Philox(key=hash_ints(seed, sample.epoch, sample.sample_index)))


def token_prediction_loss(
    output: OutputLayer, hidden: Float[Tensor, "B T D"], batch: Batch, term: str
) -> tuple[Float[Tensor, ""], TokenScores]:
    """The summed loss of a term that predicts tokens, and each prediction's.

    hidden: of the query stream if there is one, else of the tokens. Only where something is asked for does it meet the
    vocabulary.
    """
    flat, at = hidden.flatten(0, 1), batch.targets[f"{term}_positions"]
    nll, correct = output(flat if len(at) == len(flat) else flat[at], batch.targets[term])
    return nll.sum(), TokenScores(samples=batch.samples_of(term), nll=nll.detach(), correct=correct)
