"""The demo as a person runs it: one command, one line of JSON, nothing left behind."""

import importlib.util
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.plant import PATIENCE_SECONDS, needs_mosquitto, processes_of, until

pytestmark = [pytest.mark.system, needs_mosquitto]
KEYS = [
    "devices",
    "rounds",
    "accuracy_backbone",
    "accuracy_local",
    "accuracy_fleet",
    "accuracy_release",
    "devices_worse",
    "bytes_up_per_update",
    "bits_per_parameter",
    "body_bits_per_parameter",
    "seconds",
    "release_sha256",
]


def command(directory: Path, rounds: int, *extra: str) -> list[str]:
    return [
        *(sys.executable, "-m", "simulation", "demo", "--rounds", str(rounds)),
        *("--directory", str(directory), *extra),
    ]


def demo(directory: Path, *extra: str) -> dict[str, Any]:
    result = subprocess.run(command(directory, 10, *extra), check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    [line] = result.stdout.splitlines()
    assert processes_of(str(directory)) == []
    summary: dict[str, Any] = json.loads(line)
    return summary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def first(folder: Path) -> dict[str, Any]:
    return demo(folder)


def test_the_last_line_and_the_files(folder: Path, first: dict[str, Any]) -> None:
    assert list(first) == KEYS
    assert (first["devices"], first["rounds"]) == (8, 10)
    assert first["bits_per_parameter"] <= 1.6
    assert first["accuracy_fleet"] > first["accuracy_backbone"]
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert {key: report[key] for key in KEYS} == first
    assert report["simulated_data"] is True
    assert len(report["per_device"]) == 8
    picture = (folder / "report.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture[12:16] == b"IHDR"


def test_the_same_seed_gives_the_same_release(tmp_path: Path, first: dict[str, Any]) -> None:
    again = demo(tmp_path)
    assert again["release_sha256"] == first["release_sha256"]


def test_the_broker_without_installation_gives_the_same_release(
    tmp_path: Path, first: dict[str, Any]
) -> None:
    if importlib.util.find_spec("amqtt") is None:
        pytest.skip("amqtt is not installed")
    again = demo(tmp_path, "--broker", "amqtt")
    assert again["release_sha256"] == first["release_sha256"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C, and so would all that is started from here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_nothing_running(tmp_path: Path) -> None:
    log = tmp_path / "demo.log"
    directory = tmp_path / "run"
    with log.open("wb") as out, subprocess.Popen(command(directory, 1000), stderr=out) as process:
        # A test that fails must not wait for a thousand rounds.
        watchdog = threading.Timer(2 * PATIENCE_SECONDS, process.kill)
        watchdog.start()
        try:
            until(lambda: "round 1:" in log.read_text("utf-8"), "round 1")
            assert len(processes_of(str(directory))) > 9  # the demo itself, broker, server, 8 agents
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) == 130
        finally:
            watchdog.cancel()
            process.send_signal(signal.SIGINT)
    assert processes_of(str(directory)) == []
