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
"""Another attempt of the run has taken over."""
HUNG = 77
"""No progress within the watchdog's timeout."""


class XLPretrainError(Exception):
    """A user error. Its message says what is wrong, what was expected, and how to fix it."""

    exit_code = USER_ERROR


class ConfigError(XLPretrainError):
    """An invalid config."""


class DataError(XLPretrainError):
    """An unusable corpus, tokenizer or shard."""


class DamagedDataError(DataError):
    """A block that does not match its checksum."""


class CheckpointError(XLPretrainError):
    """A checkpoint that cannot be written or read, or is damaged."""


class LaunchError(XLPretrainError):
    """A run that cannot be started as requested."""


class RankError(LaunchError):
    """An error that only this rank may have, raised before ranks can communicate."""


class OutOfMemoryError(RankError):
    """More memory was needed than there is, on this rank."""


class LeaseLostError(XLPretrainError):
    """Another attempt has taken over the run folder; this one must not write to it any more."""

    exit_code = FENCED


class TrainingError(XLPretrainError):
    """A diverged run: non-finite losses or gradients step after step."""


def print_error_once(error: XLPretrainError) -> int:
    """Print an error shared by all ranks on rank 0, or this rank's own; returns its exit code.

    Other ranks wait a moment: when the first rank exits, torchrun kills the rest, maybe before rank 0 has printed.
    """
    if os.environ.get("RANK", "0") == "0" or isinstance(error, RankError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(2.0)
    return error.exit_code


def exit_rank(code: int) -> NoReturn:
    """Exit this process at once, after all work is done and written.

    A normal interpreter shutdown is sometimes aborted (SIGABRT) by a torch thread that wakes up during it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
