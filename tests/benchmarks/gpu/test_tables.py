"""Budgets of a whole training step of each published base model, counted on the meta device.

More operations mean more launches; a CPU tensor in the step means a copy; a wait of the host raises on that device.
"""

from __future__ import annotations

import pytest

from benchmarks.cases import MODELS, case
from benchmarks.gpu.tables import ROWS, Work, work_of

BUDGETS = {
    "transformer_xl": {"forward": 460, "backward": 1070, "kept_mib": 245},
    "xlnet": {"forward": 1950, "backward": 4400, "kept_mib": 660},
    "albert": {"forward": 1520, "backward": 3480, "kept_mib": 166},
    "bert": {"forward": 1520, "backward": 3640, "kept_mib": 168},
}
"""Largest numbers of operations, and MiB kept per sample."""


@pytest.fixture(scope="module", params=MODELS)
def work(request: pytest.FixtureRequest) -> tuple[dict[str, int], Work]:
    return BUDGETS[request.param], work_of(case(request.param, "base", rows=ROWS, precision="bf16", threads=1))


def test_a_step_stays_within_its_operations(work: tuple[dict[str, int], Work]):
    budget, found = work
    assert found.forward <= budget["forward"]
    assert found.backward <= budget["backward"]


def test_a_step_keeps_no_more_than_planned(work: tuple[dict[str, int], Work]):
    budget, found = work
    assert found.kept_bytes / ROWS / 2**20 <= budget["kept_mib"]


def test_a_step_touches_no_cpu_tensor(work: tuple[dict[str, int], Work]):
    assert work[1].from_cpu == ()
