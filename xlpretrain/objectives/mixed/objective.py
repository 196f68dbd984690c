"""Several objectives trained together on one backbone, such as masked and causal language modeling.

As in GPT-BERT (Charpentier and Samuel 2024, arXiv:2410.24159) each sample is read with one objective, and all share
every weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Unpack

from pydantic import Field, PositiveFloat, model_serializer, model_validator

from xlpretrain.data.samples import CorpusSamples, EvalSamples, MicroBatchSamples, Sample
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.data.tokenizers.token_layout import TokenLayout
from xlpretrain.errors import ConfigError
from xlpretrain.models.backbone import Backbone, BackboneConfig
from xlpretrain.models.pretraining_model import Batch, Head
from xlpretrain.objectives.base import Collator, EvaluationStreams, HubHead, Objective, StreamGroup, TrainingStreams
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.objectives.likelihood_queries import LikelihoodQuery
from xlpretrain.objectives.masked_lm import MaskedLM
from xlpretrain.objectives.mixed.head import MixedHead
from xlpretrain.objectives.mixed.part import PartInMix
from xlpretrain.objectives.mixed.shares import divide_streams
from xlpretrain.objectives.permutation_lm import PermutationLM
from xlpretrain.schema import Matching, Problem, Registry, Section, TaggedUnion

PART_OBJECTIVES: Registry[Objective] = Registry(
    "objective", Objective, {"masked_lm": MaskedLM, "causal_lm": CausalLM, "permutation_lm": PermutationLM}
)


class Part(Section):
    """One objective of a mix."""

    name: Annotated[str, Matching(r"[A-Za-z0-9_-]+", "consist of letters, digits, - and _")] | None = None
    """Name of the part in metrics and for --part (default: the type of its objective)."""
    share: PositiveFloat
    """Share of the streams, and weight of the part's loss."""
    objective: Annotated[Objective, TaggedUnion(PART_OBJECTIVES)]
    """The objective of these streams: masked_lm, causal_lm or permutation_lm. Its seq_len is that of the mix."""

    @property
    def label(self) -> str:
        """The name, given or not."""
        return self.name or self.objective.type

    @model_serializer(mode="wrap")
    def _without_seq_len(self, serialize: Callable[[Part], dict[str, Any]]) -> dict[str, Any]:
        """The section as data, without the seq_len, which is a key of the mix."""
        found = serialize(self)
        found["objective"].pop("seq_len", None)
        return found


