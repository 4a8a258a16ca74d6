"""How a device speaks: under its name, with its key, on topics of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.keyring import Keyring
from protocol.messages import sign_message
from protocol.signing import PrivateKey
from protocol.topics import Topics

Publish = Callable[[str, bytes, bool], bool]
"""(topic, payload, retain) -> handed to the broker."""


@dataclass(frozen=True)
class Voice:
    """A device's way to the server."""

    device: str
    """Its name."""
    topics: Topics
    """Of the federation."""
    key: PrivateKey
    publish: Publish
    keyring: Keyring
    """Has the key that updates and reports are sealed to."""

    def topic(self, kind: str) -> str:
        """The device's topic for a kind of message."""
        return self.topics.up(self.device, kind)

    def say(self, kind: str, message: Any, *, retain: bool = False) -> None:
        """Sign a message and publish it."""
        self.publish(self.topic(kind), sign_message(message, self.key, self.topic(kind)), retain)

    def seal(self, kind: str, envelope: bytes, number: int) -> bool:
        """Publish a signed message so that only the server can read it; False: not now.

        Args:
            kind: "update" or "report".
            envelope: signed for the topic of its kind.
            number: of the round or release that it is about.
        """
        sealing_key, topic = self.keyring.sealing_key, self.topic(kind)
        if sealing_key is None:
            return False
        return self.publish(topic, sealing_key.seal(envelope, topic, number), False)
