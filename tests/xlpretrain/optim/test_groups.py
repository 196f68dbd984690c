"""Parameter groups: which pattern applies, what a group's members share, and what is refused.

Modules: groups.py, base.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from two_rules import TwoRules

from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.optim import AdamWConfig
from xlpretrain.optim.groups import GroupConfig, layer_factors, pattern_problems, summarize_groups

SHAPES = {
    "backbone.embedding.tokens.weight": (7, 3),
    "backbone.content_bias": (3,),
    "backbone.layers.0.attention.query.weight": (3, 3),
    "backbone.layers.0.norm.bias": (3,),
    "backbone.layers.1.attention.query.weight": (3, 3),
    "backbone.layers.1.norm.bias": (3,),
    "head.output.weight": (2, 3),
}
NAMES = list(SHAPES)


def parameters() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}


def adamw(*groups: dict[str, object], **keys: object) -> AdamWConfig:
    return schema.validate(AdamWConfig, {"lr": 0.1, "weight_decay": 0.5, "groups": list(groups), **keys}, "test")


def outline(config: AdamWConfig) -> list[tuple[list[str], float, float]]:
    return [(g["names"], g["lr_factor"], g["weight_decay"]) for g in config.parameter_groups(parameters())]


def test_without_groups_matrices_decay_and_vectors_do_not():
    matrices = [name for name, shape in SHAPES.items() if len(shape) == 2]
    vectors = [name for name, shape in SHAPES.items() if len(shape) == 1]
    assert outline(adamw()) == [(matrices, 1.0, 0.5), (vectors, 1.0, 0.0)]


def test_the_first_pattern_that_matches_applies_and_the_rest_comes_last():
    found = outline(
        adamw(
            {"match": "*.query.weight", "lr_factor": 3.0},
            {"match": "backbone.layers.*", "weight_decay": 0.1},
            {"match": "backbone.embed[dt]ing.*", "weight_decay": 0.0},
        )
    )
    assert found == [
        (["backbone.layers.0.attention.query.weight", "backbone.layers.1.attention.query.weight"], 3.0, 0.5),
        (["backbone.layers.0.norm.bias", "backbone.layers.1.norm.bias"], 1.0, 0.0),
        (["backbone.embedding.tokens.weight"], 1.0, 0.0),
        (["head.output.weight"], 1.0, 0.5),
        (["backbone.content_bias"], 1.0, 0.0),
    ]


def test_no_group_holds_parameters_with_different_state():
    groups = TwoRules(groups=(GroupConfig(match="backbone.*"),)).parameter_groups(parameters())
    keys = [{TwoRules().state_keys(name, SHAPES[name]) for name in group["names"]} for group in groups]
    assert keys == [{group["state_keys"]} for group in groups]
    assert sum(len(group["names"]) for group in groups) == len(NAMES)


def test_each_layer_below_the_head_has_its_factor_on_top_of_its_groups():
    assert layer_factors(NAMES, 0.5) == {
        "backbone.embedding.tokens.weight": 0.125,
        "backbone.content_bias": 1.0,
        "backbone.layers.0.attention.query.weight": 0.25,
        "backbone.layers.0.norm.bias": 0.25,
        "backbone.layers.1.attention.query.weight": 0.5,
        "backbone.layers.1.norm.bias": 0.5,
        "head.output.weight": 1.0,
    }
    found = outline(adamw({"match": "*.layers.*", "lr_factor": 2.0}, layer_decay=0.5))
    factors = {name: factor for names, factor, _ in found for name in names}
    assert factors["backbone.layers.0.norm.bias"] == 0.5 and factors["backbone.layers.1.norm.bias"] == 1.0
    assert factors["backbone.embedding.tokens.weight"] == 0.125


def test_frozen_parameters_are_in_no_group_and_layers_keep_their_factors():
    frozen = ["*.embedding.*", "*.layers.1.*"]
    found = outline(adamw(layer_decay=0.5, frozen=frozen))
    assert found == [
        (["backbone.layers.0.attention.query.weight"], 0.25, 0.5),
        (["head.output.weight"], 1.0, 0.5),
        (["backbone.content_bias"], 1.0, 0.0),
        (["backbone.layers.0.norm.bias"], 0.25, 0.0),
    ]
    named = parameters()
    assert list(adamw(frozen=frozen).freeze(named)) == [NAMES[0], NAMES[4], NAMES[5]]
    assert [name for name, parameter in named.items() if parameter.requires_grad] == [*NAMES[1:4], NAMES[6]]


@pytest.mark.parametrize(
    ("frozen", "problem"),
    [
        (["backbone.*", "zzz"], r"frozen.1 +'zzz' matches no parameter; this model has backbone.embedding"),
        (["*"], r"frozen +matches every parameter \(\*\), so nothing is left to train"),
        (
            ["*.layers.*"],
            r"groups.0.match +every parameter that '\*.query.weight' matches is frozen \(.*remove the group",
        ),
    ],
)
def test_frozen_patterns_that_leave_nothing_to_do_are_refused(frozen: list[str], problem: str):
    with pytest.raises(ConfigError, match=problem):
        adamw(
            {"match": "*.query.weight"} if "*.layers.*" in frozen else {"match": "*"}, frozen=frozen
        ).parameter_groups(parameters())


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        (["embedding.*"], "'embedding.*' matches no parameter; close names: backbone.embedding.tokens.weight"),
        (["*.qwery.weight"], "close names: head.output.weight, backbone.layers.1.attention.query.weight"),
        (["zzz"], "'zzz' matches no parameter; this model has backbone.embedding.tokens.weight, backbone.content_bias"),
        (["BACKBONE.*"], "'BACKBONE.*' matches no parameter"),
        (
            ["backbone.*", "*.content_bias"],
            "is in an earlier group (backbone.content_bias: 'backbone.*'); put the",
        ),
    ],
)
def test_a_pattern_that_applies_to_nothing_is_an_error_with_close_names(patterns: list[str], problem: str):
    ((path, what),) = pattern_problems([GroupConfig(match=pattern) for pattern in patterns], NAMES)
    assert path == f"groups.{len(patterns) - 1}.match" and problem in what
    with pytest.raises(ConfigError, match=rf"optimizer: 1 problem\n +{path} "):
        adamw(*({"match": pattern} for pattern in patterns)).parameter_groups(parameters())


def test_layer_decay_of_a_model_without_layers_is_refused():
    weight = {"backbone.mix.weight": nn.Parameter(torch.ones(2, 2))}
    with pytest.raises(ConfigError, match=r"layer_decay +this model has no parameters named layers\.N"):
        adamw(layer_decay=0.9).parameter_groups(weight)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"groups": [{"match": "x", "lr_factor": -1.0}]}, "groups.0.lr_factor"),
        (
            {"groups": [{"match": "x", "weigth_decay": 0.0}]},
            "groups.0.weigth_decay  unknown key; did you mean",
        ),
        ({"groups": [{"lr_factor": 1.0}]}, "groups.0.match  required"),
        ({"layer_decay": 1.5}, "layer_decay"),
    ],
)
def test_impossible_groups_are_refused_by_their_place(wrong: dict[str, object], key: str):
    with pytest.raises(ConfigError, match=key):
        schema.validate(AdamWConfig, wrong, "test")


def test_summaries_say_what_each_group_has():
    named = parameters()
    optimizer = adamw({"match": "head.*", "lr_factor": 0.25}).build(named)
    keys = dict.fromkeys(named, ("exp_avg", "exp_avg_sq"))
    names = {parameter: name for name, parameter in named.items()}
    assert [str(group) for group in summarize_groups(optimizer, names, keys)] == [
        "head.*: 1 tensor, 6 parameters, learning rate x 0.25, weight decay 0.5, state exp_avg, exp_avg_sq",
        "(others): 3 tensors, 39 parameters, learning rate x 1, weight decay 0.5, state exp_avg, exp_avg_sq",
        "(others): 3 tensors, 9 parameters, learning rate x 1, weight decay 0, state exp_avg, exp_avg_sq",
    ]
    optimizer.param_groups.pop()
    with pytest.raises(ConfigError, match=r"no group holds backbone\.content_bias"):
        summarize_groups(optimizer, names, keys)
