"""A device's life: it joins, is updated, gets a broken version and goes back, all as the server hears it."""

from pathlib import Path

import pytest
from rich.console import Console

from simulation import firmware_demo
from simulation.firmware_demo import BETTER, BROKEN, GOOD


@pytest.mark.timeout(3600)
def test_joined_updated_broken_and_back(directory: Path) -> None:
    figures = firmware_demo.run(directory, Console())
    assert figures["joined"]
    assert figures["rounds"] >= 1
    reported = figures["reported"]
    assert reported[0] == f"runs {GOOD}"
    assert f"healthy {BETTER}" in reported
    assert not [word for word in reported if word == f"healthy {BROKEN}"]
    assert figures["firmware"] == BETTER
    assert figures["update"].startswith(f"rolled back from {BROKEN} to {BETTER}: agent: ")
    # Nothing is called healthy before it was installed and booted.
    assert reported.index(f"healthy {BETTER}") == min(
        n for n, word in enumerate(reported) if word.startswith("healthy")
    )
