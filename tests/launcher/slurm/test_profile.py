"""Site profiles: valid ones, and errors reported before submission."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.slurm.profile import ClusterConfig, load_cluster
from xlpretrain.errors import ConfigError
from xlpretrain.schema import dump, validate


def profile(**data: object) -> ClusterConfig:
    return validate(ClusterConfig, data, "site.yaml")


def problems(**data: object) -> str:
    with pytest.raises(ConfigError) as error:
        profile(**data)
    return str(error.value)


def test_the_example_is_a_profile() -> None:
    assert load_cluster(Path("slurm/clusters/example.yaml"), nodes="2-4").max_nodes == 4


def test_all_mistakes_are_reported_at_once() -> None:
    said = problems(
        partitio="x", time=86400, gres="gpu:8", health_check={"timout_s": 1}, nodes="3-1", env={"HF_TOKEN": "secret-1"}
    )
    assert said.startswith("site.yaml: 3 problems")
    for part in ("did you mean partition?", "did you mean timeout_s?", 'quotes such as "24:00:00"'):
        assert part in said
    assert "secret-1" not in said


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"zzz": 1}, "expected one of partition, account"),
        ({"env": {"WANDB_API_KEY": "secret-1"}}, "looks like a secret; export it before running submit"),
        ({"env": {"A B": "1"}}, "not a valid name of an environment variable"),
        ({"sbatch": {"output": "x"}}, "logs are written to the run folder"),
        ({"sbatch": {"gpus-per-task": 1}}, "one process per GPU follows from tasks_per_node"),
        ({"sbatch": {"exclusive": False}}, "or true for an option without a value"),
        ({"sbatch": {"comment": "a\nb"}}, "must be one line"),
        ({"partition": "a\n#SBATCH --uid=0"}, "must be one line"),
        ({"gres": "gpu:8", "gpus_per_node": 8}, "set gres or gpus_per_node, not both"),
        ({"nodes": "0"}, "or MIN-MAX such as 1-3"),
        ({"nodes": "3-1"}, "or MIN-MAX such as 1-3"),
    ],
    ids=str,
)
def test_contradictions_are_refused(data: dict[str, object], message: str) -> None:
    said = problems(**data)
    assert message in said
    assert "secret-1" not in said


@pytest.mark.parametrize(
    ("gres", "number"),
    [("gpu", 1), ("gpu:2", 2), ("gpu:a100", 1), ("gpu:h100:8", 8), ("gpu:h100:8(S:0-1)", 8), ("shard:3", 0)],
)
def test_ranks_follow_from_gpus(gres: str, number: int) -> None:
    assert profile(gres=gres).num_gpus == number
    assert profile(gres=gres).num_tasks == (number or 1)


def test_a_profile_reads_back(tmp_path: Path) -> None:
    given = profile(nodes="1-2", sbatch={"exclusive": True}, env={"A": "x\n$(y)"}, setup=["module load cuda"])
    (tmp_path / "cluster.yaml").write_text(dump(given), encoding="utf-8")
    assert load_cluster(tmp_path / "cluster.yaml") == given
