"""What many tests stand on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from built_datasets import VOCAB_SIZE, BuildSmall, build_dataset, write_jsonl
from corpus import make_documents
from fake_slurm import FakeSlurm
from slurm_cluster import SlurmCluster
from slurm_packages import why_no_slurm, why_not_isolated
from small_disk import mount_small_disk

from xlpretrain import distributed

# Threads of the ranks that tests start sleep while they wait: spinning, on a busy machine, they keep from running those
# that they wait for (a step of a tiny model took 2 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Triton's programs are interpreted: no GPU is needed. It must be known before Triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

# No test asserts a time.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# A script's job in the background ignores SIGINT, and so would the commands that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose tests start processes: they take longest, and so none is the last one's alone."""
    slow = {"commands", "subprocess", "torchrun"}
    items.sort(key=lambda item: slow.isdisjoint(vars(getattr(item, "module", item))))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here have a few hundred elements: on a busy machine a second thread costs a hundred times its use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """This process as a group of one."""
    distributed.init()
    yield
    distributed.shutdown()


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with train/, valid/ and tokenizer/ (300 pieces): more than 40 training blocks of 16,384 tokens.

    Shared by all tests: never change what is in it.
    """
    folder = tmp_path_factory.mktemp("tiny")
    corpus = write_jsonl(folder / "corpus.jsonl", make_documents(4800))
    return build_dataset(
        folder / "data",
        sources=[{"type": "jsonl", "path": str(corpus)}],
        tokenizer={"vocab_size": VOCAB_SIZE, "input_sentence_size": 5000, "character_coverage": 1.0},
        splits={"valid": 0.05},
        shard_bytes=1 << 20,
    )


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_dataset: Path) -> Path:
    """The tokenizer of `tiny_dataset`."""
    return tiny_dataset / "tokenizer" / "spiece.model"


@pytest.fixture
def build_small(tmp_path: Path, tiny_tokenizer: Path) -> BuildSmall:
    """Builds a dataset of given documents under tmp_path/data, in blocks of 256 tokens, with the tiny tokenizer."""

    def build_small(documents: list[str], *, out: str = "data", force: bool = False, **settings: Any) -> Path:
        corpus = write_jsonl(tmp_path / "corpus.jsonl", documents)
        defaults = {
            "sources": [{"type": "jsonl", "path": str(corpus)}],
            "tokenizer": {"path": str(tiny_tokenizer)},
            "splits": {"valid": 0.0},
            "block_tokens": 256,
        }
        return build_dataset(tmp_path / out, force=force, **{**defaults, **settings})

    return build_small


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 200 KiB."""
    with mount_small_disk(tmp_path / "disk", size="200k"):
        yield tmp_path / "disk"


def require_slurm(isolation: str = "none") -> None:
    """Skip the test, and say why, where there can be no Slurm cluster with nodes so isolated."""
    if reason := why_no_slurm() or why_not_isolated(isolation):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def _shared_cluster() -> Iterator[SlurmCluster]:
    require_slurm()
    with SlurmCluster(isolation="none" if why_not_isolated("uts") else "uts") as cluster:
        yield cluster


@pytest.fixture
def slurm_cluster(_shared_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """Three nodes of four processors; as new for every test. Nodes are machines of their own where that can be had."""
    yield _shared_cluster
    _shared_cluster.reset()


@pytest.fixture
def make_slurm_cluster() -> Iterator[Callable[..., SlurmCluster]]:
    """Boots further clusters, as `SlurmCluster` is told to; they end with the test."""
    with ExitStack() as stack:

        def boot(**settings: Any) -> SlurmCluster:
            require_slurm(settings.setdefault("isolation", "uts"))
            return stack.enter_context(SlurmCluster(**settings))

        yield boot


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """No command on the PATH, until the test says which there are."""
    return FakeSlurm(tmp_path, monkeypatch)
