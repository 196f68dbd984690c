"""The section `stages`: its checks, its ramps, and the steps at which stages end. Modules: run_stages.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixtures import mixture_of

from xlpretrain import schema
from xlpretrain.config import data_rules
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.run_stages import RunStages, resolved_without_data
from xlpretrain.config.stages import RampConfig, ramp_values
from xlpretrain.errors import ConfigError

BERT = {"type": "bert", "num_layers": 1, "d_model": 16, "num_heads": 2, "d_ff": 16, "max_positions": 128}


def config_of(stages: list[dict[str, Any]], **changes: Any) -> RunConfig:
    content = {
        "data": {"train": "nowhere"},
        "model": BERT,
        "objective": {"type": "masked_lm", "seq_len": 128, "mask_rate": 0.2},
        "global_batch_size": 8,
        "max_steps": 100,
        "stages": stages,
        **changes,
    }
    return schema.validate(RunConfig, content, "test")


def report(stages: list[dict[str, Any]], **changes: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        resolved_without_data(config_of(stages, **changes))
    return str(refused.value)


def values_of(config: RunConfig, steps: int) -> list[tuple[int, int, float]]:
    stages = RunStages.of(resolved_without_data(config))
    configs = [stages.at(step) for step in range(steps)]
    return [(each.global_batch_size, each.objective.seq_len, each.objective.mask_rate) for each in configs]


def test_a_stage_has_its_own_values_and_the_run_has_those_of_all_others() -> None:
    config = config_of(
        [
            {
                "until": {"fraction": 0.9},
                "objective": {"seq_len": 32},
                "global_batch_size": 16,
                "optimizer": {"lr": 0.5},
            },
            {"until": {"step": 95}, "objective": {"mask_rate": 0.4}, "micro_batch_size": 2},
            {},
        ]
    )
    assert values_of(config, 100) == [(16, 32, 0.2)] * 90 + [(8, 128, 0.4)] * 5 + [(8, 128, 0.2)] * 5
    stages = RunStages.of(resolved_without_data(config))
    assert stages.firsts == [0, 90, 95] and stages.num_streams == 16
    assert [each.optimizer.lr for each in stages.configs] == [0.5, config.optimizer.lr, config.optimizer.lr]
    assert [each.micro_batch_size for each in stages.configs] == [8, 2, 8]
    assert stages.tokens(93) == sum(stages.at(step).tokens_per_step for step in range(93))
    assert [stages.end(step, 100) for step in (0, 89, 90, 99)] == [90, 90, 95, 100]


def test_a_run_without_stages_is_one_stage() -> None:
    config = config_of([])
    stages = RunStages.of(config)
    assert stages.firsts == [0] and stages.configs == [config] and stages.end(3, 100) == 100
    assert stages.tokens(7) == 7 * config.tokens_per_step and stages.num_streams == config.smallest_batch == 8


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([{"until": {"step": 5}}], ["stages.0.until", "the last stage ends with the run"]),
        ([{}, {}], ["stages.0.until", "missing"]),
        ([{"until": {}}, {}], ["stages.0.until.fraction", "exactly one of fraction, step, tokens; got none"]),
        ([{"until": {"step": 9}}, {"until": {"step": 9}}, {}], ["stages.1.until.step", "after the end", "9, got 9"]),
        ([{"until": {"fraction": 0.5}}, {"until": {"step": 20}}, {}], ["stages.1", "has no steps", "at step 50"]),
        ([{"until": {"step": 100}}, {}], ["stages.1", "raise max_steps from 100"]),
        ([{"until": {"step": 5}, "objective": {"seq_len": 512}}, {}], ["stages.0.", "512", "max_positions"]),
        ([{"until": {"step": 5}, "objective": {"seq": 5}}, {}], ["stages.0.objective.seq", "unknown key"]),
        ([{"until": {"step": 5}, "objective": {"sentence_task": "none"}}, {}], ["stages.0.objective", "terms"]),
        ([{"until": {"step": 5}, "objective": {"type": "causal_lm"}}, {}], ["stages.0.objective"]),
        ([{"until": {"step": 5}, "model": BERT}, {}], ["stages.0.model", "unknown key"]),
        ([{"until": {"step": 5}, "tokenizer": {}}, {}], ["stages.0.tokenizer", "unknown key"]),
        ([{"until": {"step": 5}, "data": {"weights": [1, 2]}}, {}], ["stages.0.data.weights", "1, got 2"]),
        (
            [{"until": {"step": 5}, "ramp": {"seed": {"stop": 3, "multiple_of": 1}}}, {}],
            ["stages.0.ramp.seed", "cannot have a ramp", "objective.mask_rate"],
        ),
        (
            [{"until": {"step": 5}, "ramp": {"global_batch_size": {"stop": 9.5, "multiple_of": 1}}}, {}],
            ["stages.0.ramp.global_batch_size", "whole numbers"],
        ),
        (
            [{"until": {"step": 5}, "ramp": {"objective.seq_len": {"start": 16, "stop": 256, "multiple_of": 16}}}, {}],
            ["stages.0.", "256", "max_positions"],
        ),
        (
            [{"until": {"step": 5}, "ramp": {"objective.mask_rate": {"stop": 0.5, "multiple_of": 1e-9}}}, {}],
            ["stages.0.ramp.objective.mask_rate", "values", "raise multiple_of"],
        ),
        (
            [{"until": {"step": 5}, "ramp": {"global_batch_size": {"start": 1, "stop": 9, "multiple_of": 8}}}, {}],
            ["stages.0.global_batch_size", "greater than 0, got 0"],
        ),
        ([{"ramp": {"global_batch_size": {"stop": 9, "multiple_of": 1}}}], ["stages.0.ramp", "set until"]),
    ],
)
def test_what_is_wrong_in_stages_is_told_in_one_report(stages: list[dict[str, Any]], expected: list[str]) -> None:
    told = report(stages)
    assert all(part in told for part in expected), told


def test_an_odd_batch_for_streams_in_both_directions_is_refused_inside_of_a_ramp_too() -> None:
    xlnet = {
        "model": {**BERT, "type": "xlnet"},
        "objective": {"type": "permutation_lm", "seq_len": 32, "reuse_len": 16},
    }
    del xlnet["model"]["max_positions"]
    xlnet["objective"] |= {"perm_size": 16, "num_predict": 4}
    for batch in ({"global_batch_size": 3}, {"ramp": {"global_batch_size": {"start": 2, "stop": 8, "multiple_of": 1}}}):
        told = report([{"until": {"step": 5}, **batch}, {}], **xlnet)
        assert "stages.0.global_batch_size" in told and "must be even" in told


PART = {"type": "masked_lm", "sentence_task": "none"}
MIX = {
    "type": "mixed",
    "seq_len": 128,
    "parts": [{"share": 0.5, "name": "masked", "objective": PART}, {"share": 0.5, "objective": {"type": "causal_lm"}}],
}


def test_a_stage_of_a_mix_changes_keys_of_its_parts() -> None:
    ramp = {"objective.parts.masked.mask_rate": {"start": 0.3, "stop": 0.15, "multiple_of": 0.05}}
    stages = [
        {"until": {"step": 10}, "objective": {"seq_len": 64, "parts": {"masked": {"mask_rate": 0.4}}}},
        {"until": {"step": 40}, "ramp": ramp},
        {},
    ]
    config = resolved_without_data(config_of(stages, objective=MIX))
    of_stages = RunStages.of(config).configs
    assert [[part.objective.seq_len for part in each.objective.parts] for each in of_stages][:2] == [
        [64] * 2,
        [128] * 2,
    ]
    assert [each.objective.parts[0].objective.mask_rate for each in of_stages] == [0.4, 0.3, 0.25, 0.2, 0.15, 0.15]
    longer = config.model_dump(mode="json") | {"stages": []}
    longer["objective"]["seq_len"] = 32  # as an override of a started run's config does
    parts = schema.validate(RunConfig, longer, "test").objective.parts
    assert [part.objective.seq_len for part in parts] == [32, 32]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ({"objective": {"parts": {"other": {}}}}, ["objective.parts.other", "the parts masked, causal_lm"]),
        ({"objective": {"parts": MIX["parts"]}}, ["objective", "parts must be keys by part"]),
        ({"objective": {"parts": {"masked": {"mask": 1}}}}, ["objective.parts.0.objective.mask", "unknown key"]),
        ({"objective": {"parts": {"masked": {"sentence_task": "sop"}}}}, ["objective", "changes the terms"]),
        ({"global_batch_size": 16}, ["global_batch_size", "each part of a mix keeps its streams, got 16"]),
        (
            {"ramp": {"objective.parts.other.mask_rate": {"stop": 0.5, "multiple_of": 0.1}}},
            ["objective.parts.other", "the parts masked, causal_lm"],
        ),
    ],
)
def test_what_a_stage_of_a_mix_cannot_change_is_refused(stage: dict[str, Any], expected: list[str]) -> None:
    told = report([{"until": {"step": 5}, **stage}, {}], objective=MIX)
    assert all(part in told for part in ("stages.0.", *expected)), told


def test_keys_of_parts_are_refused_where_there_are_none() -> None:
    told = report([{"until": {"step": 5}, "objective": {"parts": {"masked": {"mask_rate": 0.3}}}}, {}])
    assert "stages.0.objective.parts.masked" in told and "the objective has no parts" in told


def test_stages_and_passes_over_a_corpus_are_refused() -> None:
    train = [{"path": "a", "max_epochs": 2}, {"path": "b"}]
    told = report([{"until": {"step": 5}}, {}], data={"train": train})
    assert "stages" in told and "cannot be combined with max_epochs of a corpus; remove either" in told


def test_all_mistakes_come_in_one_report() -> None:
    told = report(
        [{"until": {"step": 9}, "objective": {"seq_len": 512}}, {"until": {"step": 5}, "data": {"weights": [1, 2]}}, {}]
    )
    assert "3 problems" in told and "stages.0." in told and "stages.1.until.step" in told and "stages.1.data" in told


def test_a_batch_below_the_ranks_in_any_stage_or_ramp_is_refused(tiny_dataset: Path) -> None:
    train = mixture_of(tiny_dataset / "train")
    ramp = {"global_batch_size": {"start": 2, "stop": 8, "multiple_of": 2}}
    for stage in ({"global_batch_size": 2}, {"ramp": ramp}):
        config = data_rules.resolve(config_of([{"until": {"step": 5}, **stage}, {}]), train)
        data_rules.validate_data(config, train, 2)
        with pytest.raises(ConfigError, match="at least the number of ranks in all stages, 3, got 2"):
            data_rules.validate_data(config, train, 3)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 9), st.integers(1, 300))
def test_a_ramp_is_the_line_rounded_to_multiples(start: int, stop: int, multiple: int, steps: int) -> None:
    values = ramp_values(RampConfig(stop=float(stop), multiple_of=float(multiple)), start=float(start), steps=steps)
    firsts = [at for at, _ in values]
    assert firsts == sorted(set(firsts)) and firsts[0] == 0 and firsts[-1] < steps
    for step in range(steps):
        value = [value for at, value in values if at <= step][-1]
        line = start + (stop - start) * step / steps
        assert value % multiple == 0 and abs(value - line) <= multiple / 2 + 1e-9


def test_a_ramp_begins_at_the_value_before_it() -> None:
    config = config_of(
        [
            {"until": {"step": 10}, "global_batch_size": 2},
            {"until": {"step": 16}, "ramp": {"global_batch_size": {"stop": 8, "multiple_of": 2}}},
            {"until": {"step": 20}, "ramp": {"objective.mask_rate": {"stop": 0.4, "multiple_of": 0.1}}},
            {},
        ]
    )
    found = values_of(config, 21)
    assert [batch for batch, _, _ in found] == [2] * 11 + [4] * 2 + [6] * 2 + [8] * 6
    assert [rate for *_, rate in found[16:]] == [0.2, 0.3, 0.3, 0.4, 0.2]


def test_tokens_and_fractions_are_solved_over_stages_of_different_size() -> None:
    short = {"objective": {"seq_len": 32}}
    config = config_of([{"until": {"tokens": 1000}, **short}, {}], max_steps=None, max_tokens=4001)
    resolved = resolved_without_data(config)
    stages = RunStages.of(resolved)
    assert stages.tokens(stages.firsts[1] - 1) < 1000 <= stages.tokens(stages.firsts[1])
    assert resolved.max_steps is not None
    assert stages.tokens(resolved.max_steps - 1) < 4001 <= stages.tokens(resolved.max_steps)
    half = resolved_without_data(
        config_of([{"until": {"fraction": 0.5}, **short}, {}], max_steps=None, max_tokens=10**6)
    )
    assert half.max_steps is not None and RunStages.of(half).firsts[1] == round(half.max_steps / 2)
    assert RunStages.of(half).tokens(half.max_steps - 1) < 10**6 <= RunStages.of(half).tokens(half.max_steps)


def test_of_a_short_trial_each_stage_has_a_step() -> None:
    stages = [{"until": {"fraction": 0.9}, "objective": {"seq_len": 32}}, {}]
    assert [RunStages.of(resolved_without_data(config_of(stages, max_steps=n))).firsts[1] for n in (2, 3, 9)] == [
        1,
        2,
        8,
    ]
    assert "has no steps" in report(stages, max_steps=1)


def test_fractions_stay_as_they_were_resolved_first(tiny_dataset: Path) -> None:
    train = mixture_of(tiny_dataset / "train")
    config = config_of([{"until": {"fraction": 0.9}, "objective": {"seq_len": 32}}, {}])
    begun = data_rules.resolve(config, train)
    assert begun.stages[0].until is not None and begun.stages[0].until.step == 90
    longer = data_rules.resolve(config.model_copy(update={"max_steps": 200}), train, begun=begun)
    assert longer.max_steps == 200 and longer.stages == begun.stages


def test_passes_over_the_data_are_solved_too(tiny_dataset: Path) -> None:
    train = mixture_of(tiny_dataset / "train")
    config = config_of([{"until": {"fraction": 0.5}, "global_batch_size": 32}, {}], max_steps=None, max_epochs=0.5)
    resolved = data_rules.resolve(config, train)
    assert resolved.max_steps is not None
    passes = data_rules.make_training_samples(resolved, train).passes(resolved.max_steps)
    assert passes == pytest.approx(0.5, abs=0.01)
