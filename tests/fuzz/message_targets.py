"""Targets: CBOR, envelopes, every message, and the topic it came on."""

from collections.abc import Callable
from random import Random

import cbor2
import paho.mqtt.client as paho

from protocol import cbor
from protocol.errors import SchemaError
from protocol.messages import LIMITS, DeviceState, peek, sign_message, verify_message
from protocol.package import Manifest
from protocol.records import from_numbered, to_numbered
from protocol.signing import ENVELOPE_BYTES, PublicKey, sign, signed_payload, verify
from protocol.topics import UP, Topics, context
from runtime.link import BrokerConfig, Link, Received
from tests.builders import private_key, tiny_manifest, tiny_members
from tests.fuzz import mutations
from tests.fuzz.target import Case, Raw, Target
from tests.protocol.test_messages import EXAMPLES

LIMIT = 4096
"""Of a message here: the decoders' own limits are parameters, and a small one shows what exceeds it."""
MEMORY = cbor.LEAST_MEMORY // 2
"""Of which twice may be taken."""
KEY = private_key(1)
TOPICS = Topics("pumps")
TOPIC = TOPICS.up("pump-1", "state")
KINDS = (*LIMITS, Manifest)


def _cbor(data: bytes) -> Case:
    def decode(passed: Callable[[], None]) -> object:
        value = cbor.decode(data, limit=LIMIT)
        passed()
        return value

    return Case(decode, MEMORY)


def _cbor_seeds() -> list[bytes]:
    examples = [cbor.encode(to_numbered(example)) for example in EXAMPLES.values()]
    return [*examples, *(cbor2.dumps(value) for value in mutations.ODD)]


def _message(data: bytes) -> Case:
    """The first byte names the kind of message, the rest is what its sender signed."""
    kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    payload = data[1:]
    if kind is Manifest:
        return Case(_judged(lambda: from_numbered(Manifest, cbor.decode(payload, limit=LIMIT))), MEMORY)
    envelope = sign(payload, KEY, context(TOPIC))
    limit = min(LIMIT, LIMITS[kind])
    return Case(_judged(lambda: verify_message(kind, envelope, KEY.public, TOPIC, limit=limit)), MEMORY)


def _judged(decode: Callable[[], object]) -> Callable[[Callable[[], None]], object]:
    """A wrong field is found only behind size, signature and CBOR."""

    def run(passed: Callable[[], None]) -> object:
        try:
            return decode()
        except SchemaError:
            passed()
            raise

    return run


def _message_seeds() -> list[bytes]:
    records = [*((kind, EXAMPLES[kind]) for kind in LIMITS), (Manifest, tiny_manifest(tiny_members()))]
    return [bytes([KINDS.index(kind)]) + cbor.encode(to_numbered(record)) for kind, record in records]


def _mutate_message(data: bytes, random: Random, change: Raw) -> bytes:
    return data[:1] + mutations.cbor_item(data[1:], random, change)


def _envelope(data: bytes) -> Case:
    """A first greeting, as the server takes it: whose key is it, and is the message signed with it?"""

    def decode(passed: Callable[[], None]) -> object:
        signed_payload(data, limit=LIMIT)
        passed()
        key = PublicKey(peek(DeviceState, data).public_key)
        verify(data, key, context(TOPIC), limit=LIMIT)
        return verify_message(DeviceState, data, key, TOPIC)

    return Case(decode, MEMORY)


def _envelope_seeds() -> list[bytes]:
    greeting = DeviceState(online=True, session=5, public_key=KEY.public.raw)
    others = [sign(bytes(size), KEY, context(TOPIC)) for size in (0, 1, 23, 24, 255, 256, 4000)]
    return [sign_message(greeting, KEY, TOPIC), *others]


def _mutate_envelope(data: bytes, random: Random, change: Raw) -> bytes:
    return mutations.envelope(data, random, change, KEY, context(TOPIC))


def _topic(data: bytes) -> Case:
    """A topic as the broker sends it, through the link to the server."""
    message = paho.MQTTMessage(topic=data)
    message.payload = b""

    def decode(passed: Callable[[], None]) -> object:
        _LINK._on_message(_LINK._client, None, message)
        if _LINK.events.empty():
            return None
        event = _LINK.events.get_nowait()
        assert isinstance(event, Received)
        passed()
        return TOPICS.parse_enrolment(event.topic) or TOPICS.parse_up(event.topic)

    return Case(decode, MEMORY)


_LINK = Link(BrokerConfig(), "fuzz", [])


def _topic_seeds() -> list[bytes]:
    topics = [TOPICS.up("pump-1", kind) for kind in UP]
    topics += [TOPICS.enroll("nonce", kind) for kind in ("request", "response")]
    return [topic.encode() for topic in [*topics, TOPICS.server_state(), TOPICS.all("round"), "a/" * 200]]


TARGETS = (
    Target("cbor", _cbor, _cbor_seeds, mutations.cbor_item, LIMIT + 8, "well-formed and bounded CBOR"),
    Target("messages", _message, _message_seeds, _mutate_message, LIMIT, "signature and CBOR"),
    Target(
        "envelope",
        _envelope,
        _envelope_seeds,
        _mutate_envelope,
        LIMIT + ENVELOPE_BYTES + 8,
        "form of the envelope",
    ),
    Target("topic", _topic, _topic_seeds, lambda data, _, change: change(data), LIMIT, "UTF-8"),
)
