"""The interface of a training objective: samples of the data, a collator (CPU, pure) and a head (device) that gives
sums of losses.

Shapes: B samples, T new tokens, N predictions of a micro-batch, V vocabulary, D d_model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NotRequired, Protocol, TypedDict, TypeVar, Unpack, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from xlpretrain import distributed
from xlpretrain.data.evaluation_samples import WindowEvalSamples
from xlpretrain.data.order import hash_ints
from xlpretrain.data.samples import CorpusSamples, EvalSamples, Sample, StreamSamples
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.data.tokenizers.token_layout import TokenLayout
from xlpretrain.errors import ConfigError
from xlpretrain.models.backbone import Backbone, BackboneConfig, OutputLayer
from xlpretrain.models.pretraining_model import Batch, Head, TokenScores
from xlpretrain.objectives.likelihood_queries import LikelihoodQuery
from xlpretrain.schema import Problem, Section

HubHead = Literal["causal_lm", "masked_lm", "tokens"]
"""The head of an exported model, which determines the `transformers` classes that load it. causal_lm: logits of the
next token (`AutoModelForCausalLM`, which can generate). masked_lm: logits of masked positions or of the second stream,
with or without a sentence task (`AutoModelForPreTraining`, `AutoModelForMaskedLM`). tokens: logits of other tokens
(`AutoModelForPreTraining`)."""
_T = TypeVar("_T")


@runtime_checkable
class Collator(Protocol):
    """Collates samples into a micro-batch. Pure, picklable, on the CPU."""

    def __call__(self, samples: Sequence[Sample]) -> Batch: ...


class TrainingStreams(TypedDict):
    """The keyword arguments of `Objective.training_samples`.

    block_tokens: read blocks in parts of this size, which divides theirs (default: whole blocks).
    """

    mem_len: int
    num_streams: int
    seed: int
    shuffle_blocks: int
    block_tokens: NotRequired[int | None]


class EvaluationStreams(TypedDict):
    """The keyword arguments of `Objective.evaluation_samples`. num_tokens: size of the data to read, from the start."""

    num_tokens: int
    num_streams: int
    mem_len: int


@dataclass(frozen=True)
class StreamGroup:
    """Consecutive streams of a run with samples of one objective; their micro-batches hold no streams of other groups.

    mem_len: memory length of these streams. number: index of the group, 0 for the only one.
    """

    objective: Objective
    streams: range
    mem_len: int
    number: int = 0

    def seed(self, seed: int) -> int:
        """The seed of the group's order and collator, given the run's: each group has its own."""
        return hash_ints(seed, self.number) if self.number else seed

    def streams_of(self, rank: int, world_size: int) -> range:
        """The group's streams of a rank; may be empty."""
        return self._numbered(distributed.streams_of(rank, world_size, len(self.streams)))

    def micro_batches(self, rank: int, world_size: int, micro_batch_size: int) -> list[range]:
        """The streams of each of a rank's micro-batches, of which all ranks have equally many: see `distributed`."""
        cuts = distributed.micro_batches(
            rank, world_size, num_streams=len(self.streams), micro_batch_size=micro_batch_size
        )
        return [self._numbered(cut) for cut in cuts]

    def _numbered(self, within: range) -> range:
        return range(self.streams.start + within.start, self.streams.start + within.stop)


