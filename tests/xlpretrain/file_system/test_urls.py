from pathlib import Path

import fsspec
import pytest

from xlpretrain.errors import DataError
from xlpretrain.file_system.urls import is_url, open_file_system


def test_a_url_is_told_from_a_path():
    assert is_url("s3://bucket/train") and not is_url("data/train") and not is_url(Path("s3:/bucket"))


def test_the_file_system_of_a_url_reads_its_path_and_an_unknown_kind_is_named():
    fsspec.filesystem("memory").pipe("/urls/one.txt", b"one")
    file_system, path = open_file_system("memory://urls/one.txt")
    assert file_system.cat_file(path) == b"one"
    with pytest.raises(DataError, match=r"nosuch://x: cannot be opened: .*pip install"):
        open_file_system("nosuch://x")
