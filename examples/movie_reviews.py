"""Make the data of docs/finetune.md: labelled sentences of film reviews, and text to pretrain on.

    python examples/movie_reviews.py        # makes reviews/

The texts are part of the source distribution of vaderSentiment (MIT licence; C.J. Hutto and E. Gilbert, ICWSM 2014),
which pip downloads from the package index (or pass --sdist FILE). A sentence is `pos` if its mean human rating is above
0, `neg` if below; about half of them are `pos`. The pretraining text is the training sentences without labels and the
other texts in the distribution (sentences of product reviews, editorials, tweets), without the held-out sentences.
"""

from __future__ import annotations

import argparse
import csv
import html
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
MOVIES, OTHERS = "movieReviewSnippets", ("amazonReviewSnippets", "nytEditorialSnippets", "tweets")


def main() -> None:
    """Write corpus.jsonl, train.csv, valid.csv and test.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdist", type=Path, help="vaderSentiment-*.tar.gz (default: download with pip)")
    parser.add_argument("--out", type=Path, default=Path("reviews"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = read_files(options.sdist or download(Path(folder)))
    labelled = sorted({(text, "pos" if rating > 0 else "neg") for text, rating in rated(files[MOVIES]) if rating})
    random.Random(0).shuffle(labelled)
    tenth = len(labelled) // 10
    splits = {"test": labelled[:tenth], "valid": labelled[tenth : 2 * tenth], "train": labelled[2 * tenth :]}
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        with (options.out / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    texts = [text for text, _ in splits["train"]]
    texts += [text for name in OTHERS for text, _ in rated(files[name])]
    with (options.out / "corpus.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    counts = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items())
    print(f"{options.out}: {counts}; {len(texts):,} sentences to pretrain on")


def download(folder: Path) -> Path:
    """Download the source distribution with pip."""
    pip = [sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps", "vaderSentiment==3.3.2"]
    subprocess.run([*pip, "--quiet", "--disable-pip-version-check", "-d", str(folder)], check=True)
    return next(folder.glob("vader*.tar.gz"))


def read_files(sdist: Path) -> dict[str, str]:
    """Rated texts by name, from an archive inside the archive."""
    with tarfile.open(sdist) as outer:
        name = next(name for name in outer.getnames() if name.endswith(INNER))
        member = outer.extractfile(name)
        assert member is not None
        with tarfile.open(fileobj=io.BytesIO(member.read())) as inner:
            found = {}
            for wanted in (MOVIES, *OTHERS):
                file = inner.extractfile(f"hutto_ICWSM_2014/{wanted}_GroundTruth.txt")
                assert file is not None
                found[wanted] = file.read().decode("utf-8", errors="replace")
    return found


def rated(content: str) -> list[tuple[str, float]]:
    """Parse the sentences of a file of `number, rating, sentence` lines."""
    rows = [line.split("\t", 2) for line in content.splitlines() if line.count("\t") >= 2]
    return [(" ".join(html.unescape(html.unescape(text)).split()), float(rating)) for _, rating, text in rows]


if __name__ == "__main__":
    main()
