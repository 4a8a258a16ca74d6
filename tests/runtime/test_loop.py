"""The main loop on a link that comes and goes: what the program is told, and what the log says of it."""

import logging
import threading

import pytest

from runtime.broker import BrokerConfig
from runtime.link import Connected, Disconnected, Event, Link, Received
from runtime.loop import serve

ABSENT, REFUSED = "no broker at 127.0.0.1:1", "refused: Not authorized"


class Scripted(Link):
    """A link without a broker, on which a script of events happens."""

    def __init__(self, script: list[Event]) -> None:
        super().__init__(BrokerConfig(), "scripted", [])
        for event in script:
            self.events.put(event)
        self.acknowledged: list[str] = []

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def acknowledge(self, message: Received) -> None:
        self.acknowledged.append(message.topic)


class Recorder:
    """A program that notes what it is told, and stops the loop at the end of the script."""

    def __init__(self, link: Scripted) -> None:
        self.stopping = threading.Event()
        self.told: list[str] = []
        self._link = link

    def connected(self) -> None:
        self.told.append("connected")

    def disconnected(self) -> None:
        self.told.append("disconnected")

    def handle(self, topic: str, _payload: bytes) -> None:
        assert topic not in self._link.acknowledged  # only after its effect is on disk
        self.told.append(topic)

    def tick(self) -> float | None:
        if self._link.events.empty():
            self.stopping.set()
        return 0.0

    finished = False

    def will(self) -> tuple[str, bytes]:
        return "will", b"gone"


def serve_script(script: list[Event]) -> tuple[list[str], list[str]]:
    link = Scripted(script)
    program = Recorder(link)
    serve(program, link, program.stopping, tick_seconds=0.01)
    return program.told, link.acknowledged


def test_the_program_is_told_of_every_change_in_order() -> None:
    message = Received("a/b", b"", 1, 1, 1)
    told, acknowledged = serve_script([Disconnected(ABSENT), Connected("5"), message, Disconnected("lost")])
    assert told == ["disconnected", "connected", "a/b", "disconnected"]
    assert acknowledged == ["a/b"]


def test_a_broker_that_is_away_for_days_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    script = [
        *[Disconnected(ABSENT)] * 3_000,
        *[Disconnected(REFUSED)] * 2,  # something else: worth a line
        Connected("5"),
        *[Disconnected(ABSENT)] * 3,  # away again: worth a line
    ]
    told, _ = serve_script(script)
    assert told.count("disconnected") == 3_005
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"disconnected: {reason}" for reason in (ABSENT, REFUSED, ABSENT)]
