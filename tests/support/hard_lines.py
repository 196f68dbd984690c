"""Deterministic lines of text on which tokenizers tend to disagree; equal in every version of Python.

Uses only the standard library: the script that made the fixtures of transformers 4 generates the same lines.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Sequence

NUM_LINES, SEED, LINES_AT_ONCE = 10_000, 4, 20

# ruff: noqa: RUF001, SIM905
_WORDS = (
    "the of and Hello World café déjà naïve Zürich ÅNGSTRÖM İstanbul straße STRASSE Ελλάδα ΌΣΟΣ привет Ёлка don't it's"
    " e-mail U.S.A. co-operate tokenizer pretraining well-known a I x"
).split()
_DECOMPOSED = ["cafe\u0301", "de\u0301ja\u0300", "Zu\u0308rich", "A\u030aNGSTRO\u0308M", "n\u0303", "o\u0302\u0323"]
_QUOTES = "`` '' \" ' ` ‘ ’ “ ” « » ``` '''".split()
_FULL_WIDTH = "Ｆｕｌｌ ｗｉｄｔｈ １２３， ！ （Ａ） \u3000 ｶﾞﾃｷ ① ½ ﬁ ² Ⅷ ㎏ … ™".split(" ")
_INVISIBLE = [*"\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u034f\ufe0f"]
_CJK = "语言模型 言語モデル 언어 \u1112\u1161\u11ab 中，文。 ประเทศ ภาษา العربية हिन्दी が か\u3099".split()
_EMOJI = "😀 👍🏽 👩\u200d👩\u200d👧 ☺️ 🇩🇪 1️⃣ ❤".split()
_SYMBOLS = (
    "<cls> <sep> <pad> <mask> <eod> <eop> <unk> <s> </s> [CLS] [SEP] [PAD] [MASK] [UNK] [cls] [sep] a<sep>b [SEP]x"
).split()
_CONTROL = ["\x00", "\x01", "\x07", "\x1b", "\x7f", "\x85", "\u2028", "\ufffd", "\ue000", "\r", "\x0b", "\x1c"]
_SPACES = [" ", "  ", "   ", "\t", "\n", " \t ", "\xa0", "\u2003", "\u3000", "▁", " ▁ ", "▁▁", "\r\n"]
_FIXED = "|| |\t|▁|Hello World|Café déjà|3.0,|9,9|1,000,000,|a  b| a |``a''|,,|5,\n".split("|")[1:]


def hard_lines(count: int, *, seed: int = 0) -> list[str]:
    """Case, accents in both forms, quotes, digits with commas, full-width and invisible characters, scripts, emoji,
    spelled-out special symbols, control characters, and all kinds of whitespace anywhere."""
    rng = random.Random(seed)
    pools = [_WORDS] * 8 + [_DECOMPOSED, _QUOTES, _FULL_WIDTH, _INVISIBLE, _CJK, _EMOJI, _SYMBOLS, _CONTROL]
    made = list(_FIXED[:count])
    while len(made) < count:
        parts = [_draw(rng, pools) for _ in range(rng.randint(1, 12))]
        text = parts[0]
        for part in parts[1:]:
            text += rng.choice([" "] * 8 + ["", "", rng.choice(_SPACES)]) + part
        if rng.random() < 0.15:
            text = rng.choice(_SPACES) + text
        made.append(text + rng.choice(_SPACES) if rng.random() < 0.15 else text)
    return made


def digests(found: Sequence[Sequence[int]]) -> str:
    """Digest of token ids in base64: 16 bits for every 20 lines, then the SHA-256 of all ids."""
    parts = [found[start : start + LINES_AT_ONCE] for start in range(0, len(found), LINES_AT_ONCE)]
    each = b"".join(hashlib.sha256(json.dumps(part).encode()).digest()[:2] for part in parts)
    return base64.b64encode(each + hashlib.sha256(json.dumps(found).encode()).digest()).decode()


def where_they_differ(one: str, other: str) -> list[int]:
    """First lines of the groups of 20 in which two digests differ."""
    a, b = base64.b64decode(one), base64.b64decode(other)
    return [i // 2 * LINES_AT_ONCE for i in range(0, len(a) - 32, 2) if a[i : i + 2] != b[i : i + 2]]


def _draw(rng: random.Random, pools: list[list[str]]) -> str:
    kind = rng.random()
    if kind < 0.15:
        return _number(rng)
    word = rng.choice(rng.choice(pools))
    if kind < 0.25:
        word = rng.choice((word.upper(), word.lower(), word.title()))
    if kind > 0.85:
        word += rng.choice([*".,;:!?-)(", chr(rng.randint(0x21, 0x17F)), chr(rng.randint(0x300, 0x340))])
    return word


def _number(rng: random.Random) -> str:
    digits = rng.choice(
        [str(rng.randint(0, 99)), f"{rng.randint(0, 10**7):,}", f"{rng.randint(0, 999) / 10},", "٣,", "९,"]
    )
    return rng.choice(("", "$", "(", "£")) + digits + rng.choice(("", ",", ",", ".", ",,", "%", ")"))
