"""Checkpoints: what is on the disk after anything may have happened, and what a start makes of it.

Modules: writer.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_model import VOCAB, Training, tiny_model, whole_state
from torchrun import torchrun
from workers.checkpoint_cases import STREAMS, begin, restore, save
from workers.engine_cases import FP32

from launcher.cli.monitor import checkpoints
from xlpretrain.checkpoint import reader
from xlpretrain.checkpoint.files import list_checkpoints
from xlpretrain.checkpoint.reader import load_weights, load_weights_into
from xlpretrain.checkpoint.saver import CheckpointConfig, Saver
from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.errors import CheckpointError

PLAIN = FP32["plain fp32"]
CASES = ("same_layout", "elastic_save", "damaged_on_one_rank", "one_rank_cannot_write")


@pytest.fixture
def run(group: None) -> Training:
    """A run of the plain engine after step 1."""
    run = begin(PLAIN)
    run.steps(0, 1)
    return run


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks saw, by case; `full_disk` only where a small disk can be mounted (by root)."""
    folder = tmp_path_factory.mktemp("two")
    disk = folder / "full"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    mounted = bool(shutil.which("mount")) and subprocess.run(mount, capture_output=True).returncode == 0
    cases = (*CASES, "full_disk") if mounted else CASES
    try:
        torchrun("checkpoint_cases.py", folder, *cases, nproc=2)
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
    return {"folder": folder, **{case: json.loads((folder / f"{case}.json").read_text()) for case in cases}}


def test_the_same_layout_goes_on_bit_for_bit(on_two_ranks: dict[str, Any]) -> None:
    for name, found in on_two_ranks["same_layout"].items():
        assert found == {"losses": True, "state": True, "updates": 8}, name


@pytest.mark.full
def test_every_engine_goes_on_bit_for_bit(tmp_path: Path) -> None:
    torchrun("checkpoint_cases.py", tmp_path, "same_layout_full", nproc=2)
    for name, found in json.loads((tmp_path / "same_layout_full.json").read_text()).items():
        assert found == {"losses": True, "state": True, "updates": 8}, name


def test_another_stage_and_world_size_go_on_within_rounding(on_two_ranks: dict[str, Any]) -> None:
    torchrun("checkpoint_cases.py", on_two_ranks["folder"], "elastic_load", nproc=None)
    for optimizer, found in json.loads((on_two_ranks["folder"] / "elastic_load.json").read_text()).items():
        assert found["updates"] == 8
        assert {"world_size: 2 -> 1", "zero_stage: 1 -> 3"} <= set(found["differences"])
        for got, expected in zip(found["losses"], on_two_ranks["elastic_save"][optimizer], strict=True):
            assert got == pytest.approx(expected, rel=1e-6), optimizer


def test_all_ranks_pass_over_what_one_of_them_cannot_read(on_two_ranks: dict[str, Any]) -> None:
    found = on_two_ranks["damaged_on_one_rank"]
    assert found["step"] == [1, 1] and found["state"]
    assert found["damaged"] == ["step-00000002-rank-00001.safetensors-checksum-of-chunk-0"]


def test_if_one_rank_cannot_write_all_are_told_and_nothing_is_lost(on_two_ranks: dict[str, Any]) -> None:
    found = on_two_ranks["one_rank_cannot_write"]
    assert found["told"][0] == found["told"][1] and "step 2 could not be written" in found["told"][0]
    assert "(rank 1): [Errno 27] File too large" in found["told"][0]
    assert found["left"] == ["step-00000001"]
    assert found["later"] == [None, None]


def test_a_full_disk_keeps_the_last_checkpoint_and_training_can_go_on(on_two_ranks: dict[str, Any]) -> None:
    if "full_disk" not in on_two_ranks:
        pytest.skip("cannot mount a small tmpfs here (needs root)")
    found = on_two_ranks["full_disk"]
    assert all("No space left on device" in told for told in found["told"])
    assert found["left"] == ["step-00000001"]
    assert found["later"] == [None, None]


def test_killed_in_mid_save_leaves_a_temporary_folder_that_the_next_start_removes(tmp_path: Path, group: None) -> None:
    torchrun("checkpoint_cases.py", tmp_path, "killed_in_mid_save", nproc=2, may_fail=True)
    folder = tmp_path / "killed"
    assert sorted(path.name for path in folder.iterdir()) == [".tmp-0-step-00000005-1", "step-00000004"]
    restored = restore(folder, begin(PLAIN))
    assert restored is not None and restored.state.step == 4
    assert [path.name for path in folder.iterdir()] == ["step-00000004"]


def test_without_a_checkpoint_there_is_nothing_to_restore(tmp_path: Path, run: Training) -> None:
    assert restore(tmp_path / "none", run) is None


def test_state_and_memories_come_back_as_they_were(tmp_path: Path, run: Training) -> None:
    save(tmp_path, run, 1)
    again = begin(PLAIN, seed=1)
    restored = restore(tmp_path, again)
    assert restored is not None
    assert restored.state == TrainState(step=1, tokens=63, wandb_id="abc", skipped_windows=[(3, 5)])
    assert torch.equal(restored.memory[0], torch.cat(run.memory, dim=1))
    expected = whole_state(run.engine)
    assert all(torch.equal(expected[key], values) for key, values in whole_state(again.engine).items())


