import pytest

from launcher.units import format_bytes
from xlpretrain.tracking.console import format_duration


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (59.4, "59 s"), (300, "5 min"), (12000, "3 h 20 min"), (190000, "2 d 4 h")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


@pytest.mark.parametrize(
    ("num_bytes", "shown"), [(0, "0 B"), (999, "999 B"), (1200, "1.2 kB"), (3.4e10, "34 GB"), (5e12, "5e+03 GB")]
)
def test_sizes(num_bytes: float, shown: str) -> None:
    assert format_bytes(num_bytes) == shown
