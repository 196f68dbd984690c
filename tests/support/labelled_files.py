"""Files of labelled texts."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from corpus import make_sentence

PLAIN = ["engine.type=plain", "engine.precision=fp32", "wandb.mode=disabled", "log.every_steps=1"]


def _write(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def _texts(count: int, *, seed: int) -> list[tuple[str, str]]:
    """Write sentences whose first word determines the label."""
    rng = random.Random(seed)
    labels = {"aye": "Bation", "nay": "Tring", "abstention": "Wone"}
    return [(f"{labels[label]} {make_sentence(rng)}", label) for label in rng.choices(list(labels), k=count)]


def _pairs(count: int, *, seed: int) -> list[tuple[str, str, str]]:
    """Write pairs of sentences; the second one determines the label."""
    rng = random.Random(seed)
    rows = [(make_sentence(rng), make_sentence(rng), rng.choice(["no", "yes"])) for _ in range(count)]
    return [(first, f"{'Bation' if label == 'yes' else 'Tring'} {second}", label) for first, second, label in rows]


def _files(folder: Path, *, pairs: bool = False) -> dict[str, Path]:
    header = ("first", "second", "label") if pairs else ("text", "label")
    make = _pairs if pairs else _texts
    sizes = {"train": 96, "valid": 40}
    return {name: _write(folder / f"{name}.csv", make(n, seed=n), header) for name, n in sizes.items()}
