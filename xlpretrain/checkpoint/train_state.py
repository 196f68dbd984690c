"""The state of a run besides weights, optimizer and memories. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TrainState:
    """Plain numbers, equal on every rank, in every checkpoint.

    step: completed steps, which is the position in the data. tokens: trained on so far.
    skipped_windows: [first, last) steps of the data that were left out after a loss spike; rollbacks: such spikes.
    recent_losses: of the steps before this one, where spikes are looked for.
    skipped_updates: steps whose gradient was not finite, in all; nonfinite_in_a_row: up to now.
    failed_saves: checkpoints that could not be written. damaged_rows: left out since their block is damaged.
    unrecorded: this step's metrics as far as they are known, while its evaluation or probe is still to be done.
    best_step, best_value: of the evaluation that found the best value of what `eval.best` names, if there was one.
    """

    step: int = 0
    tokens: int = 0
    wandb_id: str = ""
    skipped_windows: list[tuple[int, int]] = field(default_factory=list)
    skipped_updates: int = 0
    nonfinite_in_a_row: int = 0
    failed_saves: int = 0
    damaged_rows: int = 0
    rollbacks: int = 0
    recent_losses: list[float] = field(default_factory=list)
    unrecorded: dict[str, float | int] | None = None
    best_step: int | None = None
    best_value: float | None = None

    def __post_init__(self) -> None:
        self.skipped_windows = [(first, last) for first, last in self.skipped_windows]  # JSON gives lists

    @property
    def recorded_step(self) -> int:
        """The last step whose metrics are in `metrics.jsonl`, where every step is logged."""
        return self.step if self.unrecorded is None else self.step - 1
