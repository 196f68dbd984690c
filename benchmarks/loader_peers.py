"""Peers of `loader.py`: the same tokens through other libraries' loaders, in batches of the same shape.

Runs in the peers' environment. The first line of output lists the loaders; each name on stdin starts one measurement.
"""

from __future__ import annotations

import io
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

FOLDER, SEQ_LEN, ROWS, SECONDS = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
WINDOW = SEQ_LEN + 1


def webdataset_documents() -> Callable[[], Iterator[torch.Tensor]]:
    """One .npy per document, decoded, concatenated and split into samples, as in its documentation."""
    import webdataset as wds

    tokens, ends = np.load(FOLDER / "tokens.npy"), np.load(FOLDER / "ends.npy")
    with tarfile.open(FOLDER / "documents.tar", "w") as tar:
        for number, (start, stop) in enumerate(zip([0, *(ends[:-1] + 1)], ends + 1, strict=True)):
            stream = io.BytesIO()
            np.save(stream, tokens[start:stop])
            info = tarfile.TarInfo(f"{number:08d}.npy")
            info.size = stream.tell()
            tar.addfile(info, io.BytesIO(stream.getvalue()))

    def batches() -> Iterator[torch.Tensor]:
        waiting, length = [], 0
        dataset = wds.WebDataset(str(FOLDER / "documents.tar"), shardshuffle=False, empty_check=False)
        for (document,) in dataset.decode().to_tuple("npy"):
            waiting.append(document)
            length += len(document)
            if length >= ROWS * WINDOW:
                joined = np.concatenate(waiting)
                yield torch.from_numpy(joined[: ROWS * WINDOW].reshape(ROWS, WINDOW).astype(np.int64))
                waiting = [joined[ROWS * WINDOW :]]
                length = len(waiting[0])

    return batches


def litdata_tokens() -> Callable[[], Iterator[torch.Tensor]]:
    """Its TokensLoader, which is made for this purpose."""
    import litdata

    litdata.optimize(
        fn=_whole, inputs=[str(FOLDER / "tokens.npy")], output_dir=str(FOLDER / "litdata"), num_workers=1,
        chunk_size=WINDOW * 2048, item_loader=litdata.TokensLoader(block_size=WINDOW),
    )  # fmt: skip

    def batches() -> Iterator[torch.Tensor]:
        loader = litdata.TokensLoader(block_size=WINDOW)
        dataset = litdata.StreamingDataset(str(FOLDER / "litdata"), item_loader=loader, shuffle=False, drop_last=True)
        for batch in litdata.StreamingDataLoader(dataset, batch_size=ROWS, num_workers=0):
            yield batch.to(torch.int64)

    return batches


def _whole(path: str) -> Iterator[torch.Tensor]:
    yield torch.from_numpy(np.load(path).astype(np.int32))


def mosaicml_streaming() -> Callable[[], Iterator[torch.Tensor]]:
    """One sequence per sample."""
    from streaming import MDSWriter, StreamingDataset

    tokens = np.load(FOLDER / "tokens.npy")
    with MDSWriter(out=str(FOLDER / "mds"), columns={"tokens": f"ndarray:{tokens.dtype.name}:{WINDOW}"}) as writer:
        for start in range(0, len(tokens) - WINDOW, WINDOW):
            writer.write({"tokens": tokens[start : start + WINDOW]})
    dataset = StreamingDataset(local=str(FOLDER / "mds"), shuffle=False, batch_size=ROWS)

    def batches() -> Iterator[torch.Tensor]:
        def collate(rows: list[dict[str, np.ndarray]]) -> torch.Tensor:
            return torch.from_numpy(np.stack([row["tokens"] for row in rows]).astype(np.int64))

        yield from torch.utils.data.DataLoader(dataset, batch_size=ROWS, num_workers=0, collate_fn=collate)

    return batches


def main() -> None:
    """Serve until stdin ends."""
    torch.set_num_threads(1)
    out, sys.stdout = sys.stdout, sys.stderr
    ways = {}
    for name, make in (
        ("webdataset", webdataset_documents),
        ("litdata", litdata_tokens),
        ("mosaicml-streaming", mosaicml_streaming),
    ):
        try:
            ways[name] = make()
        except Exception as error:  # not installed, or fails to import
            print(f"{name}: skipped ({error!r})", file=sys.stderr)
    print(",".join(ways), file=out, flush=True)
    for line in sys.stdin:
        started, tokens = time.process_time(), 0
        while time.process_time() - started < SECONDS:
            for batch in ways[line.strip()]():
                inputs, targets = batch[:, :-1].contiguous(), batch[:, 1:].flatten()
                tokens += inputs.numel()
                assert len(targets) == inputs.numel()
                if time.process_time() - started > SECONDS:
                    break
        print(tokens / (time.process_time() - started), file=out, flush=True)


if __name__ == "__main__":
    main()
