"""Saves behind the loop: what they hold, what they wait for, who may commit, and what happens when they fail."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import Training, whole_state
from workers.checkpoint_cases import STREAMS, begin, restore, save
from workers.engine_cases import FP32

from launcher.cli.monitor.checkpoints import show
from xlpretrain.checkpoint import reader
from xlpretrain.checkpoint.files import clear_temporary, list_checkpoints, quarantine, set_aside_newer, verify_whole
from xlpretrain.checkpoint.saver import CheckpointConfig, Saver
from xlpretrain.checkpoint.train_state import TrainState, best_step
from xlpretrain.errors import CheckpointError, LaunchError

PLAIN = FP32["plain fp32"]


@pytest.fixture
def run(group: None) -> Training:
    """A run of the plain engine after step 1."""
    run = begin(PLAIN)
    run.steps(0, 1)
    return run


def saver(folder: Path, *, fence: Callable[[], None] = lambda: None, owner: int = 0, **config: Any) -> Saver:
    return Saver(folder, CheckpointConfig(**config), fence=fence, owner=owner)


def begin_to_save(saver: Saver, run: Training, step: int) -> None:
    saver.start(TrainState(step=step), run.engine, memory={range(STREAMS): run.memory})


def state_with_best(value: float) -> TrainState:
    """The state of step 1, whose evaluation is the best one."""
    return TrainState(step=1, callbacks={"best_checkpoint": {"best_step": 1, "best_value": value}})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_save_holds_the_state_of_its_step_whatever_the_loop_does_meanwhile(tmp_path: Path, run: Training) -> None:
    may_write = threading.Event()
    behind = saver(tmp_path, fence=lambda: may_write.wait(60) and None, every_steps=1)
    behind.reserve(run.engine, memory={range(STREAMS): run.memory})
    expected, mems = whole_state(run.engine), torch.cat(run.memory, dim=1).clone()
    begin_to_save(behind, run, 1)
    run.steps(1, 4)
    votes = behind.votes(4)  # the next save is due, and must wait
    assert votes == (True, False, True) and behind.apply_votes(votes) is None and behind.saved_at is None
    may_write.set()
    assert behind.wait() is None and behind.saved_at == 1
    again = begin(PLAIN, seed=1)
    restored = restore(tmp_path, again)
    assert restored is not None and restored.state.step == 1 and torch.equal(restored.memory[0], mems)
    assert all(torch.equal(expected[key], values) for key, values in whole_state(again.engine).items())


def test_saves_fall_due_by_steps_and_by_time(tmp_path: Path, run: Training) -> None:
    by_steps = saver(tmp_path, every_steps=3)
    assert [step for step in range(8) if by_steps.votes(step).due] == [3, 4, 5, 6, 7]
    begin_to_save(by_steps, run, 4)  # postponed by one
    assert by_steps.wait() is None
    assert [step for step in range(4, 8) if by_steps.votes(step).due] == [6, 7]
    by_time = saver(tmp_path, every_steps=None, every_s=1e-9)
    assert by_time.votes(0).due
    assert not saver(tmp_path, every_steps=None, every_s=1000).votes(10**6).due


def test_what_is_kept_for_good_is_not_pruned(tmp_path: Path, run: Training) -> None:
    for step in (2, 3, 4, 5, 6, 7):
        save(tmp_path, run, step, keep=1, keep_every=3)
    assert names(tmp_path) == ["step-00000003", "step-00000006", "step-00000007"]


def test_the_last_one_that_was_read_and_found_whole_stays(tmp_path: Path, run: Training) -> None:
    save(tmp_path, run, 1)
    resumed = Saver(tmp_path, CheckpointConfig(keep=2), step=1, saved_at=1)
    for step in (2, 3, 4):
        begin_to_save(resumed, run, step)
        assert resumed.wait() is None
    assert names(tmp_path) == ["step-00000001", "step-00000003", "step-00000004"]


@pytest.mark.parametrize("look", [1, 2, 3])
@pytest.mark.parametrize("sees_it", [True, False])
def test_once_another_start_has_taken_over_an_older_one_commits_nothing(
    tmp_path: Path, run: Training, look: int, sees_it: bool
) -> None:
    """`sees_it` False: the older one is stopped right after it has looked, and goes on when all is over."""
    save(tmp_path, run, 1)
    looks, others = 0, b""

    def fence() -> None:
        nonlocal looks, others
        looks += 1
        if looks == look:
            clear_temporary(tmp_path, owner=2)
            begin_to_save(newer := saver(tmp_path, owner=2), run, 2)
            assert newer.wait() is None
            others = (tmp_path / "step-00000002" / "manifest.json").read_bytes()
        if looks > look or (looks == look and sees_it):
            raise LaunchError("taken over")

    older = saver(tmp_path, owner=1, fence=fence, keep=1)
    begin_to_save(older, begin(PLAIN, seed=1), 2)
    with pytest.raises(LaunchError, match="taken over"):
        older.wait()
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert (tmp_path / "step-00000002" / "manifest.json").read_bytes() == others
    verify_whole(tmp_path / "step-00000002")


def test_what_an_evaluation_found_after_a_save_is_noted_in_it(tmp_path: Path, run: Training) -> None:
    may_write = threading.Event()
    behind = saver(tmp_path, fence=lambda: may_write.wait(60) and None)
    before, after = TrainState(step=1, unrecorded={"train/loss": 2.5}), state_with_best(2.0)
    behind.start(before, run.engine, memory={range(STREAMS): run.memory})
    assert behind.amend(after) is None  # it is still being written
    may_write.set()
    assert behind.wait() is None
    assert behind.amend(TrainState(step=2)) is None, "of no step that was saved"
    assert names(tmp_path) == ["step-00000001"]
    found = restore(tmp_path, again := begin(PLAIN, seed=1))
    assert found is not None and found.state == after
    expected = whole_state(run.engine)
    assert all(torch.equal(expected[key], values) for key, values in whole_state(again.engine).items())
    assert behind.amend(before) is None  # it is on the disk
    verify_whole(tmp_path / "step-00000001")
    found = restore(tmp_path, begin(PLAIN))
    assert found is not None and found.state == before


def test_a_checkpoint_that_cannot_be_changed_stays_as_it_was_and_is_tried_again(tmp_path: Path, run: Training) -> None:
    behind = saver(tmp_path)
    begin_to_save(behind, run, 1)
    assert behind.wait() is None
    in_the_way = tmp_path / ".tmp-0-step-00000001-0"
    in_the_way.touch()
    told = behind.amend(state_with_best(2.0))
    assert told is not None and "the evaluation of step 1 could not be recorded" in told
    assert verify_whole(tmp_path / "step-00000001").state["callbacks"] == {}
    in_the_way.unlink()
    assert behind.wait() is None
    assert best_step(verify_whole(tmp_path / "step-00000001").state) == 1


@pytest.mark.parametrize("sees_it", [True, False])
def test_once_another_start_has_taken_over_an_older_one_changes_no_checkpoint(
    tmp_path: Path, run: Training, sees_it: bool
) -> None:
    taken_over = False

    def fence() -> None:
        if taken_over:
            clear_temporary(tmp_path, owner=2)
            if sees_it:
                raise LaunchError("taken over")

    older = saver(tmp_path, owner=1, fence=fence)
    begin_to_save(older, run, 1)
    assert older.wait() is None
    before, taken_over = (tmp_path / "step-00000001" / "manifest.json").read_bytes(), True
    if sees_it:
        with pytest.raises(LaunchError, match="taken over"):
            older.amend(state_with_best(2.0))
    else:
        assert "could not be recorded" in str(older.amend(state_with_best(2.0)))
    assert (tmp_path / "step-00000001" / "manifest.json").read_bytes() == before
    assert names(tmp_path) == ["step-00000001"]


def test_a_start_removes_what_older_ones_were_writing_and_nothing_else(tmp_path: Path, run: Training) -> None:
    save(tmp_path, run, 1)
    for name in (".tmp-3-step-00000002-1", ".tmp-4-step-00000002-1", ".tmp-5-step-00000002-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rank-00000.safetensors").touch()
    assert reader.restore(tmp_path, begin(PLAIN).engine, streams=[range(STREAMS)], owner=4) is not None
    assert names(tmp_path) == [".tmp-5-step-00000002-1", "step-00000001"]


def test_pruning_keeps_what_no_save_wrote(tmp_path: Path, run: Training) -> None:
    for name in (".tmp-2024-backup", ".tmp-mine", "step-00000001-best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    save(tmp_path, run, 1)
    (tmp_path / "step-00000001" / "notes.txt").write_text("of step 1")
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path, run, 2)
    moved = (tmp_path / "step-00000002").rename(tmp_path / "elsewhere" / "2")
    (tmp_path / "step-00000002").symlink_to(moved)
    for step in (3, 4, 5):
        save(tmp_path, run, step, keep=1)
    assert reader.restore(tmp_path, begin(PLAIN).engine, streams=[range(STREAMS)], owner=9) is not None
    mine = [".tmp-2024-backup", ".tmp-mine", "elsewhere", "kept", "step-00000001-best"]
    assert names(tmp_path) == sorted([*mine, "step-00000005"])
    assert names(tmp_path / "kept" / "step-00000001") == ["notes.txt"]
    verify_whole(tmp_path / "kept" / "step-00000002")


def test_going_back_makes_room_for_the_same_steps(tmp_path: Path, run: Training) -> None:
    for _ in range(2):
        for step in (1, 2, 3):
            save(tmp_path, run, step)
        set_aside_newer(tmp_path, 1)
    assert names(tmp_path) == ["abandoned", "step-00000001"]
    assert names(tmp_path / "abandoned") == ["step-00000002", "step-00000002-2", "step-00000003", "step-00000003-2"]


def test_checkpoints_are_listed_with_what_made_them_and_what_is_wrong(
    tmp_path: Path, run: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, run, step, keep=4)
    set_aside_newer(tmp_path, 3)
    quarantine(tmp_path / "step-00000001", "manifest unreadable")
    assert show(tmp_path, verify=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "step-00000003",
        "step-00000002",
        "abandoned/step-00000004",
        "damaged/step-00000001-manifest-unreadable",
    ]
    assert all("1 rank, plain, fp32" in line for line in lines[1:])
    assert [line.split()[-1] for line in lines[1:]] == ["intact", "intact", "intact", "damaged"]
    path = tmp_path / "step-00000002" / "rank-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    assert show(tmp_path, verify=False)
    assert not show(tmp_path, verify=True)
    assert "damaged: rank-00000.safetensors checksum of chunk 0" in capsys.readouterr().out


def _mounted(command: list[str], *, at: Path) -> None:
    done = subprocess.run([*command, str(at)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{' '.join(command)} is not possible here: {done.stderr.strip()}")


@pytest.mark.full
def test_a_disk_that_becomes_read_only_costs_saves_and_nothing_else(tmp_path: Path, run: Training) -> None:
    _mounted(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs"], at=tmp_path)
    try:
        save(tmp_path, run, 1)
        _mounted(["mount", "-o", "remount,ro"], at=tmp_path)
        with pytest.raises(CheckpointError, match=r"step 2 could not be written .*Read-only file system"):
            save(tmp_path, run, 2)
        assert names(tmp_path) == ["step-00000001"]
        _mounted(["mount", "-o", "remount,rw"], at=tmp_path)
        run.steps(1, 2)
        save(tmp_path, run, 3)
        assert names(tmp_path) == ["step-00000001", "step-00000003"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.full
def test_a_disk_that_fails_in_mid_write_costs_saves_and_nothing_else(tmp_path: Path, run: Training) -> None:
    """A file system of 64 MB on a device that has room for 6: writes are taken, and fail when they are flushed."""
    device, disk = tmp_path / "device", tmp_path / "disk"
    for folder in (device, disk):
        folder.mkdir()
    _mounted(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs"], at=device)
    try:
        image = device / "image"
        with image.open("wb") as file:
            file.truncate(64 * 2**20)
        # No journal: it would give up the whole file system, and that is the test above.
        _mounted(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"], at=image)
        _mounted(["mount", "-o", "loop,errors=continue", str(image)], at=disk)
        try:
            save(disk / "checkpoints", run, 1)
            wide = begin(PLAIN)
            wide.memory = [torch.rand(2, len(streams), 40_000, 17) for streams in wide.micro_batches]  # 38 MB
            with pytest.raises(
                CheckpointError, match=r"step 2 could not be written .*(Input/output error|No space left|reads back)"
            ):
                save(disk / "checkpoints", wide, 2)
            assert names(disk / "checkpoints") == ["step-00000001"]
            subprocess.run(["mount", "-o", "remount,size=80m", str(device)], check=True)
            save(disk / "checkpoints", wide, 3)
            for path in list_checkpoints(disk / "checkpoints"):
                verify_whole(path)
            assert names(disk / "checkpoints") == ["step-00000001", "step-00000003"]
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    finally:
        subprocess.run(["umount", str(device)], check=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_states_of_streams_lie_beside_the_memories_whatever_their_elements(
    tmp_path: Path, run: Training, dtype: torch.dtype
) -> None:
    states = {"odd": torch.tensor([[1, 0, 1]] * STREAMS).to(dtype), "flags": torch.arange(STREAMS) % 2 == 0}
    saving = saver(tmp_path)
    memory = run.memory
    saving.start(TrainState(step=1), run.engine, memory={range(STREAMS): memory}, stream_states=states)
    assert saving.wait() is None
    again = begin(PLAIN, seed=1)
    restored = restore(tmp_path, again)
    assert restored is not None and restored.stream_states.keys() == states.keys()
    assert all(torch.equal(restored.stream_states[name], state) for name, state in states.items())
    assert whole_state(again.engine).keys() == whole_state(run.engine).keys()
