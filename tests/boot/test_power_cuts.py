"""The power is cut once at each kind of moment; fifty times in `python -m benchmarks.power_cuts`."""

from pathlib import Path

import pytest

from benchmarks.power_cuts import SHARE, measure, summary


@pytest.mark.timeout(3600)
def test_a_device_comes_up_again_as_itself(directory: Path) -> None:
    cuts = measure(directory, len(SHARE), 1, 1, print)
    figures = summary(cuts)
    assert figures["by_kind"] == dict.fromkeys(SHARE, 1)
    assert (figures["unbootable"], figures["identities_lost"], figures["false_success"]) == (0, 0, 0), cuts
