"""What the user can mend. Anything else that is raised is a bug of ours and keeps its traceback."""

from __future__ import annotations

FINISHED = 0
USER_ERROR = 2
STOPPED_EARLY = 75


class XLPretrainError(Exception):
    """A mistake on the user's side: one message that says what is wrong, what was got and what to do. Exit code 2."""


class ConfigError(XLPretrainError):
    """A configuration that cannot be run."""


class DataError(XLPretrainError):
    """A corpus, a tokenizer or a shard that cannot be used."""


class CheckpointError(XLPretrainError):
    """A checkpoint that cannot be written, read or trusted."""


class LaunchError(XLPretrainError):
    """A run that cannot be started where it was asked for."""


class TrainingError(XLPretrainError):
    """A recipe that does not train: losses or gradients that are not finite, step after step."""