class MixedObjective(Objective):
    """Objectives that share a backbone and an output layer. The loss is the mean of theirs, weighted by shares."""

    type: Literal["mixed"] = "mixed"
    """Kind of objective."""
    seq_len: int = Field(512, ge=8)
    """Tokens per sample, in all parts."""
    parts: tuple[Part, ...] = Field(min_length=1)
    """The objectives, [{share: 0.5, objective: {type: ...}}, ...]. Shares sum to 1."""

    requires: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="after")
    def _share_seq_len(self) -> MixedObjective:
        """Give the mix's seq_len to parts that name none. If only parts name one, the first one is the mix's."""
        named = [part.objective.seq_len for part in self.parts if "seq_len" in part.objective.model_fields_set]
        seq_len = self.seq_len if "seq_len" in self.model_fields_set or not named else named[0]
        parts = tuple(
            part
            if "seq_len" in part.objective.model_fields_set
            else part.model_copy(update={"objective": part.objective.model_copy(update={"seq_len": seq_len})})
            for part in self.parts
        )
        object.__setattr__(self, "seq_len", seq_len)  # a new section, not yet in use
        object.__setattr__(self, "parts", parts)
        return self

    def problems(self) -> Iterator[Problem]:
        """Conflicts between keys."""
        labels = [part.label for part in self.parts]
        for number, part in enumerate(self.parts):
            if labels.index(part.label) < number:
                yield f"parts.{number}.name", f"{part.label} is there twice; give each part a name of its own"
            if part.objective.seq_len != self.seq_len:
                yield (
                    f"parts.{number}.objective.seq_len",
                    f"must be that of all parts, {self.seq_len} (objective.seq_len), got {part.objective.seq_len}",
                )
            if not part.objective.predicts_tokens:
                yield f"parts.{number}.objective.type", f"must predict tokens of a corpus, which {part.label} does not"
        total = sum(part.share for part in self.parts)
        if abs(total - 1) > 0.01:
            yield "parts", f"shares must sum to 1, got {total:g}"
        tasks = {part.objective.sentence_task for part in self.parts if isinstance(part.objective, MaskedLM)} - {"none"}
        if len(tasks) > 1:
            yield (
                "parts",
                f"share one sentence head, so they can have one sentence_task, got {' and '.join(sorted(tasks))}",
            )

    @property
    def shares(self) -> list[float]:
        """The parts' shares, summing to 1 exactly."""
        total = sum(part.share for part in self.parts)
        return [part.share / total for part in self.parts]

    @property
    def by_part(self) -> Mapping[str, Objective]:
        """The parts as they are in the mix; empty if there is only one, which is like its objective alone."""
        if len(self.parts) == 1:
            return {}
        siblings = {part.label: part.objective for part in self.parts}
        return {
            name: PartInMix(seq_len=self.seq_len, name=name, number=number, objective=objective, siblings=siblings)
            for number, (name, objective) in enumerate(siblings.items())
        }

    def part(self, name: str | None, use: str) -> Objective:
        """The objective of a part: the one of this name, or the first one that declares a use."""
        labels = ", ".join(f"{part.label} ({part.objective.type})" for part in self.parts)
        if name is not None:
            found = next((part.objective for part in self.parts if part.label == name), None)
            if found is None:
                raise ConfigError(f"--part {name}: no such part of this mixed objective; it has {labels}")
            return found
        found = next((part.objective for part in self.parts if not use or part.objective.declares(use)), None)
        if found is None:
            raise ConfigError(f"no part of this mixed objective declares `{use}`; it has {labels}")
        return found

    def declares(self, use: str) -> bool:
        """True if a part does."""
        return any(part.objective.declares(use) for part in self.parts)

    @property
    def generates(self) -> bool:  # type: ignore[override]
        """True if a part does."""
        return self.declares("generates")

    @property
    def hub_head(self) -> HubHead | None:  # type: ignore[override]
        """The head of the first part that has one."""
        return self.part(None, "hub_head").hub_head if self.declares("hub_head") else None

    @property
    def token_layout(self) -> TokenLayout | None:
        """The layout of the first part that has one."""
        return self.part(None, "token_layout").token_layout if self.declares("token_layout") else None

    def likelihood_queries(self, text: Sequence[int], vocabulary: Vocabulary) -> Iterable[LikelihoodQuery]:
        """The queries of the first part that declares some. Raises `ConfigError`."""
        return self.part(None, "likelihood_queries").likelihood_queries(text, vocabulary)

    def stream_groups(self, num_streams: int, mem_len: int) -> Sequence[StreamGroup]:
        """A group for each part."""
        views = list(self.by_part.values()) or [self.parts[0].objective]
        return [
            StreamGroup(view, streams, mem_len if view.remembers else 0, number)
            for number, (view, streams) in enumerate(zip(views, divide_streams(num_streams, self.shares), strict=True))
        ]

    def resolved(self, begun: Objective | None) -> Objective:
        """A copy with resolved parts."""
        before = begun.parts if isinstance(begun, MixedObjective) else ()
        parts = [
            part.model_copy(
                update={
                    "objective": part.objective.resolved(before[number].objective if number < len(before) else None)
                }
            )
            for number, part in enumerate(self.parts)
        ]
        return self.model_copy(update={"parts": tuple(parts)})

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms of all parts: `part/term`, or `term` if there is only one part."""
        views = self.by_part.values() or [self.parts[0].objective]
        return tuple(term for view in views for term in view.terms)

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights in the parts' losses, times their shares."""
        views = self.by_part.values() or [self.parts[0].objective]
        return {
            term: share * weight
            for view, share in zip(views, self.shares, strict=True)
            for term, weight in view.weights.items()
        }

    def part_losses(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """The loss of each part."""
        return {
            name: sum(weight * means[term] for term, weight in view.weights.items())
            for name, view in self.by_part.items()
        }

    @property
    def answer_names(self) -> Mapping[str, tuple[str, ...]]:
        """The class names of all parts, by term."""
        found: dict[str, tuple[str, ...]] = {}
        for part in self.parts:
            prefix = f"{part.label}/" if len(self.parts) > 1 else ""
            found |= {f"{prefix}{term}": names for term, names in part.objective.answer_names.items()}
        return found

    @property
    def remembers(self) -> bool:
        """True if a part does."""
        return any(part.objective.remembers for part in self.parts)

    @property
    def span_len(self) -> int:
        """The longest of all parts."""
        return max(part.objective.span_len for part in self.parts)

    @property
    def new_tokens(self) -> int:
        """The most of all parts."""
        return max(part.objective.new_tokens for part in self.parts)

    @property
    def predicted_share(self) -> tuple[float, float] | None:
        """The range of the only part; with several, see `by_part`."""
        return self.parts[0].objective.predicted_share if len(self.parts) == 1 else None

    def training_samples(self, manifest: TokenDataset, **streams: Unpack[TrainingStreams]) -> CorpusSamples:
        """The training samples of the only part; with several, see `stream_groups`."""
        (part,) = self.parts
        return part.objective.training_samples(manifest, **streams)

    def evaluation_samples(self, manifest: TokenDataset, **streams: Unpack[EvaluationStreams]) -> EvalSamples:
        """The evaluation samples of the only part; with several, see `by_part`."""
        (part,) = self.parts
        return part.objective.evaluation_samples(manifest, **streams)

    def check_data(self, train: Sequence[TokenDataset], valid: TokenDataset | None) -> None:
        """Check the data for each part."""
        for part in self.parts:
            part.objective.check_data(train, valid)

    def data_notes(self, data: TokenDataset) -> Iterator[str]:
        """The notes of all parts."""
        for part in self.parts:
            yield from part.objective.data_notes(data)

    def num_segments(self, data: TokenDataset) -> int:
        """The most of all parts."""
        return max(part.objective.num_segments(data) for part in self.parts)

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> Collator:
        """A collator for micro-batches of one part each."""
        groups = self.stream_groups(len(self.parts), 0)
        collates = tuple(group.objective.collator(tokenizer, seed=group.seed(seed)) for group in groups)
        return collates[0] if len(collates) == 1 else MixedCollator(collates)

    def head(self, backbone: Backbone) -> Head:
        """The heads of all parts, which share the output layer; of one part, its own."""
        heads = {part.label: part.objective.head(backbone) for part in self.parts}
        return MixedHead(heads, self.shares) if len(heads) > 1 else next(iter(heads.values()))

    def model_problems(self, model: BackboneConfig) -> Iterator[Problem]:
        """A problem for each part that needs what the model lacks."""
        for number, part in enumerate(self.parts):
            for path, what in part.objective.model_problems(model):
                yield _of_part(number, path), what

    def run_problems(self, *, mem_len: int, global_batch_size: int) -> Iterator[Problem]:
        """Conflicts of the parts with the rest of the config; a part without streams; a memory that no part uses."""
        if mem_len and not self.remembers:
            yield from self.parts[0].objective.run_problems(mem_len=mem_len, global_batch_size=global_batch_size)
            return
        for number, streams in enumerate(divide_streams(global_batch_size, self.shares)):
            part = self.parts[number]
            if not streams:
                yield (
                    "global_batch_size",
                    f"is {global_batch_size}, of which a share of {part.share:g} leaves part {part.label} no stream;"
                    " raise it, or the share",
                )
                continue
            used = mem_len if part.objective.remembers else 0
            for path, what in part.objective.run_problems(mem_len=used, global_batch_size=len(streams)):
                yield _of_part(number, path), f"{what} (part {part.label} has {len(streams)} streams)"

    def data_problems(self, manifest: TokenDataset) -> Iterator[Problem]:
        """Conflicts of the parts with the data."""
        for number, part in enumerate(self.parts):
            for path, what in part.objective.data_problems(manifest):
                yield _of_part(number, path), what


@dataclass(frozen=True, eq=False)
class MixedCollator:
    """Collates a micro-batch with the collator of its part.

    Ranks without samples collate the same part as the others: ZeRO needs the same order of operations on all ranks.
    """

    collates: Sequence[Collator]

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch from samples of one part; without samples, of the first part if `samples` has no `part`."""
        part = samples.part if isinstance(samples, MicroBatchSamples) else samples[0].part if samples else 0
        return self.collates[part](samples)


def _of_part(number: int, path: str) -> str:
    """The path of a key of a part's objective; other keys are those of the whole config."""
    own = path.removeprefix("objective.")
    return path if own == path else f"objective.parts.{number}.objective.{own}"
