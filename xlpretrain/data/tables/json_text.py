"""Parse JSON and JSON lines, with one message for every fault. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from xlpretrain.errors import DataError


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. where: its place, for messages. Raises `DataError`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from None


def json_lines(content: str, name: str) -> Iterator[tuple[int, str, Any]]:
    """The number, the place for messages, and the value of each line that is not blank. Raises `DataError`."""
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            where = f"{name}: line {number}"
            yield number, where, parse_json(line, where)
