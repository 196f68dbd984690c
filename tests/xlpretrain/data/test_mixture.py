"""Mixtures: exact shares, whatever the number of processes.

Modules: corpus_losses.py.
"""

import random
from itertools import accumulate
from pathlib import Path

import commands
import numpy as np
import pytest
from built_datasets import BuildSmall
from corpus import make_documents
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import mixture_of

from xlpretrain import distributed
from xlpretrain.config import data_rules
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.loader import Loader
from xlpretrain.data.mixture import Mixture, MixtureSamples
from xlpretrain.data.mixture_schedule import LONGEST_PERIOD, MixtureSchedule, integer_weights, make_schedule
from xlpretrain.data.samples import Sample
from xlpretrain.data.skip_windows import SkippedWindows
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.schema import validate

WEIGHTS = (0.7, 0.2, 0.1)
NAMES = ("second", "third")
OBJECTIVES = {
    "memory": ({"type": "causal_lm", "seq_len": 32}, 48),
    "shuffled": ({"type": "causal_lm", "seq_len": 32}, 0),
    "permutation": (
        {"type": "permutation_lm", "seq_len": 64, "reuse_len": 32, "perm_size": 16, "num_predict": 8},
        48,
    ),
    "permutation-shuffled": (
        {"type": "permutation_lm", "seq_len": 32, "reuse_len": 0, "perm_size": 16, "num_predict": 8},
        0,
    ),
    "masked": ({"type": "masked_lm", "seq_len": 32}, 0),
}
MODELS = {"causal_lm": "transformer_xl", "permutation_lm": "xlnet", "masked_lm": "albert"}


@pytest.fixture
def folders(tiny_dataset: Path, build_small: BuildSmall) -> tuple[Path, Path, Path]:
    """Three corpora of one tokenizer: one in large blocks, two in small ones of two sizes."""
    second = build_small(make_documents(60, seed=1), out="second")
    third = build_small(make_documents(60, seed=2), out="third", block_tokens=512)
    return tiny_dataset / "train", second / "train", third / "train"


def run_config(objective: str, *, num_streams: int = 6, **changes: object) -> RunConfig:
    settings_of, mem_len = OBJECTIVES[objective]
    model = {"type": MODELS[str(settings_of["type"])], "num_layers": 1, "d_model": 16, "num_heads": 2, "d_ff": 16}
    data = {
        "data": {"train": "nowhere"},
        "model": {**model, **({"mem_len": mem_len} if "memory" in objective or mem_len else {"mem_len": 0})},
        "objective": settings_of,
        "global_batch_size": num_streams,
        "max_steps": 10,
        "seed": 3,
        **changes,
    }
    return validate(RunConfig, data, "test")


def rows_of(mixture: Mixture, objective: str, *, num_streams: int = 6) -> MixtureSamples:
    rows = data_rules.make_training_samples(run_config(objective, num_streams=num_streams), mixture)
    assert isinstance(rows, MixtureSamples)
    return rows


def corpus_of(rows: MixtureSamples, row: Sample) -> int:
    """Told by its sample: those of a corpus follow those of the ones before."""
    return int(
        np.searchsorted(list(accumulate(part.num_samples for part in rows.parts)), row.sample_index, side="right")
    )


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8))
@settings(max_examples=60)
def test_no_prefix_is_off_by_one_turn(weights: list[int]):
    dealt = make_schedule(tuple(weights))
    given_ = np.cumsum(dealt[:, None] == np.arange(len(weights)), axis=0)
    due = np.outer(np.arange(1, len(dealt) + 1), np.array(weights) / sum(weights))
    assert np.abs(given_ - due).max() < 1 - 1e-9
    assert np.bincount(dealt, minlength=len(weights)).tolist() == weights


