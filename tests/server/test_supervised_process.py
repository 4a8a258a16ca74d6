"""A program that ends by itself is started again; one that cannot run is given up."""

import os
import signal
import time
from pathlib import Path

import pytest

from server import supervised_process
from server.supervised_process import SupervisedProcess


def wait_for(file: Path, lines: int) -> list[str]:
    deadline = time.monotonic() + 60
    while not file.exists() or len(file.read_text().split()) < lines:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return file.read_text().split()


def test_one_that_ends_is_started_again_until_it_is_ended(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    script = f"echo $$ >> {starts}; exec sleep 60"
    process = SupervisedProcess(["sh", "-c", script], tmp_path / "out")
    process.keep()
    [first] = wait_for(starts, 1)
    os.kill(int(first), signal.SIGTERM)
    assert len(wait_for(starts, 2)) == 2
    assert process.runs
    process.end(signal.SIGTERM)
    process.wait()
    assert not process.runs
    assert len(starts.read_text().split()) == 2


def test_an_end_in_good_order_is_no_failure_however_often(tmp_path: Path) -> None:
    """The server ends the broker for every list of revoked certificates."""
    starts = tmp_path / "starts"
    process = SupervisedProcess(["sh", "-c", f"echo x >> {starts}"], tmp_path / "out")
    process.keep()
    wait_for(starts, 3 * supervised_process.FAILURES)
    process.end(signal.SIGTERM)
    process.wait()


def test_one_that_fails_again_and_again_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    starts, output = tmp_path / "starts", tmp_path / "out"
    process = SupervisedProcess(["sh", "-c", f"echo x >> {starts}; echo no such file; exit 3"], output)
    process.keep()
    deadline = time.monotonic() + 60
    while "is not started again" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(starts.read_text().split()) == supervised_process.FAILURES
    assert f"its output is in {output}" in caplog.text
    assert output.read_text().startswith("no such file")
    process.end(signal.SIGTERM)
    process.wait()


def test_one_that_does_not_want_to_end_is_ended_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised_process, "END_SECONDS", 0.1)
    ready = tmp_path / "ready"
    script = f"trap '' TERM; echo x > {ready}; while :; do sleep 0.1; done"
    process = SupervisedProcess(["sh", "-c", script], tmp_path / "out")
    wait_for(ready, 1)
    process.end(signal.SIGTERM)
    process.wait()
    assert not process.runs
