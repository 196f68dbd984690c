"""Tagging: a tag for each word, such as parts of speech, or entities in the BIO scheme.

A word is represented by the hidden state of its first token (arXiv:1810.04805, section 5.3), and words are scored, not
tokens.

Shapes: B samples, T tokens, W words, C tags, D d_model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from xlpretrain.data.examples.base import ExampleDataset
from xlpretrain.data.examples.tagged import TaggedDataset
from xlpretrain.data.samples import Example, Sample
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.data.tokenizers.token_layout import TokenLayout
from xlpretrain.errors import DataError
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.models.backbone import Backbone, Hidden
from xlpretrain.models.pretraining_model import Batch, Loss, TokenScores
from xlpretrain.models.stack import draw
from xlpretrain.objectives.tasks.base import HubTask, Metrics, TableRows, Task, TaskHead, example_of
from xlpretrain.objectives.tasks.class_weights import ClassWeights, weight_problems, weighted_sum, weights_of_classes
from xlpretrain.objectives.tasks.lay_out import count_of, padded, weights_tensor
from xlpretrain.objectives.tasks.metrics.entities import entity_scores
from xlpretrain.schema import Problem

OUTSIDE = "O"


class Tagging(Task):
    """-log p(tag | the sentence), for each word."""

    type: Literal["tag"] = "tag"
    """Kind of objective."""
    tags: tuple[str, ...] = Field(min_length=2)
    """The tags."""
    class_weights: ClassWeights = None
    """Weights of the tags in the training loss: balanced, inversely proportional to their number of words; or a mapping
    such as {O: 0.2}, with 1 for tags without one (default: all 1)."""

    terms: ClassVar[tuple[str, ...]] = ("tag",)
    data_type: ClassVar[str] = "tagged"
    metric_names: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall", "word_accuracy")
    hub_task: ClassVar[HubTask | None] = "TokenClassification"

    def problems(self) -> Iterator[Problem]:
        """Conflicts between keys."""
        if len(set(self.tags)) < len(self.tags):
            yield "tags", f"must be distinct, got {', '.join(self.tags)}"
        yield from weight_problems(self.class_weights, self.tags)
        yield from super().problems()

    @property
    def is_bio(self) -> bool:
        """True if the tags mark entities in the BIO scheme."""
        return _is_bio(self.tags)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The tags."""
        return self.tags

    @property
    def answer_names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the classes: the tags."""
        return {"tag": self.tags}

    @classmethod
    def keys_for(cls, train: ExampleDataset, valid: ExampleDataset | None) -> dict[str, Any]:
        """The tags. Raises `DataError` for fewer than two, entities that do not parse, or unknown held-out tags."""
        tags = sorted({tag for example in train.examples for tag in example.target or ()})
        if len(tags) < 2:
            raise DataError(f"{train.path}: all words have the tag {tags[0]!r}; tagging needs at least two")
        for data in (train, *([] if valid is None else [valid])):
            _check(data, tags, source=str(train.path))
        return {"tags": tags}

    @classmethod
    def criterion(cls, keys: Mapping[str, Any]) -> str:
        """F1 of entities, if there are any, else the accuracy."""
        return "f1" if _is_bio(keys["tags"]) else "word_accuracy"

    @classmethod
    def longest_sample(cls, train: ExampleDataset, layout: TokenLayout) -> int:
        """Number of tokens that hold every sentence, special tokens included."""
        return train.max_length + layout.num_symbols(1)

    def check(self, data: ExampleDataset) -> None:
        """Check that every tag is known, and that entities parse. Raises `DataError`."""
        _check(data, self.tags, source="objective.tags")

    def numbered(self, data: ExampleDataset) -> list[Example]:
        """The examples, with the index of each word's tag; sentences without tags, or with an unknown one, have no
        target."""
        number_of = {tag: number for number, tag in enumerate(self.tags)}
        return [replace(example, target=_numbers(example.target, number_of)) for example in data.examples]

    def training_examples(self, data: ExampleDataset) -> list[Example]:
        """The numbered examples, with the weight of each word's tag."""
        examples = self.numbered(data)
        weights = weights_of_classes(self.class_weights, self.tags, (tag for e in examples for tag in e.target))
        return examples if weights is None else [replace(e, weights=[weights[t] for t in e.target]) for e in examples]

    def num_cut(self, examples: Iterable[Sequence[Sequence[int]]]) -> int:
        """Number of sentences that are truncated. examples: token ids of each word."""
        room = self.seq_len - self.token_layout.num_symbols(1)
        return sum(sum(map(len, words)) > room for words in examples)

    def describe_cut(self, num_cut: int, total: int) -> str:
        """A message about truncated sentences."""
        return (
            f"{num_cut:,} of {total:,} sentences are longer than a sample of {self.seq_len} tokens (objective.seq_len);"
            f" words after that get the tag {self._outside}"
        )

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> TaggingCollator:
        """The collator, which makes no random choices."""
        return TaggingCollator(self.seq_len, self.token_layout, tokenizer.vocabulary)

    def full_example(self, tokens: Sequence[int]) -> Example:
        """A sentence of words of one token each."""
        return Example(tuple([token] for token in tokens), [0] * len(tokens))

    def head(self, backbone: Backbone) -> TaggingHead:
        """The head."""
        return TaggingHead(backbone, len(self.tags), dropout=self.dropout)

    def predictions(self, data: ExampleDataset, outputs: Sequence[np.ndarray]) -> list[list[str]]:
        """The tag of each word."""
        return [
            [self.tags[number] for number in output.argmax(-1)[: len(example.parts)]]
            + [self._outside] * (len(example.parts) - len(output))
            for example, output in zip(data.examples, outputs, strict=True)
        ]

    def metrics(self, data: ExampleDataset, predictions: Sequence[Sequence[str]]) -> Metrics:
        """Precision, recall and F1 of entities (None if the tags mark none), and accuracy of words."""
        pairs = [(e.target, found) for e, found in zip(data.examples, predictions, strict=True) if e.target is not None]
        truth, found = [list(pair[0]) for pair in pairs], [list(pair[1]) for pair in pairs]
        right = sum(a == b for t, f in pairs for a, b in zip(t, f, strict=True))
        accuracy = {"word_accuracy": right / max(sum(map(len, truth)), 1)}
        if not self.is_bio:
            return {**dict.fromkeys(("f1", "precision", "recall")), **accuracy}
        return {**entity_scores(truth, found)._asdict(), **accuracy}

    def describe_unknown(self, data: ExampleDataset) -> str | None:
        """A message on sentences with tags that the model does not know."""
        unknown = sorted({tag for example in data.examples for tag in example.target or ()} - set(self.tags))
        if not unknown:
            return None
        return f"tags unknown to the model count as errors: {', '.join(unknown)}"

    def answers(self, predictions: Sequence[Sequence[str]]) -> list[list[str]]:
        """The tag of each word."""
        return [list(tags) for tags in predictions]

    def lines(self, predictions: Sequence[Sequence[str]]) -> Iterator[str]:
        """The tags of a sentence."""
        return (" ".join(tags) for tags in predictions)

    def rows(self, data: ExampleDataset, predictions: Sequence[Sequence[str]]) -> TableRows:
        """One row per word: sentence, word, tag if known, prediction."""
        sentences = tagged(data).words_and_tags

        def rows() -> Iterator[Sequence[Any]]:
            for number, (sentence, found) in enumerate(zip(sentences, predictions, strict=True)):
                known = sentence.tags or [""] * len(found)
                yield from ([number, *row] for row in zip(sentence.words, known, found, strict=True))

        return ["sentence", "word", "tag", "predicted"], rows()

    def write(self, path: Path, data: ExampleDataset, predictions: Sequence[Sequence[str]]) -> None:
        """Write the predictions: JSON lines for .jsonl, CoNLL columns for .conll and .txt, otherwise a .csv."""
        sentences = list(zip(tagged(data).words_and_tags, predictions, strict=True))
        if path.suffix.lower() == ".jsonl":
            made = (json.dumps({"tokens": s.words, "tags": list(found)}, ensure_ascii=False) for s, found in sentences)
            atomic_write(path, "".join(f"{line}\n" for line in made))
        elif path.suffix.lower() in (".conll", ".txt"):
            lines = ("".join(f"{w} {t}\n" for w, t in zip(s.words, found, strict=True)) for s, found in sentences)
            atomic_write(path, "\n".join(lines))
        else:
            super().write(path, data, predictions)

    @property
    def _outside(self) -> str:
        """The tag of words past the end of a sample."""
        return OUTSIDE if OUTSIDE in self.tags else self.tags[0]


