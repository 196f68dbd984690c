"""The console on which commands print their results. Torch-free."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_WIDE = 1000
"""Width for a file or a pipe, in columns, so that text lines and table rows are not wrapped."""


class AnswerConsole(Console):
    """A console that never inserts line breaks into text: a terminal wraps it, and piped or copied text is unbroken.

    Tables fit the width of the terminal; their titles are printed as text. Numbers are not highlighted.
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
