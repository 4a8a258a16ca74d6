"""Ending the broker by its pid file: the right process and no other, whatever the file says."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from server import broker_restart
from server.broker_restart import PID_FILE, alone, find, restart
from server.errors import ServerError
from tests.server.running_broker import running_broker


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "broker"
    directory.mkdir()
    return directory


def test_a_broker_that_runs_is_ended(directory: Path) -> None:
    with running_broker(directory) as broker:
        found = find(directory)
        assert found is not None
        assert found.number == broker.pid
        reaper = threading.Thread(target=broker.wait)  # as whatever supervises it does
        reaper.start()
        assert restart(directory)
        reaper.join()
        assert broker.returncode == 0
    assert find(directory) is None
    assert not restart(directory)


def test_one_that_has_ended_but_was_not_waited_for_is_gone(directory: Path) -> None:
    with running_broker(directory) as broker:
        pid = broker.pid
        assert restart(directory)
        (directory / PID_FILE).write_text(f"{pid}", "ascii")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert find(directory) is None


def test_one_that_does_not_end_is_an_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_restart, "END_SECONDS", 0.1)
    with running_broker(directory, deaf=True) as broker:
        with pytest.raises(ServerError, match="did not end within"):
            restart(directory)
        assert broker.poll() is None


def test_a_number_that_another_program_has_by_now_ends_nothing(directory: Path) -> None:
    """The pid file is of before a power cut."""
    with running_broker(directory, "gardener") as other:
        assert find(directory) is None
        assert not restart(directory)
        assert other.poll() is None


@pytest.mark.parametrize(
    "content", [None, b"", b"nonsense", b"0", b"-1", b"1", b"9" * 30, b"1.5", b"4194304999", b"\xff"]
)
def test_a_pid_file_that_names_no_process_ends_nothing(
    directory: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a signal ever sent to a group of processes, or to all."""
    told: list[int] = []
    monkeypatch.setattr(os, "kill", lambda number, _signal: told.append(number))
    if content is not None:
        (directory / PID_FILE).write_bytes(content)
    assert not restart(directory)
    assert told == []


def test_one_that_ends_by_itself_meanwhile_is_gone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_number: int, _signal: signal.Signals) -> None:
        raise ProcessLookupError

    with running_broker(directory), monkeypatch.context() as patch:
        patch.setattr(os, "kill", gone)
        assert restart(directory)


def test_only_one_process_at_a_time_and_a_killed_one_holds_up_none(directory: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from server.broker_restart import alone\n"
        "with alone(pathlib.Path(sys.argv[1])) as is_alone:\n"
        "    print(is_alone, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        with alone(directory) as is_alone:
            assert not is_alone
        other.kill()
    with alone(directory) as is_alone:
        assert is_alone


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match=r"nowhere.*run `graftwork-server broker-config`"),
        alone(tmp_path / "nowhere"),
    ):
        pass