@dataclass(frozen=True)
class TaggingCollator:
    """Collates sentences into tokens, padded on the right to the longest one; words that do not fit are left out.

    Targets: `word_positions` [B, W], the position of each word's first token in its sample, padded with 0; and, for
    the words with a tag, `tag` and `tag_positions`, flat indices sample * W + word.
    """

    seq_len: int
    layout: TokenLayout
    vocabulary: Vocabulary

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch from any number of samples, including none."""
        laid_out, starts, tags, weights = [], [], [], list[float]()
        room = self.seq_len - self.layout.num_symbols(1)
        for example in map(example_of, samples):
            ends = list(accumulate(map(len, example.parts)))
            words = [word for word, end in zip(example.parts, ends, strict=True) if end <= room and word]
            sample = self.layout.lay_out([[token for word in words for token in word]], self.vocabulary)
            first = sample.texts[0][0]
            laid_out.append(sample)
            starts.append([first + end - len(word) for word, end in zip(words, ends, strict=False)])
            tags.append([] if example.target is None else list(example.target)[: len(words)])
            weights += [] if example.weights is None else list(example.weights)[: len(words)]
        width = max(map(len, starts), default=0)
        positions = np.zeros((len(samples), width), np.int64)
        for row, found in zip(positions, starts, strict=True):
            row[: len(found)] = found
        at = [number * width + word for number, found in enumerate(tags) for word in range(len(found))]
        targets = {
            "word_positions": torch.from_numpy(positions),
            "tag": torch.tensor([tag for found in tags for tag in found], dtype=torch.int64),
            "tag_positions": torch.tensor(at, dtype=torch.int64),
        }
        targets |= weights_tensor(weights, "tag")
        inputs = padded(laid_out, self.vocabulary, seq_len=self.seq_len)
        return Batch(inputs, targets, {"tag": count_of(targets, "tag")})


class TaggingHead(TaskHead):
    """Maps the first token of each word to the tags."""

    def __init__(self, backbone: Backbone, num_tags: int, *, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(backbone.d_model, num_tags)
        draw(self.classifier, backbone.init_std)

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss of words with a tag, and the loss of each."""
        outputs = self.outputs(hidden, batch)
        at, tags = batch.targets["tag_positions"], batch.targets["tag"]
        logits = outputs.flatten(0, 1)[at]
        nll = F.cross_entropy(logits, tags, reduction="none")
        correct = None if self.training else logits.argmax(dim=-1) == tags
        scores = TokenScores(samples=at // max(outputs.shape[1], 1), nll=nll.detach(), correct=correct)
        return Loss({"tag": weighted_sum(nll, batch, "tag")}, {"tag": scores}, None if self.training else outputs)

    def outputs(self, hidden: Hidden, batch: Batch) -> Float[Tensor, "B W C"]:
        """The logits of each word, in fp32."""
        positions = batch.targets["word_positions"][..., None].expand(-1, -1, hidden.tokens.shape[-1])
        logits: Tensor = self.classifier(self.dropout(hidden.tokens.gather(1, positions)))
        return logits.float()

    def flops_per_token(self) -> float:
        """FLOPs per token of the classifier, forward and backward, if every token begins a word."""
        return 6.0 * self.classifier.weight.numel()


def tagged(data: ExampleDataset) -> TaggedDataset:
    """The dataset as one of tagged sentences, which `data_type` requires."""
    assert isinstance(data, TaggedDataset)
    return data


def _numbers(tags: Sequence[str] | None, number_of: Mapping[str, int]) -> list[int] | None:
    """The indices of tags; None if there are none, or one is unknown."""
    found = [number_of.get(tag) for tag in tags or ()]
    return None if not found or None in found else [number for number in found if number is not None]


def _is_bio(tags: Iterable[str]) -> bool:
    kinds = [tag for tag in tags if tag != OUTSIDE]
    return bool(kinds) and all(tag[:2] in ("B-", "I-") and tag[2:] for tag in kinds)


def _check(data: ExampleDataset, tags: Sequence[str], *, source: str) -> None:
    """Check that tags are known, and that entities parse. Raises `DataError`."""
    strange = sorted({tag for example in data.examples for tag in example.target or ()} - set(tags))
    if strange:
        raise DataError(f"{data.path}: tags that are not in {source}: {', '.join(strange)}")
    if nameless := {"B-", "I-"} & set(tags):
        raise DataError(f"{data.path}: the tag {min(nameless)} lacks the type of the entity, as in B-PER")
    if not _is_bio(tags):
        return
    for example, sentence in zip(data.examples, tagged(data).words_and_tags, strict=True):
        before = OUTSIDE
        for number, tag in enumerate(example.target or (), 1):
            if tag.startswith("I-") and before[2:] != tag[2:]:
                raise DataError(
                    f"{data.path}: sentence at line {sentence.line}, word {number}: {tag} follows {before}, but an"
                    f" entity must begin with B-{tag[2:]}; convert files in the IOB1 scheme"
                )
            before = tag
