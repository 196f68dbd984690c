"""Micro-batches for models with an adaptive softmax, whose targets' clusters are found where the batch is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from xlpretrain.data.samples import Sample
from xlpretrain.models.embedding import VocabularySoftmax
from xlpretrain.models.parts.clusters import TargetClusters
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.objectives.base import Collator


def with_target_clusters(collate: Collator, model: nn.Module) -> Collator:
    """The collator for a model: unchanged, or with an adaptive softmax also finding the clusters of all targets."""
    layers = (module for module in model.modules() if isinstance(module, VocabularySoftmax))
    edges = next((layer.edges for layer in layers if layer.num_tails), None)
    return collate if edges is None else ClusteringCollator(collate, edges)


@dataclass(frozen=True)
class ClusteringCollator:
    """A collator whose batches have `clusters` for each term that predicts tokens.

    edges: first token of each cluster, and the size of the vocabulary.
    """

    collate: Collator
    edges: tuple[int, ...]

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch from any number of samples, including none."""
        batch = self.collate(samples)
        terms = [term for term in batch.counts if f"{term}_positions" in batch.targets]
        found = {term: TargetClusters.find(batch.targets[term], self.edges) for term in terms}
        return replace(batch, clusters=found)
