"""Text is never broken in the middle; tables fit a terminal and are whole in a pipe."""

import io

import pytest
from rich.table import Table

from xlpretrain.tracking.printing import AnswerConsole

SENTENCE = " ".join(f"word{number}" for number in range(60))


def printed(item: object, **options: object) -> list[str]:
    file = io.StringIO()
    AnswerConsole(file=file, **options).print(item)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("columns", ["60", "200"])
@pytest.mark.parametrize("options", [{}, {"force_terminal": True, "color_system": None}], ids=["pipe", "terminal"])
def test_a_sentence_stays_on_one_line(columns: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert printed(SENTENCE, **options) == [SENTENCE]


def table() -> Table:
    result = Table("name", "outcome", title=f"/a/long/path{'/of/folders' * 10}: cleaning", box=None)
    result.add_row("first", SENTENCE)
    return result


def test_rows_and_titles_are_whole_in_a_pipe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    title, _, row = printed(table())
    assert title == f"/a/long/path{'/of/folders' * 10}: cleaning"
    assert SENTENCE in row


def test_a_table_fits_its_terminal_and_its_title_is_not_cut(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    title, *rows = printed(table(), force_terminal=True, color_system=None)
    assert title.endswith(": cleaning")
    assert len(rows) > 5
    assert max(map(len, rows)) <= 60