def test_memories_are_cut_by_stream_for_any_rank(tmp_path: Path, run: Training) -> None:
    save(tmp_path, run, 1)
    restored = reader.restore(tmp_path, begin(PLAIN).engine, streams=[range(2, 5), range(0), range(STREAMS, STREAMS)])
    assert restored is not None
    assert torch.equal(restored.memory[0], torch.cat(run.memory, dim=1)[:, 2:5])
    assert [part.shape[1] for part in restored.memory] == [3, 0, 0]


def test_ranges_of_streams_have_memories_of_their_own_length(tmp_path: Path, run: Training) -> None:
    long, short = torch.rand(2, 3, 5, 4), torch.rand(2, STREAMS - 3, 2, 4)
    states = {"seen": torch.arange(STREAMS)}
    saver = Saver(tmp_path, CheckpointConfig())
    memory = {range(3): [long[:, :1], long[:, 1:]], range(3, STREAMS): [short]}
    saver.start(TrainState(step=1), run.engine, memory=memory, stream_states=states)
    assert saver.wait() is None
    asked = [range(1, 3), range(4, STREAMS), range(3, 3)]
    restored = reader.restore(tmp_path, begin(PLAIN).engine, streams=asked)
    assert restored is not None
    assert torch.equal(restored.memory[0], long[:, 1:]) and torch.equal(restored.memory[1], short[:, 1:])
    assert restored.memory[2].shape == (2, 0, 2, 4)
    assert restored.stream_states["seen"].tolist() == [1, 2, *range(4, STREAMS)]


def test_only_the_newest_stay(tmp_path: Path, run: Training) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, run, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000003"]


