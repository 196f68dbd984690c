"""Messages that docs/troubleshooting.md and docs/slurm.md quote are those of the code."""

from __future__ import annotations

import re

import documentation
from repository import ROOT

OF_OTHERS = ("RuntimeError: ", "torch.OutOfMemoryError: ", "not UTF-8", "AuthenticationError")
"""Quotes that are, or begin with, messages of other programs, or whose text is put together at run time."""


def quoted_messages() -> list[str]:
    """The bold quotes at the beginnings of entries, and those in the first column of the table in slurm.md."""
    page, slurm = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("troubleshooting.md", "slurm.md"))
    entries = re.findall(r"^\*\*(.+?)\*\*", page, flags=re.MULTILINE | re.DOTALL)
    entries += re.findall(r"^\| ([^|]+)", slurm.partition("| message |")[2], flags=re.MULTILINE)
    quotes = [quote for entry in entries for quote in re.findall(r"(`+)(.+?)\1", entry, flags=re.DOTALL)]
    return [" ".join(text.split()) for _, text in quotes if len(text.split()) > 6]


def test_every_quoted_message_is_one_of_ours():
    """Values stand between the words of a message, so that three words in a row are looked for, anywhere in it."""
    code = " ".join(re.sub(r"\W+", " ", text) for text in documentation.texts_of_code())
    messages = [message for message in quoted_messages() if not any(text in message for text in OF_OTHERS)]
    assert len(messages) > 20
    for message in messages:
        words = re.sub(r"\W+", " ", message).split()
        runs = [" ".join(words[i : i + 3]) for i in range(len(words) - 2)]
        assert any(run in code for run in runs), message
