"""Saved on any number of processes under any engine, gone on with on any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import read_metrics
from torchrun import torchrun
from workers.elastic_cases import AT, ENGINES, STEPS, STREAMS

WORLD_SIZES = (1, 2, 3, 4)


def outcome(run: Path) -> tuple[dict[int, Any], dict[str, str]]:
    """Loss and gradient norm by step, and the digests of what each stream read."""
    losses = {row["step"]: (row["train/loss"], row["train/grad_norm"]) for row in read_metrics(run)}
    return losses, json.loads((run / "digests.json").read_text())


@pytest.mark.full
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("recipe", "world_sizes"),
    [
        ("transformer_xl", WORLD_SIZES),
        ("albert", WORLD_SIZES),
        ("muon", (2, 3)),
        ("stages", (1, 2, 3)),
        ("mixed", (2, 3)),
    ],
)
def test_every_layout_goes_on_from_every_other(
    tiny_dataset: Path, tmp_path: Path, recipe: str, world_sizes: tuple[int, ...]
) -> None:
    """64 resumes of 20 steps (fewer for other recipes): the same batches; losses within 1e-5, the same in every bit
    where nothing changed. Each number of processes resumes from each other, and each engine from each other."""
    saves = {(number, engine): f"{number}-{engine}" for number in world_sizes for engine in ENGINES}
    sources = {
        to: [
            saves[number, engine]
            for at, number in enumerate(world_sizes)
            for of, engine in enumerate(ENGINES)
            if (at + of - target) % len(world_sizes) == 0
        ]
        for target, to in enumerate(world_sizes)
    }
    for world_size in world_sizes:
        torchrun("elastic_cases.py", "save", tmp_path, tiny_dataset, recipe, nproc=world_size, timeout_s=300)
    for world_size in world_sizes:
        names = [f"{recipe}-{saved}" for saved in sources[world_size]]
        torchrun("elastic_cases.py", "load", tmp_path, tiny_dataset, recipe, *names, nproc=world_size, timeout_s=1500)
    worst, num_resumes = 0.0, 0
    batches = [STREAMS] * STEPS if recipe != "stages" else [4] * 2 + [3] * 10 + [4] * 4 + [5] * 8  # 3.5 is rounded to 4
    for saved in saves.values():
        expected, read = outcome(tmp_path / f"{recipe}-{saved}")
        assert list(expected) == list(range(1, STEPS + 1)) and len(read) == sum(batches)
        for loaded in [saves[to, engine] for to in world_sizes for engine in ENGINES if saved in sources[to]]:
            num_resumes += 1
            found, read_again = outcome(tmp_path / f"{recipe}-{saved}-to-{loaded}")
            assert read_again == {key: digest for key, digest in read.items() if int(key.split()[0]) >= AT}
            if saved == loaded:
                assert found == expected, saved
            assert list(found) == list(expected)
            for step, (loss, norm) in found.items():
                assert norm == pytest.approx(expected[step][1], rel=1e-3), (saved, loaded, step)
                worst = max(worst, abs(loss - expected[step][0]))
            assert worst < 1e-5, (saved, loaded)
    print(f"\n{recipe}: {num_resumes} resumes, largest difference of a loss {worst:.2g}")


@pytest.mark.full
@pytest.mark.parametrize("world_size", [2, 3])
def test_with_dropout_the_same_layout_goes_on_in_every_bit_and_others_read_the_same(
    tiny_dataset: Path, tmp_path: Path, world_size: int
) -> None:
    names = [f"dropout-{world_size}-{engine}" for engine in ENGINES]
    torchrun("elastic_cases.py", "save", tmp_path, tiny_dataset, "dropout", nproc=world_size)
    for resumed_on in (world_size, 1):
        torchrun("elastic_cases.py", "load", tmp_path, tiny_dataset, "dropout", *names, nproc=resumed_on)
    for name in names:
        expected, read = outcome(tmp_path / name)
        for engine in ENGINES:
            for resumed_on in (world_size, 1):
                _, read_again = outcome(tmp_path / f"{name}-to-{resumed_on}-{engine}")
                assert read_again == {key: digest for key, digest in read.items() if int(key.split()[0]) >= AT}
        found, _ = outcome(tmp_path / f"{name}-to-{name.removeprefix('dropout-')}")
        assert found == expected, name