@given(
    st.lists(st.tuples(st.integers(1, 9), st.none() | st.integers(1, 40)), min_size=1, max_size=5),
    st.integers(1, 150),
)
@settings(max_examples=60)
def test_each_corpus_is_dealt_its_own_turns_in_order_up_to_its_limit(corpora: list, num_turns: int):
    dealing = MixtureSchedule([weight for weight, _ in corpora], [limit for _, limit in corpora])
    num_turns = min(num_turns, dealing.num_visits or num_turns)
    seen = [0] * len(corpora)
    for turn in range(num_turns):
        assert dealing.counts(turn).tolist() == seen
        corpus, own = dealing.corpus_at(turn)
        assert own == seen[corpus]
        seen[corpus] += 1
    assert all(limit is None or count <= limit for count, (_, limit) in zip(seen, corpora, strict=True))
    if dealing.num_visits is not None:
        assert dealing.num_visits == sum(limit for _, limit in corpora)


def test_weights_that_have_no_short_period_are_rounded_to_one():
    assert integer_weights([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert integer_weights([3, 6.0]) == [1, 2]
    assert integer_weights([1 / 3, 2 / 3, 1e-9]) == [33333, 66667, 1]
    assert sum(integer_weights([0.123456789, 0.5])) <= LONGEST_PERIOD


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_shares_hold_for_any_number_of_processes_and_over_a_resume(folders: tuple[Path, ...], objective: str):
    rows = rows_of(mixture_of(*folders, weights=WEIGHTS), objective)
    num_steps, resumed_at = 300, 111

    def read(world_size: int, start: int, stop: int) -> list[list[tuple[int, int, bytes]]]:
        steps: list[list[tuple[int, int, bytes]]] = [[] for _ in range(start, stop)]
        for rank in range(world_size):
            groups = distributed.micro_batches(rank, world_size, num_streams=6, micro_batch_size=2)
            loader = Loader(rows, lambda rows: [(r.epoch, r.sample_index, r.tokens.tobytes()) for r in rows], groups)
            for step, batches in enumerate(loader.steps(start=start, stop=stop)):
                steps[step] += [row for batch in batches for row in batch]
        return steps

    alone = read(1, 0, num_steps)
    assert read(2, 0, resumed_at) + read(3, resumed_at, num_steps) == alone

    length = rows.parts[0].order.samples_per_visit
    ends = list(accumulate(part.num_samples for part in rows.parts))
    read_rows = np.zeros(3)
    for step, found in enumerate(alone):
        for _, sample, _ in found:
            read_rows[np.searchsorted(ends, sample, side="right")] += 1
        off = np.abs(read_rows - np.array(WEIGHTS) * 6 * (step + 1))
        pairs = 2 if rows.parts[0].bidirectional_streams else 1
        assert off.max() <= length * pairs  # one block, or one row, of each direction


@pytest.mark.full
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_shares_are_exact_over_5000_steps(folders: tuple[Path, ...], objective: str):
    rows = rows_of(mixture_of(*folders, weights=WEIGHTS), objective)
    length = rows.parts[0].order.samples_per_visit * (2 if rows.parts[0].bidirectional_streams else 1)
    for world_size in (1, 2, 3):
        counts = np.zeros(3)
        for rank in range(world_size):
            for stream in distributed.streams_of(rank, world_size, 6):
                start, stop = (0, 5000) if world_size == 1 else (2500, 2600)
                for step in range(start, stop):
                    assert corpus_of(rows, rows.sample(step=step, stream=stream)) == rows.corpus(
                        step=step, stream=stream
                    )
                counts += np.bincount([rows.corpus(step=step, stream=stream) for step in range(5000)], minlength=3)
        assert np.abs(counts - np.array(WEIGHTS) * 6 * 5000).max() <= length


@pytest.mark.parametrize("objective", ["memory", "permutation"])
def test_memory_starts_fresh_with_each_block_whatever_its_corpus(folders: tuple[Path, ...], objective: str):
    rows = rows_of(mixture_of(*folders, weights=WEIGHTS), objective)
    changes = 0
    for stream in range(6):
        for step in range(1, 120):
            before, here = (rows.sample(step=s, stream=stream) for s in (step - 1, step))
            if corpus_of(rows, before) != corpus_of(rows, here):
                changes += 1
                assert here.mem_valid_len == 0
            elif here.mem_valid_len:
                assert before.tokens[32] == here.tokens[0], "it goes on where the row before ended"
    assert changes > 5


def test_rows_are_those_of_their_corpus(folders: tuple[Path, ...]):
    mixture = mixture_of(*folders, weights=WEIGHTS)
    rows = rows_of(mixture, "memory")
    texts = [m.tokens(0, m.num_tokens).tobytes() for m in mixture.manifests]
    rng = random.Random(0)
    for _ in range(60):
        row = rows.sample(step=rng.randrange(10**6), stream=rng.randrange(6))
        assert row.tokens.tobytes() in texts[corpus_of(rows, row)]


def test_a_corpus_is_read_whole_before_it_is_read_again(folders: tuple[Path, ...]):
    rows = rows_of(mixture_of(*folders, weights=WEIGHTS), "shuffled")
    last = rows.parts[2].num_samples
    samples = [
        (row.epoch, row.sample_index)
        for step in range(11 * last // 6)
        for row in (rows.sample(step=step, stream=s) for s in range(6))
        if corpus_of(rows, row) == 2
    ]
    assert len(set(samples)) == len(samples)
    assert len([epoch for epoch, _ in samples if epoch == 0]) == last
    assert rows.epochs(10 * last // 6)["third"] == pytest.approx(1, abs=0.02)


def test_what_was_read_max_epochs_times_drops_out(folders: tuple[Path, ...]):
    rows = rows_of(mixture_of(*folders, weights=WEIGHTS, max_epochs=(None, 1.5, 0.5)), "shuffled")
    (first, early), (second, late) = rows.exhausted_at
    limits = {"second": 1.5 * rows.parts[1].num_samples, "third": 0.5 * rows.parts[2].num_samples}
    counts = {"second": 0, "third": 0}
    for step in range(second + 5):
        for stream in range(6):
            name = rows.names[rows.corpus(step=step, stream=stream)]
            assert not (name == early and step > first) and not (name == late and step > second)
            if name in counts:
                counts[name] += 1
    assert counts == {name: int(limit) for name, limit in limits.items()}
    assert rows.num_steps is None


def test_a_run_longer_than_max_epochs_allows_is_refused(folders: tuple[Path, ...]):
    mixture = mixture_of(*folders[1:], max_epochs=(1.0, 2.0))
    config = run_config("memory")
    rows = data_rules.make_training_samples(config, mixture)
    assert isinstance(rows, MixtureSamples) and rows.num_steps
    data_rules.validate_data(config.model_copy(update={"max_steps": rows.num_steps}), mixture, 1)
    with pytest.raises(ConfigError, match=f"must be at most {rows.num_steps}, when all corpora .* max_epochs, got"):
        data_rules.validate_data(config.model_copy(update={"max_steps": rows.num_steps + 1}), mixture, 1)


def test_a_corpus_without_a_whole_block_is_refused(folders: tuple[Path, ...], build_small: BuildSmall):
    short = build_small(make_documents(1, seed=9), out="short", block_tokens=4096)
    with pytest.raises(ConfigError, match=r"data.train.1 .* 0 full blocks of 4,096"):
        data_rules.validate_data(run_config("memory"), mixture_of(folders[1], short / "train"), 1)


def test_windows_left_out_after_a_spike_are_left_out_of_a_mixture(folders: tuple[Path, ...]):
    rows = rows_of(mixture_of(*folders, weights=WEIGHTS), "memory")
    skipping = SkippedWindows(rows, [(10, 20)], new_tokens=[32])
    for stream in range(6):
        here, there = skipping.sample(step=12, stream=stream), rows.sample(step=22, stream=stream)
        assert np.array_equal(here.tokens, there.tokens) and here.mem_valid_len <= 64
        assert skipping.corpus(step=12, stream=stream) == rows.corpus(step=22, stream=stream)


def test_another_tokenizer_is_refused(folders: tuple[Path, ...], build_small: BuildSmall):
    other = build_small(make_documents(300, seed=3), out="other", tokenizer={"vocab_size": 120})
    with pytest.raises(DataError, match="encoded with another tokenizer"):
        mixture_of(folders[0], other / "train")


def test_wrong_mixtures_come_back_in_one_report():
    wrong = [{"path": "a", "weight": 0}, {"path": "b", "wieght": 1}, {"weight": 1, "max_epochs": -1}]
    with pytest.raises(ConfigError) as raised:
        run_config("memory", data={"train": wrong})
    report = str(raised.value)
    assert "5 problems" not in report and "4 problems" in report, report
    for key in ("data.train.0.weight", "data.train.1.wieght", "did you mean weight?", "data.train.2.path"):
        assert key in report
    with pytest.raises(ConfigError, match=r"data.train.1.path +b is listed twice"):
        run_config("memory", data={"train": [{"path": "b"}, {"path": "b"}]})


def test_a_plain_path_stays_what_it_was():
    config = run_config("memory", data={"train": "a/b"})
    assert config.model_dump(mode="json")["data"]["train"] == "a/b"
    mixed = run_config("memory", data={"train": [{"path": "a/b", "max_epochs": 2}]})
    assert validate(RunConfig, mixed.model_dump(mode="json"), "again") == mixed


@pytest.fixture
def mixed(folders: tuple[Path, ...], tmp_path: Path) -> Path:
    """The config of a run of 30 steps on three corpora, one of which drops out."""
    train = [
        {"path": str(folder), "weight": weight, **({"max_epochs": 0.25} if folder == folders[1] else {})}
        for folder, weight in zip(folders, WEIGHTS, strict=True)
    ]
    return commands.write_config(
        tmp_path / "mixed.yaml", folders[0].parent, data={"train": train}, engine={"type": "plain"}, max_steps=30
    )


def test_a_run_on_a_mixture_tells_of_each_corpus(mixed: Path):
    out, _ = commands.run("train", mixed)
    assert "third: 10.0000% of the samples" in out and "second: read max_epochs times by step" in out
    rows = commands.read_metrics(mixed.parent / "runs" / "run")
    seen = {key for row in rows for key in row if key.startswith(("train/corpus_loss/", "data/epoch/"))}
    assert seen == {f"{kind}/{name}" for kind in ("train/corpus_loss", "data/epoch") for name in ("data", *NAMES)}
    for row in rows:
        losses = [value for key, value in row.items() if key.startswith("train/corpus_loss/")]
        assert min(losses) - 1e-6 <= row["train/loss"] <= max(losses) + 1e-6


@pytest.mark.full
def test_a_run_on_a_mixture_resumes_as_if_it_had_gone_on(mixed: Path):
    commands.run("train", mixed, "name=whole")
    commands.run("train", mixed, "name=parts", "max_steps=13", "schedule.total_steps=30")
    commands.run("resume", mixed.parent / "runs" / "parts", "max_steps=20")
    commands.run("resume", mixed.parent / "runs" / "parts", "max_steps=30", "--nproc", 2)
    whole, parts = (commands.read_metrics(mixed.parent / "runs" / name) for name in ("whole", "parts"))
    for here, there in zip(whole, parts, strict=True):
        keys = [key for key in here if key.startswith(("train/", "data/epoch"))]
        rel = 1e-4 if here["step"] > 20 else 0  # two processes add up in another order
        assert {key: there[key] for key in keys} == {key: pytest.approx(here[key], rel=rel, abs=0) for key in keys}
