"""The console that commands print their answers to. Torch-free."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_WIDE = 1000
"""Columns of a file or a pipe: each line of text and each row of a table stays on one line."""


class AnswerConsole(Console):
    """A console that never breaks a line of text: a terminal wraps it, and what is piped or copied stays whole.

    Tables fit the width of a terminal; the titles of tables are lines of text. What looks like a number has no colour.
    """

    def __init__(self, **options: Any):
        super().__init__(**{"highlight": False, "emoji": False, **options})
        if not self.is_terminal:
            self.width = _WIDE

    def print(self, *objects: Any, **options: Any) -> None:
        """Print text unbroken, and anything else as `rich.console.Console` does."""
        for table in objects:
            if isinstance(table, Table) and table.title:
                super().print(table.title, style="italic", markup=False, soft_wrap=True)
                table.title = None
        is_text = all(isinstance(item, str) for item in objects)
        super().print(*objects, **{"soft_wrap": is_text, **options})