class Objective(Section, ABC):
    """The config of an objective, with methods that build its parts.

    An objective declares the uses of its trained models other than evaluation: `token_layout`, `hub_head`,
    `likelihood_queries`, `generates`. Undeclared uses raise an error. A derived class must declare
    `hub_head`, `likelihood_queries` and `generates` itself, since it may predict something else than its parent.
    """

    type: str
    seq_len: int

    requires: ClassVar[frozenset[str]]
    """Capabilities that a backbone must provide: memory, causal, two_stream, bidirectional."""
    predicts_tokens: ClassVar[bool] = True
    """True if the objective trains on a corpus, False for a task on examples (`tasks/base.py`)."""
    data_type: ClassVar[str] = "corpus"
    """The type of the data that it trains on (`data.type`)."""
    metric_names: ClassVar[tuple[str, ...]] = ()
    """Metrics of evaluations beside losses and accuracies, all better if larger (`eval.best`)."""

    hub_head: ClassVar[HubHead | None] = None
    """The model's head in `transformers`, with the weights of `head.output` (and `head.sentence`)."""
    generates: ClassVar[bool] = False
    """True if the logits at a token predict the next one, so that the model can generate text."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Reset what a parent class declared about its predictions."""
        super().__pydantic_init_subclass__(**kwargs)
        for name in ("hub_head", "generates", "likelihood_queries"):
            if name not in vars(cls):
                setattr(cls, name, getattr(Objective, name))

    @property
    def token_layout(self) -> TokenLayout | None:
        """The special tokens and segments around a text or a pair of texts; None if undeclared.

        Used for fine-tuning, generation and the exported tokenizer.
        """
        return None

    @property
    def answer_names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the classes 0, 1, ... of loss terms that do not predict tokens."""
        return {}

    def likelihood_queries(self, text: Sequence[int], vocabulary: Vocabulary) -> Iterable[LikelihoodQuery]:
        """The queries whose first-term predictions sum to the log-likelihood of a text, in order.

        text: ids without special tokens. Raises `ConfigError` if the objective declares none.
        """
        raise ConfigError(
            f"objective {self.type} has no likelihood of a text because its class {type(self).__name__} does not define"
            " `likelihood_queries` (docs/extend/objective.md)"
        )

    def declared(self, value: _T | None, name: str) -> _T:
        """Return `value`, the declaration named `name`. Raises `ConfigError` if it is missing."""
        if not value:
            raise ConfigError(
                f"not supported by objective {self.type} because its class {type(self).__name__} does not declare"
                f" `{name}` (docs/extend/objective.md)"
            )
        return value

    def resolved(self, begun: Objective | None) -> Objective:
        """A copy with keys resolved that depend on how the run started. begun: the objective of the started run, or
        None for a new run. Default: unchanged."""
        return self

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms. If the first one predicts tokens, its perplexity is reported."""

    @property
    @abstractmethod
    def span_len(self) -> int:
        """Number of data tokens of a sample, from its first input to its last target."""

    @property
    @abstractmethod
    def new_tokens(self) -> int:
        """Number of tokens by which a sample advances its stream, and extends its memory."""

    def stream_groups(self, num_streams: int, mem_len: int) -> Sequence[StreamGroup]:
        """The groups of a run's streams, in order. Default: one."""
        return (StreamGroup(self, range(num_streams), mem_len),)

    def tokens_per_step(self, num_streams: int) -> int:
        """Number of new tokens of a step."""
        return sum(len(group.streams) * group.objective.new_tokens for group in self.stream_groups(num_streams, 0))

    @property
    def by_part(self) -> Mapping[str, Objective]:
        """The parts of a mixed objective by name, as they are in the mix; empty for other objectives."""
        return {}

    def part(self, name: str | None, use: str) -> Objective:
        """The objective of a use of the trained model: a part of a mixed objective, else this one.

        Args:
            name: name of a part; None: the first one that declares `use`.
            use: `generates`, `hub_head`, `likelihood_queries` or `token_layout`; empty: any part.

        Raises:
            ConfigError: there is no such part.
        """
        if name is not None:
            raise ConfigError(f"--part {name}: objective {self.type} has no parts; only a mixed objective has")
        return self

    def declares(self, use: str) -> bool:
        """True if the objective declares a use of its trained models: see `part`."""
        if use == "likelihood_queries":
            return type(self).likelihood_queries is not Objective.likelihood_queries
        return bool(getattr(self, use))

    def with_seq_len(self, seq_len: int) -> dict[str, Any]:
        """The keys with another seq_len, as data to validate."""
        return {**self.model_dump(mode="json"), "seq_len": seq_len}

    def part_losses(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """The loss of each part of a mixed objective, from the mean of each loss term."""
        return {}

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss term in the step's loss."""
        return dict.fromkeys(self.terms, 1.0)

    @property
    def remembers(self) -> bool:
        """True if a stream's samples are consecutive, so that it can have a memory."""
        return True

    @property
    def predicted_share(self) -> tuple[float, float] | None:
        """The range for the share of tokens that are predicted, outside of which a run warns; None for no warning."""
        return None

    @property
    def num_predictions(self) -> int:
        """Maximum number of positions per sample that a second stream predicts; 0 without one."""
        return 0

    @property
    def bidirectional_streams(self) -> bool:
        """True if streams 2k and 2k + 1 read the same blocks in training, with the second one reading backwards."""
        return False

    @property
    def random_segment(self) -> int:
        """Number of tokens from a random other position that each sample includes."""
        return 0

    @property
    def needs_boundaries(self) -> bool:
        """True if training samples must include document and sentence ends."""
        return True

    def check_data(self, train: Sequence[TokenDataset], valid: TokenDataset | None) -> None:
        """Check the content of a run's data before it starts. Default: nothing. Raises `DataError`."""
        return

    def data_notes(self, data: TokenDataset) -> Iterator[str]:
        """Notes for the user about these data. Default: none."""
        yield from ()

    def num_segments(self, data: TokenDataset) -> int:
        """Maximum number of segments of samples of these data. Default: 1."""
        return 1

    @abstractmethod
    def collator(self, tokenizer: Tokenizer, *, seed: int) -> Collator:
        """The collator (on the CPU). Its random choices are keyed by seed, epoch and sample (`sample_rng`)."""

    @abstractmethod
    def head(self, backbone: Backbone) -> Head:
        """The head (on the device), for a new backbone."""

    def training_samples(self, manifest: TokenDataset, **streams: Unpack[TrainingStreams]) -> CorpusSamples:
        """The training samples: contiguous per stream with a memory, else shuffled."""
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
        """The samples of an evaluation. Default: consecutive windows."""
        return WindowEvalSamples(
            manifest,
            span_len=self.span_len,
            new_tokens=self.new_tokens,
            random_segment=self.random_segment,
            **streams,
        )

    def model_problems(self, model: BackboneConfig) -> Iterator[Problem]:
        """A problem if the model lacks a capability, by keys of the whole config."""
        if lacking := sorted(self.requires - model.provides):
            yield "objective.type", f"{self.type} needs {', '.join(lacking)}, which {model.type} lacks"

    def run_problems(self, *, mem_len: int, global_batch_size: int) -> Iterator[Problem]:
        """Conflicts with the rest of the config, by keys of the whole config."""
        yield from ()

    def memory_problems(self, mem_len: int) -> Iterator[Problem]:
        """A problem if there is a memory, for objectives with shuffled samples."""
        if mem_len:
            yield "model.mem_len", f"must be 0 with {self.type}, whose samples are not consecutive, got {mem_len}"

    def data_problems(self, manifest: TokenDataset) -> Iterator[Problem]:
        """Conflicts with the data, by keys of the whole config."""
        if self.span_len > manifest.block_tokens:
            yield (
                "objective.seq_len",
                f"a sample of {self.span_len} tokens does not fit into a block of {manifest.block_tokens}",
            )


def sample_rng(seed: int, sample: Sample) -> np.random.Generator:
    """The random generator of a sample: the same in every process, different in each epoch."""
    return np.random.Generator(np.random.Philox(key=hash_ints(seed, sample.epoch, sample.sample_index)))


def token_prediction_loss(
    output: OutputLayer, hidden: Float[Tensor, "B T D"], batch: Batch, term: str
) -> tuple[Float[Tensor, ""], TokenScores]:
    """The summed loss of a term that predicts tokens, and the loss of each prediction.

    hidden: states of the query stream if there is one, else of the tokens. Logits are computed only for the targets.
    """
    flat, at = hidden.flatten(0, 1), batch.targets[f"{term}_positions"]
    states = flat if len(at) == len(flat) else flat.index_select(0, at)
    nll, correct = output(states, batch.targets[term], batch.clusters.get(term))
    return nll.sum(), TokenScores(samples=batch.samples_of(term), nll=nll.detach(), correct=correct)
