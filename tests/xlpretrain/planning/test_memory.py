"""The plan of a run's memory, and the largest micro-batch that it allows."""

from __future__ import annotations

import pytest
from planned_runs import VOCAB, planned_config

from xlpretrain.planning.memory import candidates, largest_micro_batch, memory_of, micro_batch_sizes


@pytest.mark.parametrize(
    ("global_batch_size", "num_ranks", "expected"),
    [(12, 1, [12, 6, 4, 3, 2, 1]), (12, 2, [6, 3, 2, 1]), (7, 2, [4, 2, 1]), (1, 1, [1]), (9, 4, [3, 2, 1])],
)
def test_candidates_are_one_for_each_number_of_micro_batches(
    global_batch_size: int, num_ranks: int, expected: list[int]
):
    config = planned_config(global_batch_size=global_batch_size)
    assert candidates(config, num_ranks=num_ranks) == expected
    for size in expected:
        assert max(micro_batch_sizes(config, num_ranks=num_ranks, micro_batch_size=size)) == size


def test_parts_add_up_to_the_worst_moment():
    plan = memory_of(planned_config(), vocab_size=VOCAB, num_ranks=2, device="cpu")
    assert plan.peak == sum(plan.parts.values()) == max(plan.moments.values()) == plan.moments[plan.moment]
    assert f"peak, in {plan.moment}" in plan.describe()
    assert not plan.host


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_largest_micro_batch_is_the_one_whose_peak_just_fits(device: str):
    config = planned_config(engine={"type": "plain"}, global_batch_size=64)

    def peak(size: int) -> int:
        changed = config.model_copy(update={"micro_batch_size": size})
        return memory_of(changed, vocab_size=VOCAB, num_ranks=2, device=device).peak

    def largest(limit: int) -> int | None:
        return largest_micro_batch(config, vocab_size=VOCAB, num_ranks=2, device=device, limit_bytes=limit)

    assert peak(1) < peak(16) < peak(32)
    assert largest(peak(32)) == 32
    assert largest(peak(32) - 1) == 16
    assert largest(peak(1)) == 1
    assert largest(peak(1) - 1) is None


def test_zero_shares_what_its_stage_shares():
    plans = {
        stage: memory_of(
            planned_config(engine={"zero_stage": stage}), vocab_size=VOCAB, num_ranks=4, device="cuda"
        ).parts
        for stage in (1, 2, 3)
    }
    plain = memory_of(planned_config(engine={"type": "plain"}), vocab_size=VOCAB, num_ranks=4, device="cuda").parts
    assert plans[1] == plans[2], "stage 1 runs as stage 2 in bf16 with fp32 gradients"
    assert plain["optimizer state"] == 4 * plans[2]["optimizer state"] == 4 * plans[3]["optimizer state"]
    assert plain["weights"] <= plans[2]["weights"] < plain["weights"] * 1.01
    assert plans[3]["weights"] == pytest.approx(plain["weights"] / 4, rel=0.01)
    assert plain["gradients"] == pytest.approx(4 * plans[2]["gradients"], rel=0.01)
    assert plans[3]["gathered weights"] == plain["weights"]


def test_memories_on_the_host_leave_the_device():
    on_device, on_host = (
        memory_of(
            planned_config(engine={"type": "plain", "memory_device": place}, global_batch_size=48),
            vocab_size=VOCAB,
            num_ranks=1,
            device="cuda",
        )
        for place in ("device", "host")
    )
    one_layer = 48 * 12 * 16 * 2  # streams, positions, width, bf16
    assert on_device.parts["memories"] == 2 * 2 * one_layer
    assert on_host.parts["memories"] == 3 * 2 * one_layer * 3 // 48
    assert on_host.host["memories on the host"] == 2 * 2 * one_layer
    assert on_device.host["copy for saves"] == on_host.host["copy for saves"]
