"""A clock and an MQTT broker for tests, in memory: everything that may go wrong goes wrong as a test asks.

The broker keeps what MQTT promises for QoS 1 and persistent sessions: retained messages, queues for clients
that are away, wills, and the order of a topic's retained messages. All else it may break as a test asks:

* a message is lost. The loss of a retained one breaks the link, as on TCP, for nobody repeats it without a
  new connection; any other one is lost silently, which is worse than MQTT: resends must repair it.
* a message comes more than once, late, and after later ones.
* the broker restarts, with or without its memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from paho.mqtt.client import topic_matches_sub


class FakeClock:
    """Unix seconds that pass only when told to."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self._now = now

    def __call__(self) -> float:
        """Seconds now."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds


@dataclass(frozen=True)
class Disturbance:
    """What a broker and its network do wrong."""

    drop: float = 0.0
    """Share of messages that is lost on the way to the broker, and again on the way to each client."""
    duplicate: float = 0.0
    """Share that is delivered twice."""
    delay_seconds: float = 0.0
    """Longest delay; every message has its own, so they overtake one another."""


@dataclass(frozen=True)
class Delivery:
    """A message on its way to a client."""

    due: float
    sequence: int
    topic: str
    payload: bytes


@dataclass
class _Session:
    subscriptions: list[str]
    will: tuple[str, bytes]
    connected: bool = True
    queue: list[Delivery] = field(default_factory=list)


class FakeBroker:
    """An MQTT broker without network."""

    def __init__(self, clock: Callable[[], float], disturbance: Disturbance, seed: int) -> None:
        self.disturbance = disturbance
        self._clock = clock
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._retained: dict[str, bytes] = {}
        self._sessions: dict[str, _Session] = {}
        self._sequence = 0
        self.running = True
        """Whether clients can connect."""

    def connected(self, client: str) -> bool:
        """Whether a client's link is up."""
        return client in self._sessions and self._sessions[client].connected

    def connect(self, client: str, subscriptions: list[str], will: tuple[str, bytes]) -> None:
        """Take a client; its queue of before is delivered, then the retained messages."""
        session = self._sessions.setdefault(client, _Session(subscriptions, will))
        session.subscriptions, session.will, session.connected = subscriptions, will, True
        for topic, payload in list(self._retained.items()):
            self._deliver(client, session, topic, payload, retain=True)

    def listen_again(self, client: str) -> None:
        """Subscribe once more: the retained messages come again."""
        session = self._sessions.get(client)
        if session and session.connected:
            for topic, payload in list(self._retained.items()):
                self._deliver(client, session, topic, payload, retain=True)

    def disconnect(self, client: str) -> None:
        """Break a client's link: its will is published, its session stays."""
        session = self._sessions.get(client)
        if session and session.connected:
            session.connected = False
            self._route(*session.will, retain=True)

    def stop(self) -> None:
        """Go away; all links break without a will, and none comes back before `start`."""
        self.running = False
        for session in self._sessions.values():
            session.connected = False

    def start(self, *, forget: bool) -> None:
        """Come back.

        Args:
            forget: without all retained messages, sessions and queues.
        """
        self.running = True
        if forget:
            self._retained.clear()
            self._sessions.clear()

    def restart(self, *, forget: bool) -> None:
        """Stop and start again."""
        self.stop()
        self.start(forget=forget)

    def publish(self, client: str, topic: str, payload: bytes, *, retain: bool) -> bool:
        """Take a message. False: the client's link is down."""
        if not self.connected(client):
            return False
        if not self._lost():
            self._route(topic, payload, retain=retain)
        elif retain:
            self.disconnect(client)
        return True

    def next(self) -> tuple[str, Delivery] | None:
        """The first message that is due for a connected client; it stays until it is acknowledged."""
        due = [
            (delivery, client)
            for client, session in self._sessions.items()
            for delivery in session.queue
            if session.connected and delivery.due <= self._clock()
        ]
        if not due:
            return None
        delivery, client = min(due, key=lambda entry: (entry[0].due, entry[0].sequence))
        return client, delivery

    def acknowledge(self, client: str, delivery: Delivery) -> None:
        """Forget a delivery; without this it comes again."""
        session = self._sessions.get(client)
        if session and delivery in session.queue:
            session.queue.remove(delivery)

    def _lost(self) -> bool:
        return bool(self._random.random() < self.disturbance.drop)

    def _route(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if retain:
            self._retained[topic] = payload
        for client, session in list(self._sessions.items()):
            self._deliver(client, session, topic, payload, retain=retain)

    def _deliver(self, client: str, session: _Session, topic: str, payload: bytes, *, retain: bool) -> None:
        if not any(topic_matches_sub(pattern, topic) for pattern in session.subscriptions):
            return
        if self._lost():
            if retain:
                self.disconnect(client)  # it gets the message when it connects again
            return
        for _ in range(2 if self._random.random() < self.disturbance.duplicate else 1):
            due = self._clock() + self.disturbance.delay_seconds * float(self._random.random())
            if retain:
                due = max([due, *(other.due for other in session.queue if other.topic == topic)])
            self._sequence += 1
            session.queue.append(Delivery(due, self._sequence, topic, payload))
