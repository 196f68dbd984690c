"""Deterministic text that resembles English."""

from __future__ import annotations

import random

ONSETS = ["b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "st", "t", "th", "tr", "w"]
RIMES = ["a", "e", "i", "o", "u", "an", "en", "in", "on", "er", "ing", "ight", "ation", "ed"]
WORDS = [
    "".join(random.Random(n).choice(ONSETS) + random.Random(n + 7 * k).choice(RIMES) for k in range(1 + n % 3))
    for n in range(1500)
]


def make_sentence(rng: random.Random) -> str:
    """Sample words by Zipf's law, so that some sequences are more likely than others."""
    words = [WORDS[min(int(rng.paretovariate(0.7)), len(WORDS)) - 1] for _ in range(rng.randint(3, 14))]
    return " ".join(words).capitalize() + rng.choice("...?!")


def make_documents(count: int, *, seed: int = 0) -> list[str]:
    """Documents of one to six paragraphs of one to eight sentences."""
    rng = random.Random(seed)
    return [
        "\n\n".join(" ".join(make_sentence(rng) for _ in range(rng.randint(1, 8))) for _ in range(rng.randint(1, 6)))
        for _ in range(count)
    ]
