"""What the device hears: each kind on its topic alone, by the server alone, and nothing old."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.keyring import Keyring
from agent.listening import Listener
from agent.store import Store
from protocol.artifacts import Artifact
from protocol.charter import TrainingPolicy
from protocol.identity import CertificateResponse, Trust
from protocol.messages import Announcement, Chunk, Receipt, Release, Round, sign_message
from protocol.topics import ALL, DOWN, Topics
from tests.builders import SEALING, Clock, private_key, trust

TOPICS = Topics("pumps")
SERVER = private_key(100)
EXAMPLES: dict[str, Any] = {
    TOPICS.all("announcement"): Announcement(
        2, "tiny", Artifact(bytes(32), 5, 8, (bytes(32),)), TrainingPolicy()
    ),
    TOPICS.all("release"): Release(4, bytes(32), b"", bytes(32), b""),
    TOPICS.all("round"): Round(3, bytes(32), bytes(32), ("pump-1",), 0.0),
    TOPICS.down("pump-1", "receipt"): Receipt(bytes(32), 3, "counted"),
    TOPICS.down("pump-1", "chunk"): Chunk(bytes(32), 0, b"data"),
    TOPICS.down("pump-1", "certificate"): CertificateResponse("refused", bytes(32), reason="no"),
}
by_topic = pytest.mark.parametrize("topic", EXAMPLES)


@pytest.fixture
def listener() -> Iterator[Listener]:
    store, clock = Store(":memory:"), Clock()
    keyring = Keyring(store, "pumps", clock, server_key=SERVER.public.raw.hex())
    yield Listener("pump-1", TOPICS, keyring)
    store.close()


def signed(topic: str, key: int = 100) -> bytes:
    return sign_message(EXAMPLES[topic], private_key(key), topic)


@by_topic
def test_what_the_server_signed_is_heard(listener: Listener, topic: str) -> None:
    assert listener.hear(topic, signed(topic)) == EXAMPLES[topic]
    assert listener.hear(topic, signed(topic)) == EXAMPLES[topic]  # as often as it comes


@by_topic
def test_what_another_signed_or_what_was_moved_is_dropped(
    listener: Listener, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert listener.hear(topic, signed(topic, key=66)) is None
    elsewhere = topic.replace("pumps", "fans").replace("pump-1", "pump-2")
    assert listener.hear(topic, sign_message(EXAMPLES[topic], SERVER, elsewhere)) is None
    assert caplog.text.count(f"dropped a message on {topic}") == 2


@by_topic
def test_a_message_of_another_kind_is_dropped(listener: Listener, topic: str) -> None:
    for other, message in EXAMPLES.items():
        heard = listener.hear(topic, sign_message(message, SERVER, topic))
        assert heard is None or other == topic or type(heard) is type(EXAMPLES[topic])


@by_topic
def test_a_retained_message_that_was_cleared_is_nothing(
    listener: Listener, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert listener.hear(topic, b"") is None
    assert caplog.text == ""


@pytest.mark.parametrize(
    "topic",
    [
        TOPICS.down("pump-2", "receipt"),
        TOPICS.up("pump-1", "update"),
        TOPICS.server_state(),
        TOPICS.all("trust"),
        Topics("fans").all("release"),
        "",
    ],
)
def test_topics_of_others_are_not_listened_to(listener: Listener, topic: str) -> None:
    assert listener.hear(topic, sign_message(Receipt(bytes(32), 3, "counted"), SERVER, topic)) is None


def test_an_older_release_is_dropped(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    topic = TOPICS.all("release")
    assert listener.hear(topic, signed(topic)) is not None
    old = sign_message(Release(3, bytes(32), b"", bytes(32), b""), SERVER, topic)
    assert listener.hear(topic, old) is None
    assert "release 3 is older than 4" in caplog.text


def test_a_forged_release_of_the_future_does_not_make_the_true_ones_old(listener: Listener) -> None:
    topic = TOPICS.all("release")
    forged = sign_message(Release(1 << 30, bytes(32), b"", bytes(32), b""), private_key(66), topic)
    assert listener.hear(topic, forged) is None
    assert listener.hear(topic, signed(topic)) is not None


def test_it_subscribes_to_all_that_is_said_to_it(listener: Listener) -> None:
    assert listener.subscriptions == [
        *(TOPICS.down("pump-1", kind) for kind in DOWN),
        *(TOPICS.all(kind) for kind in ALL),
    ]
    assert {*EXAMPLES, listener.trust_topic} == set(listener.subscriptions)


def test_the_servers_word_on_its_keys_is_heard_once(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    topic = listener.trust_topic
    word = sign_message(trust(), SERVER, topic)
    assert listener.hear_trust(word)
    assert not listener.hear_trust(word)
    assert not listener.hear_trust(b"")
    assert caplog.text == ""
    for wrong in (sign_message(trust(), private_key(66), topic), b"\xff", word[:-1]):
        assert not listener.hear_trust(wrong)
    old = Trust((), SEALING.public.raw, 0.0, 1.0)
    assert not listener.hear_trust(sign_message(old, SERVER, topic))
    assert caplog.text.count("dropped a message on") == 4


@given(st.sampled_from([*EXAMPLES, TOPICS.all("trust")]), st.binary(max_size=100))
def test_hostile_bytes_are_dropped(topic: str, data: bytes) -> None:
    store = Store(":memory:")
    keyring = Keyring(store, "pumps", Clock(), server_key=SERVER.public.raw.hex())
    listener = Listener("pump-1", TOPICS, keyring)
    assert listener.hear(topic, data) is None
    assert not listener.hear_trust(data)
    store.close()
