"""Detect secrets, which must not be written to configs, site profiles and copies of code. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

_NAME = re.compile(
    r"((^|[^a-z0-9])(key|pass|pat|jwt)|(api|access|auth|secret|private)[_-]?keys?"
    r"|token|secrets?|passw(or)?d|passphrase|credentials?)$",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)|(?<=\w\?)[^\s'\";,)]+")
"""User and password of a URL, and its query, which holds the signature of signed URLs."""
_FILE = re.compile(
    r"\.env(\..*)?|\.netrc|\.npmrc|\.pypirc|id_(rsa|dsa|ecdsa|ed25519).*|.*\.(pem|key|p12|pfx|keystore)"
    r"|\.?tokens(\.\w+)?",
    re.IGNORECASE,
)
_SUFFIXES = ("", ".txt", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg")
"""Suffixes of files that can be secrets by name; `token.py` is code."""
_MIN_LENGTH = 8
"""Minimum length of values to search for, in characters; shorter ones are common in other text."""


def is_secret_name(name: str) -> bool:
    """True for a config key or environment variable named like a secret, such as WANDB_API_KEY or db.password.

    Counts such as `max_tokens` are not secrets.
    """
    return _NAME.search(name) is not None


def is_secret_file(name: str) -> bool:
    """True for a file name (without folders) of a secret, such as .env, id_rsa or hf_token.txt."""
    path = PurePath(name)
    named = path.suffix.lower() in _SUFFIXES and is_secret_name(path.stem)
    return named or (path.suffix != ".py" and _FILE.fullmatch(name) is not None)


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """Values of the environment variables that hold secrets, except those too short to search for."""
    return [value for name, value in environment.items() if is_secret_name(name) and len(value) >= _MIN_LENGTH]


def without_credentials(text: str) -> str:
    """Replace user, password and query of URLs in a message by `***`."""
    return _IN_URL.sub("***", text)
