"""Configs side by side."""

from xlpretrain.evaluation.report_page.comparison import compare, flatten


def test_differing_keys_come_first_and_missing_ones_apart():
    found = compare(
        [
            {"name": "a", "lr": 0.1, "steps": 5, "old": 1, "model": {"type": "bert", "size": 8}},
            {"name": "b", "lr": 0.2, "steps": 5, "model": {"type": "bert", "size": 16}},
        ]
    )
    assert [(row.key, row.values) for row in found.differing] == [("lr", ("0.1", "0.2")), ("model.size", ("8", "16"))]
    assert [(row.key, row.values) for row in found.partial] == [("old", ("1", None))]
    assert [row.key for row in found.common] == ["steps", "model.type"]


def test_a_run_without_a_config_differs_in_nothing():
    found = compare([{"lr": 0.1}, {}])
    assert not found.differing
    assert not found.partial
    assert [row.key for row in found.common] == ["lr"]


def test_items_of_lists_are_named_by_type_or_number():
    config = {
        "trackers": [{"type": "wandb", "mode": "auto"}, {"type": "tensorboard"}],
        "train": [{"path": "x"}, {"path": "y"}],
        "betas": [0.9, 0.95],
        "empty": {},
    }
    assert dict(flatten(config)) == {
        "trackers.wandb.type": "wandb",
        "trackers.wandb.mode": "auto",
        "trackers.tensorboard.type": "tensorboard",
        "train.0.path": "x",
        "train.1.path": "y",
        "betas": "[0.9, 0.95]",
        "empty": "{}",
    }
