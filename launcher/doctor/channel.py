"""Messages from the process that runs checks to the one that watches it, as JSON lines. Torch-free."""

from __future__ import annotations

import json
import os
from typing import Any, TextIO

_out: TextIO | None = None


def open_channel() -> None:
    """Reserve standard output for messages; anything else that this process prints goes to standard error."""
    global _out
    _out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


def send(**message: Any) -> None:
    """Send a message, if there is a channel."""
    if _out is not None:
        _out.write(json.dumps(message) + "\n")
        _out.flush()
