"""Site profiles: what to request from a Slurm cluster and how to start ranks there. Torch-free."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from xlpretrain import schema
from xlpretrain.file_system.credentials import is_secret_name
from xlpretrain.schema import Problem, Section

ONE_LINERS = ("partition", "account", "qos", "constraint", "gres", "gpus_per_node", "cpus_per_task", "mem", "time")
"""Keys passed to sbatch unchanged."""
_OWN_KEYS = {
    **{name.replace("_", "-"): f"use the key {name}" for name in (*ONE_LINERS, "nodes")},
    "ntasks-per-node": "use the key tasks_per_node",
    "signal": "use the key signal_before_end_s",
    "array": "use --sweep, and the key array_parallelism",
    **dict.fromkeys(("output", "error", "open-mode"), "logs are written to the run folder"),
    **dict.fromkeys(("job-name", "chdir", "wrap", "input"), "xlpretrain sets it"),
    **dict.fromkeys(("requeue", "no-requeue"), "xlpretrain sets it; max_requeues may be 0"),
    **dict.fromkeys(("export", "export-file"), "the whole environment is passed; add variables with the key env"),
    **dict.fromkeys(("ntasks", "gpus", "gpus-per-task"), "one process per GPU follows from tasks_per_node"),
    **dict.fromkeys(("parsable", "wait", "test-only", "quiet"), "xlpretrain parses sbatch's output"),
}  # fmt: skip
_OPTION = re.compile(r"[a-z][a-z0-9]+(-[a-z0-9]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NODES = re.compile(r"([1-9]\d*)(?:-([1-9]\d*))?")


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_time(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError('must be text in quotes such as "24:00:00" (without them, YAML reads a number)')
    return value


def _as_option(value: Any) -> Any:
    if isinstance(value, bool):
        if not value:
            raise ValueError("must be text, or true for an option without a value")
        return ""
    return _as_text(value)


Text = Annotated[str, BeforeValidator(_as_text)]


class HealthCheckConfig(Section):
    """Health check of every node before ranks start."""

    enabled: bool = True
    """Check the nodes: every GPU (its number, errors that nvidia-smi reports, memory in use, a product with a known
    result), run folder writable, an all-reduce over all nodes."""
    timeout_s: int = Field(300, gt=0)
    """Seconds allowed for the check; a node that has not answered by then fails it."""


class ClusterConfig(Section):
    """Resources to request from a cluster, and how to start ranks on them."""

    partition: str | None = None
    """Partition (default: the site's)."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Required node features."""
    gres: str | None = None
    """GPUs per node as generic resources, such as gpu:h100:8. Set this or gpus_per_node."""
    gpus_per_node: int | None = Field(None, ge=1)
    """GPUs per node."""
    nodes: Text = "1"
    """Number of nodes, or MIN-MAX for as many as are free. Overridden by --nodes."""
    spare_nodes: int = Field(0, ge=0)
    """Extra nodes to request, as replacements for nodes that fail the health check."""
    tasks_per_node: int | None = Field(None, ge=1)
    """Ranks per node (default: one per GPU, or one)."""
    cpus_per_task: int | None = Field(None, ge=1)
    """CPU cores per rank (default: the site's)."""
    mem: Text | None = None
    """Memory per node, such as 200G; 0: all of it."""
    time: Annotated[str | None, BeforeValidator(_as_time)] = None
    """Time limit of one job, such as "24:00:00". A run continues through as many jobs as it needs."""
    setup: tuple[str, ...] = ()
    """Shell commands that run first in the job, in the folder of the submission, such as module load."""
    env: dict[str, Text] = Field(default_factory=dict)
    """Environment variables, such as NCCL's. No secrets: your own environment is passed to the job anyway."""
    python: str = Field(default_factory=lambda: sys.executable)
    """Python on the nodes (default: the one that runs submit)."""
    container: tuple[str, ...] = ()
    """Arguments of srun that run ranks in a container, such as --container-image=..."""
    container_python: str = "python"
    """Python interpreter in the container."""
    sbatch: dict[str, Annotated[str, BeforeValidator(_as_option)]] = Field(default_factory=dict)
    """Other long options of sbatch by name, such as mail-user; true for an option without a value."""
    srun: tuple[str, ...] = ()
    """Further arguments of srun when it starts the ranks."""
    launch: Literal["direct", "torchrun"] = "direct"
    """direct: srun starts every rank. torchrun: srun starts one torchrun per node."""
    signal_before_end_s: int = Field(120, ge=1, le=65535)
    """Seconds before the time limit at which a run saves and requeues itself."""
    max_requeues: int = Field(200, ge=0)
    """Maximum number of requeues of a run, for any reason."""
    health_check: HealthCheckConfig = HealthCheckConfig()
    array_parallelism: int = Field(256, ge=1)
    """Maximum number of runs of a sweep at once."""

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys."""
        if self.gres is not None and self.gpus_per_node is not None:
            yield "gres", "set gres or gpus_per_node, not both"
        asked = _NODES.fullmatch(self.nodes)
        if not asked or int(asked[2] or asked[1]) < int(asked[1]):
            yield "nodes", f"must be a number such as 2, or MIN-MAX such as 1-3, got {self.nodes!r}"
        for name, value in self.env.items():
            if not _VARIABLE.fullmatch(name):
                yield f"env.{name}", "not a valid name of an environment variable"
            if is_secret_name(name):
                yield (
                    f"env.{name}",
                    "looks like a secret; export it before running submit: your environment is passed on, not saved",
                )
            if "\0" in value:
                yield f"env.{name}", "must not contain a zero byte"
        for name in self.sbatch:
            if name in _OWN_KEYS:
                yield f"sbatch.{name}", f"cannot be set here: {_OWN_KEYS[name]}"
            elif not _OPTION.fullmatch(name):
                yield f"sbatch.{name}", "expected the name of a long option of sbatch, such as mail-user"
        texts = {name: str(getattr(self, name)) for name in ONE_LINERS}
        texts |= {f"sbatch.{name}": value for name, value in self.sbatch.items()}
        yield from ((name, "must be one line") for name, text in texts.items() if "\n" in text)

    @property
    def min_nodes(self) -> int:
        """Minimum number of nodes to start on."""
        return int(self.nodes.partition("-")[0])

    @property
    def max_nodes(self) -> int:
        """Maximum number of nodes that ranks run on."""
        return int(self.nodes.rpartition("-")[2])

    @property
    def num_gpus(self) -> int:
        """GPUs per node; 0 if there are none."""
        if self.gpus_per_node is not None:
            return self.gpus_per_node
        asked = re.fullmatch(r"gpu(?::[^:,()]+)??(?::(\d+))?(?:\(.*\))?", (self.gres or "").partition(",")[0])
        return int(asked[1] or 1) if asked else 0

    @property
    def num_tasks(self) -> int:
        """Ranks per node."""
        return self.tasks_per_node or self.num_gpus or 1


def load_cluster(path: Path, *, nodes: str | None = None) -> ClusterConfig:
    """Read a site profile. Raises a `ConfigError` that lists every mistake.

    nodes: number or range of nodes, in place of the profile's.
    """
    # A key whose value is only comments keeps its default.
    data = {key: value for key, value in schema.read_yaml(path).items() if value is not None}
    return schema.validate(ClusterConfig, {**data, "nodes": nodes} if nodes else data, str(path))
