"""Precision, recall and F1 of entities, as CoNLL-2003 evaluates them (arXiv:cs/0306050, section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Entity(NamedTuple):
    """The words [start, stop) of a sentence, and the type of the entity that they name."""

    start: int
    stop: int
    type: str


class EntityScores(NamedTuple):
    """Over all entities of all sentences; an entity is found if both its words and its type are right."""

    precision: float
    recall: float
    f1: float


def entities(tags: Sequence[str]) -> Iterator[Entity]:
    """The entities of a sentence in the BIO scheme. An I without an entity of its type before it begins one."""
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        if kind and (prefix != "I" or own != kind):
            yield Entity(start, place, kind)
            kind = ""
        if prefix in ("B", "I") and not kind:
            start, kind = place, own


def entity_scores(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> EntityScores:
    """Compare tags, sentence by sentence. A score whose divisor is 0 is 0."""
    wanted, found = (
        {(number, *entity) for number, tags in enumerate(sentences) for entity in entities(tags)}
        for sentences in (truth, predicted)
    )
    right = len(wanted & found)
    precision, recall = right / max(len(found), 1), right / max(len(wanted), 1)
    return EntityScores(precision, recall, 2 * right / max(len(wanted) + len(found), 1))
