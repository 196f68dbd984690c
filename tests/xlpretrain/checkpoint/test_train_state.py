"""The state of a run in a checkpoint's manifest, now and before callbacks had states of their own."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from xlpretrain.checkpoint.train_state import TrainState, best_step

OLD = {
    "step": 40,
    "tokens": 5120,
    "wandb_id": "abc",
    "skipped_windows": [[31, 33]],
    "skipped_updates": 2,
    "nonfinite_in_a_row": 1,
    "failed_saves": 3,
    "damaged_rows": 4,
    "rollbacks": 1,
    "recent_losses": [3.5, 3.25],
    "unrecorded": {"train/loss": 3.5, "valid/loss": 3.25},
    "best_step": 40,
    "best_value": 3.25,
}


def test_fields_of_callbacks_move_to_them():
    state = TrainState.from_json(OLD)
    assert state.callbacks == {
        "best_checkpoint": {"best_step": 40, "best_value": 3.25},
        "spike_rollback": {"rollbacks": 1, "recent_losses": [3.5, 3.25]},
        "nonfinite": {"skipped_updates": 2, "nonfinite_in_a_row": 1},
        "damaged_samples": {"damaged_rows": 4},
    }
    assert (state.step, state.skipped_windows, state.failed_saves) == (40, [(31, 33)], 3)
    assert state.done_sections == ["evaluation"] and state.recorded_step == 39
    assert TrainState.from_json(json.loads(json.dumps(asdict(state)))) == state


def test_the_oldest_checkpoints_lack_fields():
    state = TrainState.from_json({"step": 3, "tokens": 9, "wandb_id": "", "skipped_updates": 1})
    assert state.callbacks["nonfinite"] == {"skipped_updates": 1, "nonfinite_in_a_row": 0}
    assert state.recorded_step == 3


@pytest.mark.parametrize("manifest", [OLD, asdict(TrainState.from_json(OLD))], ids=["old", "new"])
def test_the_best_step_is_found_in_both(manifest: dict):
    assert best_step(manifest) == 40
    assert best_step(asdict(TrainState(step=1))) is None
