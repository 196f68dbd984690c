"""The table of plans beside measurements."""

from __future__ import annotations

import subprocess
import sys

import pytest
from repository import ROOT


@pytest.mark.full  # imports DeepSpeed
def test_the_table_has_every_case_and_marks_what_is_off():
    script = """
from benchmarks.plan import Row, cases, table
names = [case.name for case in cases()]
assert len(names) == len(set(names)) == 4 * 3 * 2 + 1
for case in cases():
    case.load()
rows = [Row("near", int(1.09e9), int(1e9)), Row("small", int(180e6), int(90e6)), Row("far", int(1.2e9), int(1e9))]
print("\\n".join(table(rows)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:] == [
        "| near | 1,090 | 1,000 | +9% |",
        "| small | 180 | 90 | +100% |",
        "| far | 1,200 | 1,000 | +20% (!) |",
    ]


@pytest.mark.full
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_plan_is_near_its_measurement(stage: int):
    case = f"bert_small, engine.zero_stage={stage}, engine.activation_checkpointing=false"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.plan", "--only", case], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(case) == 1
