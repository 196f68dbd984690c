"""A small source distribution with documentation, as examples/documentation_tasks.py reads it."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

from corpus import make_sentence

_NAMES = {"class": ["Field", "~app.forms.Form"], "func": ["render()"], "setting": ["DEBUG"], "mod": ["app.views"]}


def make_sdist(path: Path, *, num_files: int = 40) -> Path:
    """Write the archive. Each file has paragraphs of two sentences, most of which name something."""
    rng = random.Random(0)
    with tarfile.open(path, "w:gz") as archive:
        for number in range(num_files):
            paragraphs = [" ".join(_sentence(rng) for _ in range(2)) for _ in range(6)]
            content = "\n\n".join(["=====\nTitle\n=====", *paragraphs]).encode()
            member = tarfile.TarInfo(f"Django-1.0/docs/topics/page{number}.txt")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _sentence(rng: random.Random) -> str:
    role = rng.choice(list(_NAMES))
    words = [word for _ in range(3) for word in make_sentence(rng).lower().rstrip(".?!").split()[:3]]
    return f"The {' '.join(words[:5])} of :{role}:`{rng.choice(_NAMES[role])}` {' '.join(words[5:])} so."
