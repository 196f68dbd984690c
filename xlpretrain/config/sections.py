"""Sections of a run's configuration whose code lies above `config`: metrics, evaluation, probe, spikes, stopping."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from xlpretrain.schema import Problem, Section


class LogConfig(Section):
    """Metrics."""

    every_steps: int = Field(10, gt=0)
    """Steps between two lines of metrics."""


class ProbeConfig(Section):
    """A short fine-tune of a copy of the model every so often: what it has learnt for a task. For models that fit
    into the memory of each rank a second time, with gradients and optimizer."""

    train: Path
    """Labelled texts to train on: .csv or .tsv with a header, or .jsonl."""
    valid: Path
    """Labelled texts to evaluate on."""
    text: tuple[str, ...] = Field((), max_length=2)
    """The column of the text, or those of a pair of texts (default: all but the label's)."""
    label: str = "label"
    """The column of the label."""
    every_steps: int = Field(500, gt=0)
    """Steps between two probes; there is always one at the end."""
    steps: int = Field(100, gt=0)
    """Steps of a probe, of 32 texts each."""

    def absolute(self) -> ProbeConfig:
        """The same files, wherever one stands."""
        return self.model_copy(update={"train": self.train.absolute(), "valid": self.valid.absolute()})


class EvalConfig(Section):
    """Evaluation on the held-out split."""

    every_steps: int = Field(100, gt=0)
    """Steps between two evaluations; there is always one at the end."""
    max_tokens: int | None = Field(200_000, gt=0)
    """Tokens to score: the first whole blocks up to as many, one block at least (null: all there are)."""
    num_streams: int = Field(4, gt=0)
    """Slices that the tokens are cut into, read side by side, whatever the number of ranks."""
    mem_len: int | None = Field(None, ge=0)
    """Positions remembered (default: as trained)."""
    seq_len: int | None = Field(None, gt=0)
    """Tokens in a row (default: as trained)."""
    clamp_len: Annotated[int, Field(ge=-1)] | None = None
    """Distances of more than this many tokens count as this many (default: model.clamp_len; -1: no limit)."""
    same_length: bool | None = None
    """Every token attends equally many positions, mem_len with itself (default: model.same_length)."""
    probe: ProbeConfig | None = None
    """A short fine-tune every so many steps, whose accuracy is logged (default: none)."""
    best: Literal["loss", "accuracy"] = "loss"
    """Criterion for the best evaluation: the lowest loss, or the highest accuracy of the first loss term."""

    def problems(self) -> Iterator[Problem]:
        """A limit of 0 would make all distances alike."""
        if self.clamp_len == 0:
            yield "clamp_len", "must be positive, or -1 for no limit, got 0"

    def absolute(self) -> EvalConfig:
        """The same, wherever one stands."""
        return self if self.probe is None else self.model_copy(update={"probe": self.probe.absolute()})


class SpikeConfig(Section):
    """Going back where the loss spikes."""

    threshold: float | None = Field(None, gt=0)
    """Nats by which a step's loss must exceed the median of those before it to be a spike (default: none ever is)."""
    window: int = Field(50, ge=2)
    """Number of preceding steps to compare with; the first ones of a run cannot be spikes."""
    skip_before: int = Field(0, ge=0)
    """Steps before the spike whose data is left out with it."""
    skip_after: int = Field(0, ge=0)
    """Steps after it."""
    max_rollbacks: int = Field(5, ge=1)
    """At the next spike after so many, the run fails."""


class StopConfig(Section):
    """Conditions that end a run before its last step."""

    time_budget_s: float | None = Field(None, gt=0)
    """Seconds after its start at which a run saves and leaves with exit code 75 (default: never)."""
    grace_s: int = Field(600, gt=0)
    """Seconds that the launcher gives the ranks to save after a signal, before it kills them."""
    patience: int | None = Field(None, gt=0)
    """Evaluations in a row that are no better than the best one (eval.best) after which a run is finished (default: it
    goes on to max_steps)."""
    unwritable_s: float = Field(300, gt=0)
    """Seconds for which metrics.jsonl or status.json may be unwritable; after them the run saves and leaves with exit
    code 75, as soon as it can save."""
    max_nonfinite_steps: int = Field(5, gt=0)
    """Steps in a row whose loss or gradient is not finite after which the run fails."""
