"""A real coordinator with devices that are nothing but a key: messages in, publications out."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol import entropy_coding
from protocol.charter import TrainingPolicy
from protocol.errors import ProtocolError
from protocol.messages import (
    BASE_BYTES,
    Announcement,
    DeviceState,
    Receipt,
    Release,
    Report,
    Round,
    Update,
    peek,
    sign_message,
    verify_message,
)
from protocol.quantisation import dither_seed, quantise
from protocol.topics import Topics
from server.config import ServerConfig
from server.coordinator import Coordinator
from server.enrolment import Issuer
from server.round import RoundPolicy
from server.rules.policy import AggregationPolicy
from server.store import Store
from tests.builders import PARAMETERS, SEALING, SEGMENTS, Clock, Wire, private_key, server_keys, tiny_package
from tests.server.databases import Database, sqlite

SERVER_KEY = private_key(100)
TOPICS = Topics("pumps")
MANY = tuple(f"pump-{number}" for number in range(1, 10))
NAMES = MANY[:3]
KEYS = {name: private_key(index + 1) for index, name in enumerate(MANY)}
PARTS = [slice(0, SEGMENTS[0].size), slice(SEGMENTS[0].size, PARAMETERS)]


class Federation:
    """A coordinator on a folder; `restart` kills it and starts another one on the same folder."""

    def __init__(
        self,
        directory: Path,
        *,
        database: Database = sqlite,
        enrolment: str = "closed",
        round_policy: RoundPolicy | None = None,
        names: tuple[str, ...] = NAMES,
        aggregation: AggregationPolicy | None = None,
        issuer: Issuer | None = None,
    ) -> None:
        self.names = names
        self.issuer = issuer
        self.config = ServerConfig(
            "pumps",
            str(directory),
            enrolment=enrolment,
            database=database(directory),
            round=round_policy or RoundPolicy(minimum_devices=2, deadline_seconds=100.0),
            training=TrainingPolicy(),
            aggregation=aggregation or AggregationPolicy(),
        )
        self.clock, self.wire = Clock(), Wire()
        self.start()

    def start(self) -> None:
        self.store = Store(Path(self.config.data_directory), self.config.database)
        self.coordinator = Coordinator(
            self.config, self.store, server_keys(SERVER_KEY), self.wire, self.clock, issuer=self.issuer
        )
        self.coordinator.connected()

    def restart(self) -> None:
        """As after a kill: nothing but the folder survives."""
        self.close()
        self.wire.published.clear()
        self.start()

    def close(self) -> None:
        self.store.close()

    def push(self, initial: float = 0.0, filler: int = 0) -> bytes:
        data = tiny_package((initial,) * PARAMETERS, filler=filler)
        adapter = np.full(PARAMETERS, initial, np.float32)
        self.store.add_package(data, hashlib.sha256(data).digest(), "tiny 1", adapter, self.clock())
        return data

    def register(self) -> None:
        for name in self.names:
            self.store.register_device(name, KEYS[name].public, self.clock())

    def say(self, name: str, **changes: Any) -> None:
        """Send a device's state: online, with labels, holding the newest release."""
        newest = self.store.newest_release()
        state = DeviceState(
            True, 1, KEYS[name].public.raw, release=newest.number if newest else -1, labelled_windows=9
        )
        topic = TOPICS.up(name, "state")
        self.coordinator.handle(topic, sign_message(replace(state, **changes), KEYS[name], topic))

    def open_round(self) -> Round:
        """Bring all devices online and let a round open."""
        self.open_round_if_due()
        return self.newest(Round, "round")

    def open_round_if_due(self) -> None:
        """Bring all devices online, and let the server look whether it is time."""
        for name in self.names:
            self.say(name)
        self.coordinator.tick()

    def newest(self, kind: type, topic: str) -> Any:
        return self.everything(kind, topic)[-1]

    def everything(self, kind: type, topic: str) -> list[Any]:
        name = TOPICS.all(topic)
        found = [payload for known, payload, _ in self.wire.published if known == name]
        return [verify_message(kind, payload, SERVER_KEY.public, name) for payload in found]

    def announcement(self) -> Announcement:
        return self.newest(Announcement, "announcement")

    def release(self) -> Release:
        return self.newest(Release, "release")

    def receipts(self, name: str) -> list[Receipt]:
        """Receipts of a device since the last look."""
        topic = TOPICS.down(name, "receipt")
        return [
            verify_message(Receipt, payload, SERVER_KEY.public, topic) for payload in self.wire.take(topic)
        ]

    def deliver(self, name: str, envelope: bytes) -> list[Receipt]:
        self.hand(TOPICS.up(name, "update"), envelope)
        return self.receipts(name)

    def hand(self, topic: str, envelope: bytes) -> None:
        """Bring a signed update or report, sealed as an honest device does."""
        try:
            message: Any = peek(Update if topic.endswith("/update") else Report, envelope)
            number = message.round if isinstance(message, Update) else message.release
        except ProtocolError:
            number = 0
        self.coordinator.handle(topic, SEALING.public.seal(envelope, topic, number))

    def refusals(self) -> list[str]:
        return [row["reason"] for row in self.store.refusals()]


def update_of(name: str, current: Round, level: float | NDArray[np.float32] = 0.5, **changes: Any) -> bytes:
    """The signed update of a device that learned `level` in every parameter, or a vector."""
    seed = dither_seed("pumps", name, current.number, current.base)
    quantised = quantise(np.full(PARAMETERS, level, np.float32), PARTS, seed, 2.0)
    body = entropy_coding.encode(quantised.symbols)
    update = replace(
        Update(current.number, current.base[:BASE_BYTES], 10, quantised.steps, body, 0.5, 0.25), **changes
    )
    return sign_message(update, KEYS[name], TOPICS.up(name, "update"))
