"""The folder of runs as ranks of several nodes see it: exclusive creation, and names that stay hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher.doctor.disks.names import check_exclusive, check_visible
from launcher.doctor.disks.places import existing_folder, scratch
from launcher.doctor.disks.witness import QUESTIONS
from launcher.doctor.findings import Finding, failure
from launcher.doctor.request import Request
from xlpretrain import distributed

_MOST_NODES = 8


class RankWitness:
    """Another rank that answers questions about the folder: see `disks.witness`. For rank 0 only."""

    def __init__(self, rank: int, host: str):
        self.name = f"rank {rank} on {host}"
        self._rank = rank

    def ask(self, question: str, file: str) -> Callable[[], Any]:
        """Send a question to all ranks. The answer raises OSError if the rank cannot look."""
        distributed.broadcast_object((self._rank, question, file))

        def answer() -> Any:
            found = distributed.gather_objects(None)[self._rank]
            if isinstance(found, OSError):
                raise found
            return found

        return answer


def check(request: Request, hosts: Sequence[str]) -> list[Finding]:
    """Let rank 0 change files that a rank on each other node looks at (on one node: the last rank).

    Every rank must call it; findings on rank 0 only.
    """
    if distributed.world_size() == 1:
        return []
    if distributed.rank() > 0:
        _answer(Path(distributed.broadcast_object(None)))
        return []
    parent = existing_folder(request.runs_folder)
    try:
        with scratch(parent, request) as folder:
            distributed.broadcast_object(str(folder))
            findings = list(_look(parent, folder, hosts))
            distributed.broadcast_object(None)
    except OSError as error:
        distributed.broadcast_object(None)
        findings = [failure(f"{parent}: {error.strerror}", "use a folder on a disk that all nodes share (runs_dir)")]
    return findings


def _look(parent: Path, folder: Path, hosts: Sequence[str]) -> Iterator[Finding]:
    first_of = {host: hosts.index(host) for host in hosts if host != hosts[0]}
    ranks = list(first_of.values())[:_MOST_NODES] or [len(hosts) - 1]
    for rank in ranks:
        witness = RankWitness(rank, hosts[rank])
        if not witness.ask("exists", ".")():
            yield failure(
                f"{parent}: {witness.name} does not see a folder that {hosts[0]} made",
                "set runs_dir to a folder on a disk that all nodes share",
            )
            continue
        yield check_exclusive(str(parent), folder, witness, prefix=f"{rank}-")
        yield check_visible(str(parent), folder, witness, prefix=f"{rank}-")


def _answer(folder: Path) -> None:
    """Answer questions for this rank until there are no more."""
    while (asked := distributed.broadcast_object(None)) is not None:
        rank, question, file = asked
        answer: Any = None
        if rank == distributed.rank():
            try:
                answer = QUESTIONS[question](folder / file)
            except OSError as error:
                answer = error
        distributed.gather_objects(answer)
