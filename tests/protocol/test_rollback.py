"""The order to go back: good for one step, signed by those who may, and nothing else."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import cbor, records
from protocol.errors import EncodingError, ProtocolError, SchemaError, SignatureError
from protocol.rollback import CONTEXT, MAX_BYTES, Rollback, read_rollback, sign_rollback
from protocol.signing import sign
from protocol.topics import Topics, context
from tests.builders import PUBLISHER, private_key

OLD, NEW = b"o" * 32, b"n" * 32
ORDER = Rollback("tiny", 5, 3, OLD, 1000.0)
KEYS = [private_key(9).public, PUBLISHER.public]


def allowed(order: Rollback = ORDER, **changes: object) -> bool:
    arguments = {"name": "tiny", "held": 5, "wanted": 3, "sha256": OLD, "now": 999.0, **changes}
    return order.allows(**arguments)  # type: ignore[arg-type]


def test_an_order_is_good_for_its_step() -> None:
    assert allowed()
    assert allowed(held=4)  # a device that is not at the newest goes back, too


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"wanted": 2},
        {"wanted": 4},
        {"sha256": NEW},
        {"held": 3},
        {"held": 2},
        {"held": -1},
        {"held": 6},
        {"now": 1000.5},
    ],
    ids=lambda changes: ", ".join(f"{name} {value!r}"[:20] for name, value in changes.items()),
)
def test_an_order_is_good_for_no_other_step(changes: dict[str, object]) -> None:
    assert not allowed(**changes)


def test_an_order_without_an_end_is_good_for_ever() -> None:
    assert allowed(replace(ORDER, expires=0.0), now=1e12)


def test_a_replay_after_the_device_went_on_changes_nothing() -> None:
    """It went back from 5 to 3 and on to 6; the same order, sent again, is for another step."""
    assert not allowed(held=6)


@given(held=st.integers(-1, 12), wanted=st.integers(-1, 12))
def test_no_order_lets_a_device_go_anywhere_but_back_to_the_one_version(held: int, wanted: int) -> None:
    assert allowed(held=held, wanted=wanted) == (wanted == 3 and 3 < held <= 5)


def test_any_publisher_may_order() -> None:
    for key in (private_key(9), PUBLISHER):
        assert read_rollback(sign_rollback(ORDER, key), KEYS) == ORDER


def test_nobody_else_may_order() -> None:
    for keys in (KEYS, []):
        with pytest.raises(SignatureError, match="not signed by a publisher that is known here"):
            read_rollback(sign_rollback(ORDER, private_key(66)), keys)


def test_what_a_publisher_signed_for_another_purpose_is_no_order() -> None:
    payload = cbor.encode(records.to_numbered(ORDER))
    for purpose in (context(Topics("pumps").all("announcement")), b"graftwork/1/package", b""):
        assert purpose != CONTEXT
        with pytest.raises(SignatureError):
            read_rollback(sign(payload, PUBLISHER, purpose), KEYS)


def test_no_flipped_byte_is_believed() -> None:
    order = sign_rollback(ORDER, PUBLISHER)
    for position in range(len(order)):
        damaged = bytearray(order)
        damaged[position] ^= 0x41
        with pytest.raises(ProtocolError):
            read_rollback(bytes(damaged), KEYS)


@pytest.mark.parametrize(
    "changes",
    [
        {"from_version": 0, "to_version": 0},
        {"to_version": 5},
        {"to_version": 6},
        {"to_version": -1},
        {"from_version": (1 << 40) + 1},
        {"to_sha256": b"short"},
        {"expires": -1.0},
        {"expires": float("nan")},
        {"expires": 2e12},
    ],
)
def test_an_order_that_makes_no_sense_cannot_be_built_nor_received(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(ORDER, **changes)  # type: ignore[arg-type]
    numbers = {"name": 1, "from_version": 2, "to_version": 3, "to_sha256": 4, "expires": 5}
    payload = records.to_numbered(ORDER) | {numbers[name]: value for name, value in changes.items()}
    with pytest.raises(SchemaError):
        read_rollback(sign(cbor.encode(payload), PUBLISHER, CONTEXT), KEYS)


def test_an_order_is_small() -> None:
    with pytest.raises(EncodingError, match="expected at most"):
        read_rollback(sign_rollback(replace(ORDER, name="x" * MAX_BYTES), PUBLISHER), KEYS)
    with pytest.raises(EncodingError):
        read_rollback(bytes(1 << 20), KEYS)


@given(st.binary(max_size=200))
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_rollback(data, KEYS)
    with contextlib.suppress(ProtocolError):
        read_rollback(sign(data, PUBLISHER, CONTEXT), KEYS)
