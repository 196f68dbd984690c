"""Sorting by runs on the disk gives what sorting in memory gives, however the runs and the ranges are cut."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.execution.cores import usable_cores
from data_pipelines.execution.external_sort import (
    KEYS,
    Document,
    SortedDocumentWriter,
    gather,
    gather_documents,
    key_range,
    write_sorted_run,
)

keys = st.sampled_from([0, 1, 2**63 - 1, 2**63, KEYS - 2, KEYS - 1])


@given(st.lists(st.lists(st.tuples(keys, st.integers(0, 3)), max_size=6), max_size=4), st.integers(1, 5))
def test_ranges_of_sorted_runs_are_the_sorted_whole(tmp_path_factory, runs, num_tasks):
    folder = tmp_path_factory.mktemp("runs")
    paths = [folder / f"{i}.npy" for i in range(len(runs))]
    for path, run in zip(paths, runs, strict=True):
        write_sorted_run(path, np.array(run, np.uint64).reshape(-1, 2).T)
    parts = [gather(paths, *key_range(task, num_tasks), num_columns=2).T.tolist() for task in range(num_tasks)]
    assert list(chain(*parts)) == sorted([key, value] for run in runs for key, value in run)


def test_a_unique_run_holds_each_row_once(tmp_path: Path):
    write_sorted_run(tmp_path / "run.npy", np.array([[5, 0, 5, 5], [1, 0, 1, 2]], np.uint64), unique=True)
    assert np.load(tmp_path / "run.npy").T.tolist() == [[0, 0], [5, 1], [5, 2]]


@pytest.mark.parametrize("run_bytes", [1, 40, 10**6])
def test_documents_come_back_in_the_order_of_their_hashes(tmp_path: Path, run_bytes: int):
    rng = np.random.default_rng(0)
    documents = [Document(rng.bytes(16), b"text %d" % i * (i % 5), i % 3, i % 2) for i in range(50)]
    (tmp_path / "00").mkdir()
    writer = SortedDocumentWriter(tmp_path / "00", run_bytes=run_bytes)
    for document in documents:
        writer.add(document)
    writer.close()
    read = [gather_documents(tmp_path, *key_range(task, 3)) for task in range(3)]
    assert all(read), "each range holds some"
    assert list(chain(*read)) == sorted(documents)


def test_there_is_a_core_to_work_with():
    assert usable_cores() >= 1
