"""What devices say of their images reaches the operator's list of devices, word for word and bounded."""

from dataclasses import replace
from pathlib import Path

import pytest

from protocol.messages import DeviceState, sign_message
from server.limits import LimitsPolicy, RateLimiter
from server.reception import Reception
from server.store import Store
from tests.builders import SEALING, Clock, private_key
from tests.server.databases import Database
from tests.server.federation import TOPICS

KEY = private_key(1)
ROLLED_BACK = "rolled back from 1.5.0 to 1.4.0: agent: graftwork-agent.service is failed, expected active"


def hear(store: Store, clock: Clock, state: DeviceState) -> None:
    """A signed state comes in from the broker."""
    reception = Reception(
        store,
        TOPICS,
        (SEALING,),
        clock,
        limiter=RateLimiter(LimitsPolicy()),
        maximum_update_bytes=4096,
        open_enrolment=False,
    )
    topic = TOPICS.up("pump-1", "state")
    incoming = reception.receive(topic, sign_message(state, KEY, topic))
    assert incoming is not None
    store.set_device_state("pump-1", incoming.message, clock())


def test_a_rollback_is_seen_with_its_reason(tmp_path: Path, database: Database) -> None:
    clock = Clock()
    store = Store(tmp_path, database(tmp_path))
    try:
        store.register_device("pump-1", KEY.public, clock())
        [row] = store.devices()
        assert (row["firmware"], row["firmware_update"]) == ("", "")
        hear(
            store, clock, DeviceState(True, 2, KEY.public.raw, firmware="1.4.0", firmware_update=ROLLED_BACK)
        )
        [row] = store.devices()
        assert (row["firmware"], row["firmware_update"]) == ("1.4.0", ROLLED_BACK)
        # a message of an earlier session, held back by the broker, does not bring the past back
        old = DeviceState(True, 1, KEY.public.raw, firmware="1.5.0", firmware_update="healthy 1.5.0")
        hear(store, clock, old)
        assert store.devices()[0]["firmware_update"] == ROLLED_BACK
    finally:
        store.close()


@pytest.mark.parametrize(("field", "length"), [("firmware", 65), ("firmware_update", 201)])
def test_longer_ones_are_no_message(field: str, length: int) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected at most {length - 1} characters"):
        DeviceState(True, 1, KEY.public.raw, **{field: "x" * length})


def test_a_last_will_does_not_take_back_what_was_said_since(tmp_path: Path, database: Database) -> None:
    """It was written when the session began, and the broker says it when the power has gone off."""
    store = Store(tmp_path, database(tmp_path))
    store.register_device("pump-1", KEY.public, 0.0)
    began = DeviceState(True, 7, KEY.public.raw, firmware="1.1.0", firmware_update="booted 1.1.0")
    store.set_device_state("pump-1", began, 1.0)
    store.set_device_state("pump-1", replace(began, release=3, firmware_update="healthy 1.1.0"), 2.0)
    store.set_device_state("pump-1", replace(began, online=False), 3.0)
    [row] = store.devices()
    assert (row["firmware_update"], row["release"]) == ("healthy 1.1.0", 3)
    assert (bool(row["online"]), row["last_seen"]) == (False, 3.0)
    store.close()
