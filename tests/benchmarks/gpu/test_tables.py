"""Budgets of a whole training step of each published base model, counted on the meta device.

More operations mean more launches; a CPU tensor in the step means a copy; a wait of the host raises on that device.
"""

from __future__ import annotations

import pytest

from benchmarks.gpu.tables import ROWS, Work, cases, work_of

BUDGETS = {
    "transformer_xl": {"forward": 290, "backward": 590, "update": 20, "kept_mib": 245},
    "transformer_xl, adaptive": {"forward": 380, "backward": 700, "update": 20, "kept_mib": 295},
    "xlnet": {"forward": 360, "backward": 670, "update": 20, "kept_mib": 405},
    "albert": {"forward": 200, "backward": 580, "update": 20, "kept_mib": 160},
    "bert": {"forward": 200, "backward": 575, "update": 20, "kept_mib": 162},
}
"""Largest numbers of operations, and MiB kept per sample."""


@pytest.fixture(scope="module", params=list(cases()), ids=lambda found: found[0])
def work(request: pytest.FixtureRequest) -> tuple[dict[str, int], Work]:
    name, of, model_keys = request.param
    return BUDGETS[name], work_of(of, model_keys=model_keys)


def test_a_step_stays_within_its_operations(work: tuple[dict[str, int], Work]):
    budget, found = work
    assert found.forward <= budget["forward"]
    assert found.backward <= budget["backward"]
    assert found.update <= budget["update"]


def test_a_step_keeps_no_more_than_planned(work: tuple[dict[str, int], Work]):
    budget, found = work
    assert found.kept_bytes / ROWS / 2**20 <= budget["kept_mib"]


def test_a_step_touches_no_cpu_tensor(work: tuple[dict[str, int], Work]):
    assert work[1].from_cpu == ()
