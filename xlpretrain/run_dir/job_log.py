"""A run's job.log, and the final error line of a log. Torch-free."""

from __future__ import annotations

import itertools
import os
import re
from contextlib import suppress
from pathlib import Path

from xlpretrain.run_dir.layout import RunDir
from xlpretrain.run_dir.rank_log import HEADING

_LAST_WORDS_BYTES = 10_000


_LAST_WORDS_LENGTH = 300


# Last line of a traceback (torch's has a prefix), first line of faulthandler's, or an error message of ours.
_REASON = re.compile(r"(\[rank\d+\]: *)?(([\w.]*\.)?\w*(Error|Exception|Interrupt)\b|Fatal Python error:|error: )")


def note(run: RunDir, message: str) -> None:
    """Append a line to a run's job.log, ignoring write errors."""
    with suppress(OSError):
        run.logs.mkdir(parents=True, exist_ok=True)
        with run.job_log.open("a", encoding="utf-8") as file:
            file.write(f"{message}\n")


def last_words(log: Path, *, since: int = 0) -> str:
    """The line of a log that explains why an attempt ended, else the attempt's last line; empty if there is none.

    since: size of the log in bytes when the attempt started, if known. Lines before the last heading are ignored: they
    belong to earlier attempts.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(since, file.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return ""
    of_start = list(itertools.takewhile(lambda line: not line.startswith(HEADING), filter(None, reversed(lines))))
    words = next((line for line in of_start if _REASON.match(line)), of_start[0] if of_start else "")
    return words.removeprefix("error: ")[:_LAST_WORDS_LENGTH]