def test_the_same_step_can_be_saved_again(tmp_path: Path, run: Training) -> None:
    save(tmp_path, run, 1)
    save(tmp_path, run, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def _truncate(checkpoint: Path) -> None:
    path = checkpoint / "rank-00000.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def _flip(name: str, position: int) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        content = bytearray((checkpoint / name).read_bytes())
        content[position] ^= 4
        (checkpoint / name).write_bytes(content)

    return damage


def _swap(name: str) -> Callable[[Path], None]:
    """Its file against the same of the checkpoint before."""

    def damage(checkpoint: Path) -> None:
        mine, other = checkpoint / name, checkpoint.with_name("step-00000003") / name
        mine.write_bytes(other.read_bytes())

    return damage


DAMAGES: dict[str, Callable[[str], Callable[[Path], None]]] = {
    "missing": lambda name: lambda checkpoint: (checkpoint / name).unlink(),
    "emptied": lambda name: lambda checkpoint: os.truncate(checkpoint / name, 0),
    "truncated": lambda name: lambda checkpoint: os.truncate(checkpoint / name, (checkpoint / name).stat().st_size - 1),
    "first bits flipped": lambda name: _flip(name, 0),
    "bit of the header flipped": lambda name: _flip(name, 40),
    "bit in the middle flipped": lambda name: _flip(name, -1000),
    "last bits flipped": lambda name: _flip(name, -1),
    "of another step": _swap,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"])
def test_a_damaged_file_is_noticed_and_the_checkpoint_before_taken(
    on_two_ranks: dict[str, Any], group: None, tmp_path: Path, name: str, damage: str
) -> None:
    shutil.copytree(on_two_ranks["folder"] / "elastic" / "adamw", tmp_path, dirs_exist_ok=True)
    DAMAGES[damage](name)(tmp_path / "step-00000004")
    again = begin(PLAIN, seed=1)
    restored = restore(tmp_path, again)
    assert restored is not None and restored.state.step == 3 and again.engine.num_updates == 3
    (put_away,) = (tmp_path / "damaged").iterdir()
    assert put_away.name.startswith("step-00000004-") and name.split(".")[0] in put_away.name
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003"]


def test_after_damage_the_same_step_can_be_saved_again(tmp_path: Path, run: Training) -> None:
    save(tmp_path, run, 1)
    for number in (1, 2):
        _truncate(save(tmp_path, run, 2))
        assert restore(tmp_path, begin(PLAIN, seed=1)) is not None
        assert len(list((tmp_path / "damaged").iterdir())) == number
    save(tmp_path, run, 2)
    assert len(list_checkpoints(tmp_path)) == 2


def test_if_none_is_whole_the_start_is_refused_and_nothing_is_moved(tmp_path: Path, run: Training) -> None:
    for step in (1, 2):
        _truncate(save(tmp_path, run, step))
    again = begin(PLAIN, seed=1)
    before = whole_state(again.engine)
    with pytest.raises(CheckpointError, match=r"all checkpoints are damaged \(step-00000002: .*step-00000001: "):
        restore(tmp_path, again)
    assert all(torch.equal(before[key], values) for key, values in whole_state(again.engine).items())
    assert len(list_checkpoints(tmp_path)) == 2


def test_a_folder_with_damaged_checkpoints_alone_is_refused(tmp_path: Path, run: Training) -> None:
    (tmp_path / "damaged" / "step-00000001-missing").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="damaged/; move an intact one back"):
        restore(tmp_path, run)


def _rewrite(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and its checksum, as another version would have written it."""
    content = json.loads((checkpoint / "manifest.json").read_text())
    del content["sha256"]
    change(content)
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(content))


def _as_schema_2(content: dict[str, Any]) -> None:
    content["schema"] = 2
    content["kinds"] = sorted({kind for entry in content["parameters"].values() for kind in entry.pop("kinds")})


def test_a_checkpoint_of_schema_2_goes_on_in_every_bit(tmp_path: Path, run: Training) -> None:
    _rewrite(save(tmp_path, run, 1), _as_schema_2)
    again = begin(PLAIN, seed=1)
    assert restore(tmp_path, again) is not None
    assert again.steps(1, 4) == run.steps(1, 4)
    expected = whole_state(run.engine)
    assert all(torch.equal(expected[key], values) for key, values in whole_state(again.engine).items())


def test_a_checkpoint_of_a_later_version_is_refused_and_stays_where_it_is(
    tmp_path: Path, run: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, run, 1)
    _rewrite(save(tmp_path, run, 2), lambda content: content.update(schema=9, parameters="other"))
    with pytest.raises(CheckpointError, match=r"step-00000002: was written by a later version .*schema 9.*up to 3"):
        restore(tmp_path, run)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000001"]
    assert not checkpoints.show(tmp_path, verify=False)
    assert "was written by a later version" in capsys.readouterr().out


def test_the_manifest_names_each_parameters_state_and_another_optimizers_lack_is_told(
    tmp_path: Path, group: None
) -> None:
    run = begin(PLAIN, optimizer="two rules")
    run.steps(0, 1)
    folder = save(tmp_path, run, 1)
    parameters = json.loads((folder / "manifest.json").read_text())["parameters"]
    assert parameters["backbone.mix.weight"]["kinds"] == ["weight", "momentum"]
    assert parameters["backbone.mix.bias"]["kinds"] == ["weight", "exp_avg", "exp_avg_sq"]
    with pytest.raises(CheckpointError, match=r"has no exp_avg of backbone.mix.weight, .* but weight, momentum;"):
        restore(tmp_path, begin(PLAIN))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]


def test_a_checkpoint_of_another_model_is_refused_by_the_name_of_what_differs(tmp_path: Path, run: Training) -> None:
    folder = save(tmp_path, run, 1)
    model = tiny_model()
    model.backbone.mix = torch.nn.Linear(3, 4)
    with pytest.raises(CheckpointError, match=r"backbone.mix.bias has shape \(17,\) in the checkpoint, \(4,\) in this"):
        load_weights_into(model, folder)
    assert list_checkpoints(tmp_path) == [folder]


@pytest.mark.parametrize("where", ["run", "run/checkpoints", "run/checkpoints/step-00000001"])
def test_weights_alone_are_read_from_a_run_or_a_checkpoint(tmp_path: Path, run: Training, where: str) -> None:
    save(tmp_path / "run" / "checkpoints", run, 1)
    model, again = tiny_model(seed=1), begin(PLAIN, seed=1)
    again.steps(0, 2)
    assert load_weights_into(model, tmp_path / where) == 1
    assert load_weights(tmp_path / where, again.engine) == []
    for expected, *found in zip(
        run.engine.model.parameters(), model.parameters(), again.engine.model.parameters(), strict=True
    ):
        assert all(torch.equal(expected, parameter) for parameter in found)
    assert again.engine.num_updates == 0
    assert all(not v.any() for (kind, _), v in whole_state(again.engine).items() if kind != "weight")


def test_only_what_is_read_must_be_whole(tmp_path: Path, run: Training) -> None:
    run.memory = [torch.zeros(2, len(streams), 40_000, 17) for streams in run.micro_batches]  # 38 MB, three chunks
    folder = save(tmp_path, run, 1)
    _flip("rank-00000.safetensors", 20 * 2**20)(folder)
    assert load_weights_into(tiny_model(seed=1), folder) == 1
    with pytest.raises(CheckpointError, match="checksum of chunk 1"):
        restore(tmp_path, begin(PLAIN))


def test_a_checkpoint_says_what_it_is(tmp_path: Path, run: Training) -> None:
    folder = save(tmp_path, run, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["parameters"]["backbone.embedding.weight"]["shape"] == [VOCAB, 17]
    assert manifest["memory"] == [[0, STREAMS, "rank-00000.safetensors"]]
    assert manifest["layout"]["world_size"] == 1 and manifest["layout"]["torch"] == torch.__version__
    with safe_open(folder / "rank-00000.safetensors", framework="pt") as file:
        assert file.get_slice("memory|0").get_shape() == [2, STREAMS, 5, 17]
        assert file.get_slice("exp_avg_sq|backbone.mix.weight|0").get_shape() == [17 * 51]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "rank-00000.safetensors"]
