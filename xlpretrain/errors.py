"""Errors that a user can fix, and the exit of a rank. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn

FINISHED = 0
USER_ERROR = 2
STOPPED_EARLY = 75
FENCED = 76
"""Another start of the run has taken over."""
HUNG = 77
"""No progress for too long."""


class XLPretrainError(Exception):
    """A mistake on the user's side: one message that says what is wrong, what was got and what to do."""

    exit_code = USER_ERROR


class ConfigError(XLPretrainError):
    """A configuration that cannot be run."""


class DataError(XLPretrainError):
    """A corpus, a tokenizer or a shard that cannot be used."""


class DamagedDataError(DataError):
    """A block whose bytes are not those that were written."""


class CheckpointError(XLPretrainError):
    """A checkpoint that cannot be written, read or trusted."""


class LaunchError(XLPretrainError):
    """A run that cannot be started where it was asked for."""


class RankError(LaunchError):
    """A mistake that this rank alone may have met, before it could ask the others."""


class LeaseLostError(XLPretrainError):
    """Another start of the run has taken its folder over; this one may write nothing more."""

    exit_code = FENCED


class TrainingError(XLPretrainError):
    """A recipe that does not train: losses or gradients that are not finite, step after step."""


def print_error_once(error: XLPretrainError) -> int:
    """Print an error that every rank has met, on rank 0, or one of this rank's own; returns its exit code.

    The others linger: the first rank to leave makes torchrun end the rest, maybe before rank 0 has spoken.
    """
    if os.environ.get("RANK", "0") == "0" or isinstance(error, RankError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(2.0)
    return error.exit_code


def exit_rank(code: int) -> NoReturn:
    """End this rank at once, when all is done and written.

    Where Python ends it, a thread of torch's that wakes up in the midst of that now and then aborts it (SIGABRT).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
