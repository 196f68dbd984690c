"""Config sections whose code is in rooms above `config`: metrics, evaluation, probe, spikes, stopping, profiles,
callbacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from xlpretrain.schema import Problem, Registry, Section, TaggedUnion


class LogConfig(Section):
    """Metrics."""

    every_steps: int = Field(10, gt=0)
    """Steps between two lines of metrics."""


class ProbeConfig(Section):
    """Periodic short fine-tuning of a copy of the model on a downstream task. Each rank needs memory for a second
    model with gradients and optimizer state."""

    train: Path
    """Labelled texts to train on: .csv or .tsv with a header, or .jsonl."""
    valid: Path
    """Labelled texts to evaluate on."""
    text: tuple[str, ...] = Field((), max_length=2)
    """Column of the text, or two columns of a pair of texts (default: all but the label's)."""
    label: str = "label"
    """Column of the label."""
    every_steps: int = Field(500, gt=0)
    """Steps between probes; there is always one at the end."""
    steps: int = Field(100, gt=0)
    """Training steps of a probe, of 32 texts each."""

    def absolute(self) -> ProbeConfig:
        """Make the paths absolute."""
        return self.model_copy(update={"train": self.train.absolute(), "valid": self.valid.absolute()})


class EvalConfig(Section):
    """Evaluation on the held-out split."""

    every_steps: int = Field(100, gt=0)
    """Steps between evaluations; there is always one at the end."""
    max_tokens: int | None = Field(200_000, gt=0)
    """Maximum tokens to score, rounded down to full blocks, at least one block (null: all)."""
    num_streams: int = Field(4, gt=0)
    """Slices of the tokens that are scored in parallel; independent of the number of ranks."""
    mem_len: int | None = Field(None, ge=0)
    """Memory length in positions (default: as trained)."""
    seq_len: int | None = Field(None, gt=0)
    """Sequence length in tokens (default: as trained)."""
    clamp_len: Annotated[int, Field(ge=-1)] | None = None
    """Clamp relative distances to this many tokens (default: model.clamp_len; -1: no limit)."""
    same_length: bool | None = None
    """Let every token attend to equally many positions, mem_len including itself (default: model.same_length)."""
    probe: ProbeConfig | None = None
    """Periodic short fine-tuning whose accuracy is logged (default: none)."""
    best: str = "loss"
    """Criterion for the best evaluation: loss (lowest), accuracy of the first loss term (highest), or a metric of the
    task (highest), such as matthews. On a tie, the lower loss is better."""

    def problems(self) -> Iterator[Problem]:
        """Yield a problem for clamp_len 0, which would make all distances equal."""
        if self.clamp_len == 0:
            yield "clamp_len", "must be positive, or -1 for no limit, got 0"

    def absolute(self) -> EvalConfig:
        """Make the paths absolute."""
        return self if self.probe is None else self.model_copy(update={"probe": self.probe.absolute()})


class SpikeConfig(Section):
    """Rollback after loss spikes."""

    threshold: float | None = Field(None, gt=0)
    """Nats by which a spike's loss exceeds the median of the preceding steps (default: no spike detection)."""
    window: int = Field(50, ge=2)
    """Number of preceding steps to compare with; earlier steps of a run cannot be spikes."""
    skip_before: int = Field(0, ge=0)
    """Steps before the spike whose data is skipped, too."""
    skip_after: int = Field(0, ge=0)
    """Steps after the spike whose data is skipped, too."""
    max_rollbacks: int = Field(5, ge=1)
    """Maximum number of rollbacks; the run fails at the next spike."""


class StopConfig(Section):
    """Conditions that end a run before its last step."""

    time_budget_s: float | None = Field(None, gt=0)
    """Seconds after which an attempt saves and exits with code 75 (default: no limit)."""
    grace_s: int = Field(600, gt=0)
    """Seconds for the ranks to save after a signal before the launcher kills them."""
    patience: int | None = Field(None, gt=0)
    """Number of consecutive evaluations without improvement (eval.best) after which a run is finished (default: run to
    max_steps)."""
    unwritable_s: float = Field(300, gt=0)
    """Seconds for which metrics.jsonl or status.json may be unwritable. After that, the run saves as soon as it can and
    exits with code 75."""
    max_nonfinite_steps: int = Field(5, gt=0)
    """Number of consecutive steps with a non-finite loss or gradient after which the run fails."""


class ProfileConfig(Section):
    """Profiles of single steps: a trace, and the shares of a step's time (`xlpretrain profile`)."""

    first_step: int | None = Field(None, gt=0)
    """The first step to profile (default: none)."""
    num_steps: int = Field(3, gt=0)
    """Number of steps to profile."""
    ranks: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    """Ranks that write a profile."""


class CallbackConfig(Section):
    """Config of a callback that an installed package provides, an item of `callbacks` (docs/extend/callback.md)."""

    type: str

    def build(self, context: Any) -> Any:
        """Build each rank's callback (`train.callbacks.base.Callback`); None if there is nothing for it to do.

        context: facts about the run (`train.callbacks.base.CallbackContext`). Raises `XLPretrainError`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `build`")


CALLBACKS: Registry[CallbackConfig] = Registry("callback", CallbackConfig, {})

AnyCallback = Annotated[CallbackConfig, TaggedUnion(CALLBACKS)]
"""Config of any callback, selected by its key `type`."""
