"""Lines of text that are difficult for tokenizers."""

from __future__ import annotations

import random
import unicodedata

from corpus import make_sentence

MARKS = [chr(code) for code in range(0x300, 0x346)]


LETTERS = [chr(code) for code in range(0x20, 0x250)]


FIXED = [
    "",
    " ",
    "\t \n",
    "\x00",
    "a\x00b",
    "\x85",
    "▁a ▁ b▁",
    "<cls> <sep>a<mask> <pad> <unk> <eod> [CLS]",
    "\ufff0\ufff1\ufff2\U000f0000\ue000",
    "1️⃣ 👍🏽 👩‍👩‍👧 ☺️ 🇩🇪",
    "语言模型 言語モデル ｶﾞﾃｷ 언어 \u1112\u1161\u11ab\uac00\u11a8",
    "ﬁ ½ ① \uff41\u0301 Ǆ\u0301 e\u0301\u0323 İ I\u0307 ß ẞ \u0345 \u03b1\u0345",
    "\r\na\rb\u2028c\u200bd\u200de\ufefff\u00adg\x7f\x01",
]


def lines(count: int, seed: int = 0) -> list[str]:
    """Make sentences with accents (composed and not), digits, punctuation, emoji, CJK and control characters."""
    rng = random.Random(seed)
    exotic = [*LETTERS, *MARKS, *"\t\x01\x7f\u200b\u200d😀👍🏽語가각한ｶﾞ①½…—", *map(chr, range(0x400, 0x450))]
    assigned = [c for c in map(chr, range(1, 0x20000)) if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
    made = list(FIXED)
    while len(made) < count:
        text = list(make_sentence(rng))
        for pool, times in ((exotic, rng.randint(0, 12)), (assigned, rng.randint(0, 3))):
            for _ in range(times):
                text.insert(rng.randint(0, len(text)), rng.choice(pool))
        line = "".join(text) if rng.random() > 0.02 else " " * rng.randint(0, 3)
        made.append(unicodedata.normalize("NFD", line) if rng.random() < 0.2 else line)
    return made
