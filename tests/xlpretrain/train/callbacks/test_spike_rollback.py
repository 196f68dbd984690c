"""Loss spikes: which steps are one, and going back before one."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
from callback_runs import completed, make_context
from hypothesis import given
from hypothesis import strategies as st
from mixtures import mixture_of

from xlpretrain.__main__ import main, run
from xlpretrain.config.sections import SpikeConfig
from xlpretrain.data.skip_windows import SkippedWindows, add_window, shifted_step
from xlpretrain.data.storage.dataset import TokenDataset, add_checksum
from xlpretrain.data.storage.shard_reader import MEMBERS, TAR_BLOCK
from xlpretrain.errors import TrainingError
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.train.callbacks.base import RollBack
from xlpretrain.train.callbacks.spike_rollback import SpikeRollback, is_spike


def test_a_spike_stands_out_from_the_median_of_a_full_window():
    config = SpikeConfig(threshold=1.0, window=5)
    assert is_spike(4.1, [3.0, 2.9, 9.0, 3.1, 3.0], config)
    assert not is_spike(3.9, [3.0, 2.9, 9.0, 3.1, 3.0], config)
    assert not is_spike(99.0, [3.0, 2.9, 3.1, 3.0], config)
    assert not is_spike(99.0, [3.0] * 5, SpikeConfig(window=5))


def spiking(**changes: float) -> SpikeRollback:
    """The callback of a run whose losses stood at 3 for a window of two steps."""
    context = make_context(spike={"threshold": 1.0, "window": 2, "max_rollbacks": 1, **changes})
    callback = SpikeRollback(context)
    for step in (1, 2):
        assert agreed_loss(callback, step, 3.0) is None
    return callback


def agreed_loss(callback: SpikeRollback, step: int, loss: float) -> object:
    callback.after_step(completed(step, loss=loss))
    return callback.agreed(step, callback.numbers(step))


def test_a_spike_sends_an_alert():
    sent: list[tuple[str, str, int]] = []
    context = make_context(spike={"threshold": 1.0, "window": 2, "max_rollbacks": 3})
    callback = SpikeRollback(replace(context, alert=lambda *alert: sent.append(alert)))
    for step, loss in enumerate([3.0, 4.0, 4.0, 9.0], start=1):
        agreed_loss(callback, step, loss)
    message = "the loss is 9.0000, the median of the 2 steps before 4.0000; rollback 1 of at most 3"
    assert sent == [("spike", message, 4)]


def test_a_spike_asks_for_a_rollback_once_and_is_then_no_loss_to_compare_with():
    callback = spiking(skip_before=4, skip_after=5)
    assert agreed_loss(callback, 3, 9.0) == RollBack("the loss spikes to 9.0000", 4, 5)
    callback.after_rollback({"rollbacks": 0, "recent_losses": [3.5, 3.25]})
    assert callback.state() == {"rollbacks": 1, "recent_losses": [3.5, 3.25]}
    assert agreed_loss(callback, 2, 3.0) is None
    assert callback.metrics(3, ()) == {"events/rollbacks": 1}
    assert callback.agreed(3, [9.0]) is None, "the same step's loss is agreed on once"


def test_a_spike_without_a_checkpoint_is_a_loss_like_others():
    callback = spiking()
    assert agreed_loss(callback, 3, 9.0) is not None
    assert agreed_loss(callback, 4, 3.0) is None
    assert callback.recent_losses == [9.0, 3.0]


def test_a_spike_after_the_last_rollback_is_an_error():
    callback = spiking()
    callback.load_state({"rollbacks": 1, "recent_losses": [3.0, 3.0]})
    with pytest.raises(TrainingError, match=r"all 1 of spike\.max_rollbacks are used up"):
        agreed_loss(callback, 3, 9.0)


def test_a_rollback_that_another_callback_asks_for_keeps_the_losses():
    callback = spiking()
    callback.after_rollback(None)
    assert callback.state() == {"rollbacks": 1, "recent_losses": [3.0, 3.0]}


windows = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda w: (w[0], w[0] + w[1])), max_size=5)


@given(windows)
def test_the_data_of_windows_is_left_out_and_all_other_read_in_order(drawn: list[tuple[int, int]]):
    merged: list[tuple[int, int]] = []
    for window in drawn:
        merged = add_window(merged, window)
    left_out = {step for first, last in drawn for step in range(first, last)}
    assert {step for first, last in merged for step in range(first, last)} == left_out
    read = [shifted_step(step, merged) for step in range(30)]
    assert [step for step, _ in read] == [step for step in range(200) if step not in left_out][:30]
    for step, fresh_since in read:
        assert fresh_since == max((last for _, last in merged if last <= step), default=0)


def test_memories_start_fresh_after_a_window(tiny_dataset: Path):
    train = TokenDataset.open(tiny_dataset / "train")
    samples = CausalLM(seq_len=16).training_samples(train, mem_len=40, num_streams=3, seed=0, shuffle_blocks=1)
    skipping = SkippedWindows(samples, [(5, 9)], [16])
    for stream in range(3):
        assert np.array_equal(
            skipping.sample(step=4, stream=stream).tokens, samples.sample(step=4, stream=stream).tokens
        )
        assert np.array_equal(
            skipping.sample(step=5, stream=stream).tokens, samples.sample(step=9, stream=stream).tokens
        )
    assert [skipping.sample(step=step, stream=0).mem_valid_len for step in range(3, 9)] == [40, 40, 0, 16, 32, 40]


def _poison(dataset: Path, block: int) -> None:
    """Fill a training block with noise, as if it had been built so: every checksum is right."""
    folder = dataset / "train"
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        if block >= len(shard["offset"]):
            block -= len(shard["offset"])
            continue
        data = bytearray((folder / shard["name"]).read_bytes())
        offset, crc32 = shard["offset"][block], 0
        for member in MEMBERS:
            size = tarfile.TarInfo.frombuf(bytes(data[offset : offset + TAR_BLOCK]), "utf-8", "strict").size
            start = offset + TAR_BLOCK
            if member == "tok":
                tokens = np.random.default_rng(0).integers(6, 300, size=index["block_tokens"]).astype("<u2").tobytes()
                data[start + size - len(tokens) : start + size] = tokens
            crc32 = zlib.crc32(data[start : start + size], crc32)
            offset = start + -(-size // TAR_BLOCK) * TAR_BLOCK
        shard["crc32"][block], shard["sha256"] = crc32, hashlib.sha256(data).hexdigest()
        (folder / shard["name"]).write_bytes(data)
        break
    (folder / "index.json").write_text(add_checksum(index))


def _poisoned_copy(dataset: Path, to: Path, *, max_epochs: float | None = None) -> Path:
    """The dataset with noise in the block that stream 0 of two comes to at step 32.

    max_epochs: of the dataset as the only corpus of a mixture; None: it is read alone.
    """
    shutil.copytree(dataset, to)
    train = TokenDataset.open(dataset / "train")
    mixture = mixture_of(dataset / "train", max_epochs=(max_epochs,))
    make = partial(CausalLM(seq_len=512).training_samples, mem_len=24, num_streams=2, shuffle_blocks=1)
    first = mixture.samples(make, seed=1).sample(step=32, stream=0).tokens
    _poison(to, next(n for n in range(train.num_blocks) if np.array_equal(train.block(n).tokens[:512], first[:512])))
    return to


@pytest.fixture
def runs(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Configs of the same run on clean text and on text with one block of noise, which stream 0 reads at step 32."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")  # one thread
    poisoned = _poisoned_copy(tiny_dataset, tmp_path / "poisoned")
    objective = {"type": "causal_lm", "seq_len": 512}

    def write(name: str, dataset: Path, *, data: dict | None = None, **spike: float) -> Path:
        return commands.write_config(
            tmp_path / f"{name}.yaml",
            dataset,
            name=name,
            seed=1,
            engine={"type": "plain", "precision": "fp32"},
            objective=objective,
            global_batch_size=2,
            max_steps=70,
            checkpoint={"every_steps": 10, "keep": 2},
            eval={"every_steps": 70, "max_tokens": 2000},
            wandb={"mode": "disabled"},
            spike=spike,
            **({} if data is None else {"data": data}),
        )

    return write("clean", tiny_dataset), write, poisoned


SPIKE = {"threshold": 0.6, "window": 10, "skip_before": 1, "skip_after": 33}


def test_a_run_passes_a_poisoned_block_and_is_then_as_good_as_a_clean_one(runs, tmp_path: Path):
    clean, write, poisoned = runs
    for config in (clean, write("hurt", poisoned), write("poisoned", poisoned, **SPIKE)):
        assert main([str(config)]) == 0
    samples = {name: commands.read_metrics(tmp_path / "runs" / name) for name in ("clean", "hurt", "poisoned")}
    assert [sample["step"] for sample in samples["poisoned"]] == list(range(1, 71))
    last = samples["poisoned"][-1]
    assert (last["events/rollbacks"], last["events/skipped_steps"]) == (1, 35)
    # Data that is left out counts as read.
    expected = [step + (35 if step >= 31 else 0) for step in range(1, 71)]
    epochs_per_step = samples["clean"][-1]["data/epoch"] / 70
    assert [row["data/epoch"] / epochs_per_step for row in samples["poisoned"]] == pytest.approx(expected)
    # Until the spike nothing differs; the noise is nowhere in what counts.
    assert [sample["train/loss"] for sample in samples["poisoned"][:30]] == [
        sample["train/loss"] for sample in samples["clean"][:30]
    ]
    worst = {name: max(sample["train/loss"] for sample in samples[name][31:]) for name in samples}
    assert worst["poisoned"] < worst["clean"] + 0.3 < worst["hurt"]
    assert last["valid/loss"] == pytest.approx(samples["clean"][-1]["valid/loss"], abs=0.15)
    checkpoints = tmp_path / "runs" / "poisoned" / "checkpoints"
    manifest = json.loads((checkpoints / "step-00000070" / "manifest.json").read_text())
    assert manifest["state"]["skipped_windows"] == [[31, 66]]


@pytest.mark.full
def test_the_epoch_of_a_run_and_of_its_corpora_agree_after_a_rollback(runs, tiny_dataset: Path, tmp_path: Path):
    _, write, _ = runs
    poisoned = _poisoned_copy(tiny_dataset, tmp_path / "mixed", max_epochs=50)
    data = {"train": [{"path": str(poisoned / "train"), "max_epochs": 50}]}
    assert main([str(write("mixed", poisoned, data=data, **SPIKE))]) == 0
    rows = commands.read_metrics(tmp_path / "runs" / "mixed")
    assert rows[-1]["events/rollbacks"] >= 1
    (name,) = {key for row in rows for key in row if key.startswith("data/epoch/")}
    visit = 1 / TokenDataset.open(poisoned / "train").num_blocks
    for row in rows:  # corpora are counted in whole blocks, of two streams
        assert row[name] == pytest.approx(row["data/epoch"], abs=2 * visit)


@pytest.mark.full
def test_a_run_that_keeps_spiking_ends_with_advice_and_goes_on_where_it_was_cut(runs, tmp_path: Path):
    _, write, poisoned = runs
    config = write("stubborn", poisoned, **{**SPIKE, "skip_after": 0, "max_rollbacks": 1})
    with pytest.raises(TrainingError, match=r"all 1 of spike\.max_rollbacks are used"):
        run(config, [], allow_recipe_change=False, take_over=False)
    status = json.loads((tmp_path / "runs" / "stubborn" / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("failed", "error")
    assert main([str(config), "spike.max_rollbacks=9", "spike.skip_after=33"]) == 0
    assert commands.read_metrics(tmp_path / "runs" / "stubborn")[-1]["events/rollbacks"] == 2
