"""State of a run besides weights, optimizer and memory. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TrainState:
    """Counters of a run, equal on every rank, stored in every checkpoint.

    step: completed steps, which is also the position in the data. tokens: tokens trained on.
    skipped_windows: [first, last) data steps skipped after a loss spike; rollbacks: number of such spikes.
    recent_losses: losses of the preceding steps, for spike detection.
    skipped_updates: total steps with a non-finite gradient; nonfinite_in_a_row: latest consecutive ones.
    failed_saves: checkpoints that could not be written. damaged_rows: samples skipped because of damaged blocks.
    unrecorded: this step's metrics so far, while its evaluation or probe is pending.
    best_step, best_value: best evaluation so far by `eval.best`, if there was one.
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
        """Last step whose metrics are in `metrics.jsonl`, if every step is logged."""
        return self.step if self.unrecorded is None else self.step - 1
