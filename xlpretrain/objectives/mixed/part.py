"""A part of a mixed objective as the mix sees it: its loss terms carry the part's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Unpack

from torch import Tensor

from xlpretrain.data.samples import CorpusSamples, EvalSamples, Sample
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.models.backbone import Backbone
from xlpretrain.models.pretraining_model import Batch, Head
from xlpretrain.objectives.base import Collator, EvaluationStreams, Objective, TrainingStreams


class PartInMix(Objective):
    """A part of a mix, whose samples and losses are those of its objective; the model's head is the whole mix's.

    name: of the part. number: its index. objective: its objective. siblings: all parts of the mix by name.
    """

    type: Literal["part"] = "part"
    name: str
    number: int
    objective: Objective
    siblings: Mapping[str, Objective]

    requires: ClassVar[frozenset[str]] = frozenset()

    @property
    def terms(self) -> tuple[str, ...]:
        """The objective's terms, after the part's name."""
        return tuple(f"{self.name}/{term}" for term in self.objective.terms)

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each term in the part's loss."""
        return {f"{self.name}/{term}": weight for term, weight in self.objective.weights.items()}

    @property
    def span_len(self) -> int:
        """The objective's `span_len`."""
        return self.objective.span_len

    @property
    def new_tokens(self) -> int:
        """The objective's `new_tokens`."""
        return self.objective.new_tokens

    @property
    def num_predictions(self) -> int:
        """The objective's `num_predictions`."""
        return self.objective.num_predictions

    @property
    def remembers(self) -> bool:
        """The objective's `remembers`."""
        return self.objective.remembers

    @property
    def predicted_share(self) -> tuple[float, float] | None:
        """The objective's `predicted_share`."""
        return self.objective.predicted_share

    def training_samples(self, manifest: TokenDataset, **streams: Unpack[TrainingStreams]) -> CorpusSamples:
        """The objective's training samples."""
        return self.objective.training_samples(manifest, **streams)

    def evaluation_samples(self, manifest: TokenDataset, **streams: Unpack[EvaluationStreams]) -> EvalSamples:
        """The objective's evaluation samples."""
        return self.objective.evaluation_samples(manifest, **streams)

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> PartCollator:
        """The objective's collator, whose batches have the terms of all parts."""
        others = {
            name: sibling.collator(tokenizer, seed=seed)([])
            for name, sibling in self.siblings.items()
            if name != self.name
        }
        return PartCollator(self.objective.collator(tokenizer, seed=seed), self.name, self.number, others)

    def head(self, backbone: Backbone) -> Head:
        """The objective's head."""
        return self.objective.head(backbone)


@dataclass(frozen=True, eq=False)
class PartCollator:
    """Collates samples of one part into a batch with the targets and counts of all parts, those of others empty.

    others: an empty batch of each other part, by name.
    """

    collate: Collator
    name: str
    number: int
    others: Mapping[str, Batch]

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch from any number of samples, including none."""
        own = self.collate(samples)
        targets: dict[str, Tensor] = {}
        counts: dict[str, int | float] = {}
        for name, batch in {**self.others, self.name: own}.items():
            targets |= {f"{name}/{key}": values for key, values in batch.targets.items()}
            counts |= {f"{name}/{term}": count for term, count in batch.counts.items()}
        return replace(own, targets=targets, counts=counts, part=self.number)
