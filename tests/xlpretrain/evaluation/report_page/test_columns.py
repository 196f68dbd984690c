"""Metrics files as columns: damaged lines, rows that were done again, files that grow and shrink."""

import json
from pathlib import Path

import numpy as np
import pytest

from xlpretrain.evaluation.report_page.columns import MetricsColumns


@pytest.fixture
def columns(tmp_path: Path) -> MetricsColumns:
    return MetricsColumns(tmp_path / "metrics.jsonl")


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_missing_file_has_no_columns(columns: MetricsColumns):
    assert not columns.refresh()
    assert columns.table() == {}


def test_missing_metrics_nulls_and_what_is_no_number_are_nan(columns: MetricsColumns):
    columns.path.write_text(
        lines({"step": 1, "a": 1.5}, {"step": 2, "a": None, "b": 2}, {"step": 3, "b": "text"}, {"step": 4, "b": True})
        + '{"step": 5, "a": Infinity, "b": 1e308}\n'
    )
    columns.refresh()
    table = columns.table()
    np.testing.assert_equal(table["step"], [1, 2, 3, 4, 5])
    np.testing.assert_equal(table["a"], [1.5, *[np.nan] * 4])
    np.testing.assert_equal(table["b"], [np.nan, 2, *[np.nan] * 3])


def test_damaged_lines_are_skipped_and_counted(columns: MetricsColumns):
    damaged = '{"step": 2, "a"\n[1]\n{"a": 1}\n{"step": "4"}\n{"step": -1}\n{"step": 99999999999}\n\xff\n'
    columns.path.write_bytes(lines({"step": 1}).encode() + damaged.encode("latin-1") + lines({"step": 3}).encode())
    columns.refresh()
    np.testing.assert_equal(columns.table()["step"], [1, 3])
    assert columns.num_damaged == 7


def test_a_last_line_counts_once_it_is_complete(columns: MetricsColumns):
    columns.path.write_text(lines({"step": 1, "a": 1}) + '{"step": 2, "a": ')
    columns.refresh()
    np.testing.assert_equal(columns.table()["step"], [1])
    with columns.path.open("a") as file:
        file.write("7}")
    assert columns.refresh()
    np.testing.assert_equal(columns.table()["a"], [1, 7])
    with columns.path.open("a") as file:
        file.write("\n" + lines({"step": 3, "a": 8}))
    assert columns.refresh()
    np.testing.assert_equal(columns.table()["a"], [1, 7, 8])
    assert not columns.refresh()
    assert columns.num_damaged == 0


def test_of_steps_done_again_the_last_rows_count(columns: MetricsColumns):
    steps = [1, 2, 3, 4, 2, 3, 3, 5]
    columns.path.write_text(lines(*({"step": step, "row": row} for row, step in enumerate(steps))))
    columns.refresh()
    np.testing.assert_equal(columns.table()["step"], [1, 2, 3, 5])
    np.testing.assert_equal(columns.table()["row"], [0, 4, 6, 7])


@pytest.mark.parametrize("same_size", [True, False])
def test_a_file_that_was_replaced_is_read_again(columns: MetricsColumns, same_size: bool):
    """As by a resume, which drops rows by renaming a new file over the old one."""
    columns.path.write_text(lines({"step": 1, "a": 1}, {"step": 2, "a": 2}))
    columns.refresh()
    other = columns.path.with_name("other")
    other.write_text(lines({"step": 1, "a": 3}, *([{"step": 2, "a": 4}] if same_size else [])))
    other.replace(columns.path)
    assert columns.refresh()
    np.testing.assert_equal(columns.table()["a"], [3, 4] if same_size else [3])


def test_a_file_that_is_gone_leaves_nothing(columns: MetricsColumns):
    columns.path.write_text(lines({"step": 1}))
    columns.refresh()
    columns.path.unlink()
    assert columns.refresh()
    assert columns.table() == {}
