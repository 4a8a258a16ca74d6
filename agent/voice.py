"""How a device speaks: under its name, with its key, on topics of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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

    def topic(self, kind: str) -> str:
        """The device's topic for a kind of message."""
        return self.topics.up(self.device, kind)

    def say(self, kind: str, message: Any, *, retain: bool = False) -> None:
        """Sign a message and publish it."""
        self.publish(self.topic(kind), sign_message(message, self.key, self.topic(kind)), retain)
