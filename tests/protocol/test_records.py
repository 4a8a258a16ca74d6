"""Records from and to plain mappings: how each mistake is named, and what older readers skip."""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import cbor
from protocol.errors import SchemaError
from protocol.records import from_named, from_numbered, to_numbered


@dataclass(frozen=True)
class Wheel:
    size: int
    worn: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected a positive number, got {self.size}")


@dataclass(frozen=True)
class Cart:
    name: str
    wheels: tuple[Wheel, ...]
    load: float = 1.0
    tags: dict[str, float] = field(default_factory=dict)
    spare: Wheel | None = None
    serial: bytes | None = None


@dataclass(frozen=True)
class OldCart:
    name: str
    wheels: tuple[Wheel, ...]


def test_named_keys_with_defaults() -> None:
    cart = from_named(Cart, {"name": "a", "wheels": [{"size": 3}]})
    assert cart == Cart("a", (Wheel(3),), 1.0, {}, None, None)


def test_a_whole_number_stands_for_a_float() -> None:
    cart = from_named(Cart, {"name": "a", "wheels": [], "load": 2})
    assert cart.load == 2.0
    assert type(cart.load) is float


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"name": "a", "wheels": [], "weels": 1}, "weels: unknown key; expected one of load, name, serial"),
        ({"name": "a", "wheels": [{"size": 1, "sise": 2}]}, r"wheels\[0\].sise: unknown key"),
        ({"wheels": []}, "name: missing; expected text"),
        ({"name": "a"}, "wheels: missing; expected a list of Wheel"),
        ({"name": 1, "wheels": []}, "name: expected text, got int"),
        ({"name": "a", "wheels": {}}, "wheels: expected a list of Wheel, got dict"),
        ({"name": "a", "wheels": [{"size": 1}, 7]}, r"wheels\[1\]: expected Wheel, got int"),
        ({"name": "a", "wheels": [{"size": True}]}, r"wheels\[0\].size: expected an integer, got bool"),
        ({"name": "a", "wheels": [{"size": 1.0}]}, r"wheels\[0\].size: expected an integer, got float"),
        ({"name": "a", "wheels": [{"size": 0}]}, r"wheels\[0\]: size: expected a positive number, got 0"),
        ({"name": "a", "wheels": [], "load": "1"}, "load: expected a number, got str"),
        ({"name": "a", "wheels": [], "load": False}, "load: expected a number, got bool"),
        ({"name": "a", "wheels": [], "tags": [1]}, "tags: expected a table of a number, got list"),
        ({"name": "a", "wheels": [], "tags": {"b": "c"}}, "tags.b: expected a number, got str"),
        ({"name": "a", "wheels": [], "tags": {1: 1.0}}, "tags: expected text keys"),
        ({"name": "a", "wheels": [], "spare": {}}, "spare.size: missing; expected an integer"),
        ({"name": "a", "wheels": [], "serial": "00"}, "serial: expected bytes, got str"),
    ],
)
def test_a_mistake_is_named_by_path_and_expectation(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        from_named(Cart, mapping)


def test_a_path_stands_in_front() -> None:
    with pytest.raises(SchemaError, match=r"fleet\.cart\.name: expected text, got int"):
        from_named(Cart, {"name": 1, "wheels": []}, "fleet.cart")


def test_fields_are_numbered_in_their_order() -> None:
    cart = Cart("a", (Wheel(3, worn=True),), 0.5, {"k": 1.0}, Wheel(2), b"\x01")
    expected = {1: "a", 2: [{1: 3, 2: True}], 3: 0.5, 4: {"k": 1.0}, 5: {1: 2, 2: False}, 6: b"\x01"}
    assert to_numbered(cart) == expected


def test_nothing_is_written_for_none() -> None:
    assert set(to_numbered(Cart("a", ()))) == {1, 2, 3, 4}


def test_an_older_reader_skips_newer_fields() -> None:
    newer = to_numbered(Cart("a", (Wheel(3),), 0.5, {}, Wheel(2), b"x"))
    assert from_numbered(OldCart, newer) == OldCart("a", (Wheel(3),))


def test_a_newer_reader_fills_in_what_an_older_writer_lacks() -> None:
    assert from_numbered(Cart, to_numbered(OldCart("a", ()))) == Cart("a", ())


@pytest.mark.parametrize("number", [0, -1, 7, "1", True, 1.0, None, b"", (1,)])
def test_a_key_that_is_no_field_number_is_skipped(number: object) -> None:
    mapping = {2: [], number: 9} if number in (True, 1.0) else {1: "a", 2: [], number: 9}
    if number in (True, 1.0):  # equal to 1 as a key, but not an integer of CBOR
        with pytest.raises(SchemaError, match="name: missing"):
            from_numbered(Cart, mapping)
    else:
        assert from_numbered(Cart, mapping) == Cart("a", ())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "Cart: expected a map, got list"),
        (None, "Cart: expected a map, got NoneType"),
        ({}, "Cart.name: missing"),
        ({1: "a"}, "Cart.wheels: missing"),
        ({1: "a", 2: [{1: -1}]}, r"Cart.wheels\[0\]: size: expected a positive number"),
        ({1: "a", 2: [{}]}, r"Cart.wheels\[0\].size: missing"),
        ({1: b"a", 2: []}, "Cart.name: expected text, got bytes"),
    ],
)
def test_a_wrong_numbered_field_is_named(value: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        from_numbered(Cart, value)


wheels = st.builds(Wheel, st.integers(1, 2**63), st.booleans())
carts = st.builds(
    Cart,
    st.text(max_size=9),
    st.lists(wheels, max_size=3).map(tuple),
    st.floats(allow_nan=False),
    st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False), max_size=3),
    st.none() | wheels,
    st.none() | st.binary(max_size=9),
)


@given(carts)
def test_a_record_comes_back_from_the_wire(cart: Cart) -> None:
    assert from_numbered(Cart, cbor.decode(cbor.encode(to_numbered(cart)), limit=1 << 16)) == cart


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 7) | st.text(max_size=3), inner)
    ),
    max_leaves=12,
)


@given(anything)
def test_a_hostile_value_is_taken_or_refused(value: Any) -> None:
    with contextlib.suppress(SchemaError):
        assert isinstance(from_numbered(Cart, value), Cart)
