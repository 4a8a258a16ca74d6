"""Roots of trust: who signs for a federation, and every way to make one that nobody signed."""

import contextlib
import json
import logging
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from protocol.errors import TrustError
from protocol.signing import PrivateKey
from protocol.trust import (
    FEDERATION_FIELD,
    MAX_ROOT_BYTES,
    check_fresh,
    first_root,
    newest_root,
    next_root,
    version_of,
)
from tests.builders import PUBLISHER, private_key
from tests.roots import EXPIRES, HOLDERS, NEXT_SERVER, SERVER, changed, root

ONE, TWO, THREE = HOLDERS
STRANGER = private_key(66)
FIRST = root()


def test_a_root_says_who_signs_for_the_federation() -> None:
    found = first_root(root(publishers=[PUBLISHER.public]))
    assert (found.version, found.federation, found.expires) == (1, "pumps", EXPIRES)
    assert (found.server_keys, found.publishers) == ((SERVER.public,), (PUBLISHER.public,))


def test_without_publishers_whatever_the_server_announces_is_taken() -> None:
    assert first_root(FIRST).publishers == ()


@pytest.mark.parametrize(
    ("signers", "count"),
    [([], 0), ([ONE], 1), ([ONE, ONE], 1), ([ONE, STRANGER], 1), ([ONE, SERVER], 1)],
    ids=["none", "one", "one twice", "a stranger", "the server"],
)
def test_too_few_signatures_make_no_root(signers: list[PrivateKey], count: int) -> None:
    with pytest.raises(TrustError, match=f"has {count} of the 2 signatures that it needs by its own"):
        first_root(root(signers=signers))
    with pytest.raises(TrustError, match=f"has {count} of the 2 signatures .* version 1's"):
        next_root(first_root(FIRST), root(2, signers))


@pytest.mark.parametrize("signers", [[ONE, TWO], [THREE, ONE], [ONE, TWO, THREE], [STRANGER, TWO, THREE]])
def test_any_of_the_holders_who_reach_the_threshold_make_a_root(signers: list[PrivateKey]) -> None:
    assert next_root(first_root(FIRST), root(2, signers)).version == 2


def test_a_signature_under_the_id_of_another_holder_does_not_count() -> None:
    def borrow(tree: dict[str, Any]) -> None:
        [first] = tree["signatures"]
        tree["signatures"].append({"keyid": TWO.public.raw.hex(), "sig": first["sig"]})

    with pytest.raises(TrustError, match="has 1 of the 2"):
        first_root(changed(root(signers=[ONE]), borrow))


@pytest.mark.parametrize("written", ["as it is", "in capitals", "with spaces"])
def test_one_holder_under_two_ids_is_one_holder(written: str) -> None:
    """A drafter who names his key twice would need nobody else, if the other holders do not look."""
    public = ONE.public.raw.hex()
    shown = {"as it is": public, "in capitals": public.upper(), "with spaces": " " + public}[written]

    def twice(tree: dict[str, Any]) -> None:
        tree["signed"]["keys"]["second"] = {
            "keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": shown}
        }  # fmt: skip
        tree["signed"]["roles"]["root"]["keyids"] = [public, "second"]

    def sign_as_second(tree: dict[str, Any]) -> None:
        tree["signatures"].append({**tree["signatures"][0], "keyid": "second"})

    data = changed(changed(FIRST, twice, [ONE, TWO]), sign_as_second)
    with pytest.raises(TrustError, match="one root key under two ids"):
        first_root(data)
    following = changed(root(2), twice, [ONE, TWO])
    with pytest.raises(TrustError, match="one root key under two ids"):
        next_root(first_root(FIRST), changed(following, sign_as_second))


def test_a_device_walks_over_several_versions() -> None:
    chain = [
        FIRST,
        root(2, [ONE, TWO], server=[SERVER, NEXT_SERVER]),
        root(3, [ONE, TWO], server=[NEXT_SERVER]),
        root(4, [TWO, THREE], server=[NEXT_SERVER], publishers=[PUBLISHER.public]),
    ]
    for start in range(4):
        trusted = first_root(FIRST) if start == 0 else newest_root(first_root(FIRST), chain[: start + 1])
        found = newest_root(trusted, chain)
        assert (found.version, found.server_keys) == (4, (NEXT_SERVER.public,))
        assert found.publishers == (PUBLISHER.public,)


def test_a_version_that_is_missing_ends_the_walk() -> None:
    with pytest.raises(TrustError, match="expected version 2 of the root, got 3"):
        newest_root(first_root(FIRST), [FIRST, root(3)])
    with pytest.raises(TrustError, match="expected version 2 of the root, got 3"):
        next_root(first_root(FIRST), root(3))


def test_older_versions_change_nothing() -> None:
    third = newest_root(first_root(FIRST), [FIRST, root(2), root(3)])
    assert newest_root(third, [FIRST, root(2)]) == third
    assert newest_root(third, []) == third
    with pytest.raises(TrustError, match="expected version 4 of the root, got 2"):
        next_root(third, root(2))


def test_another_root_of_the_same_version_is_passed_over() -> None:
    """It may be signed rightly: by holders who signed two of them. Who has one keeps it."""
    trusted = next_root(first_root(FIRST), root(2))
    assert newest_root(trusted, [root(2, server=[NEXT_SERVER])]).server_keys == (SERVER.public,)


def test_root_keys_change_with_the_signatures_of_both_sides() -> None:
    new = (private_key(50), private_key(51))
    trusted = first_root(FIRST)
    changed_by = {
        "old alone": [ONE, TWO],
        "new alone": list(new),
        "one of the old": [ONE, *new],
        "one of the new": [ONE, TWO, new[0]],
    }
    for signers in changed_by.values():
        with pytest.raises(TrustError, match=r"has [01] of the 2"):
            next_root(trusted, root(2, signers, holders=new))
    second = next_root(trusted, root(2, [ONE, TWO, *new], holders=new))
    with pytest.raises(TrustError):
        next_root(second, root(3, [ONE, TWO], holders=new))
    assert next_root(second, root(3, new, holders=new)).version == 3


def test_a_lower_threshold_needs_the_one_before() -> None:
    with pytest.raises(TrustError, match="1 of the 2"):
        next_root(first_root(FIRST), root(2, [ONE], threshold=1))
    second = next_root(first_root(FIRST), root(2, [ONE, TWO], threshold=1))
    assert next_root(second, root(3, [THREE], threshold=1)).version == 3


def test_the_root_of_another_federation_is_refused_however_well_signed() -> None:
    with pytest.raises(TrustError, match="expected the root of federation pumps, got that of 'fans'"):
        next_root(first_root(FIRST), root(2, federation="fans"))


@pytest.mark.parametrize("kind", [Targets, Snapshot, Timestamp], ids=lambda kind: kind.type)
def test_other_metadata_is_no_root(kind: type) -> None:
    metadata = Metadata(kind())
    for key in HOLDERS:
        signer = Ed25519PrivateKey.from_private_bytes(key.raw)
        metadata.sign(CryptoSigner(signer), append=True)
    with pytest.raises(TrustError, match=f"expected root metadata, got '{kind.type}'"):  # type: ignore[attr-defined]
        first_root(metadata.to_bytes())


def test_an_expired_root_is_read_and_said_to_be_expired() -> None:
    """A device walks over expired versions to the newest, and that one has to be fresh."""
    trusted = first_root(root(expires=1000.0))
    check_fresh(trusted, 1000.0)
    with pytest.raises(TrustError, match="version 1 of the root has expired: sign a new version"):
        check_fresh(trusted, 1000.5)
    check_fresh(next_root(trusted, root(2)), 1000.5)


def _only(names: str, value: object) -> Any:
    def change(tree: dict[str, Any]) -> None:
        *path, last = names.split("/")
        for name in path:
            tree = tree[name]
        if value is ...:
            del tree[last]
        else:
            tree[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _only(f"signed/{FEDERATION_FIELD}", ...),
        _only(f"signed/{FEDERATION_FIELD}", 5),
        _only("signed/roles/snapshot/keyids", []),
        _only("signed/roles/snapshot/keyids", ["unlisted"]),
        _only("signed/roles/targets/keyids", ["unlisted"]),
        _only("signed/roles/snapshot", ...),
        _only("signed/more", 0.5),
        _only("signed/more", {"deep": [[[1.5]]]}),
        _only("signed/version", 0),
        _only("signed/version", -1),
        _only("signed/version", "1"),
        _only("signed/version", 1e300),
        _only("signed/expires", "soon"),
        _only("signed/expires", "9999-12-31T23:59:59+99:99"),
        _only("signed/expires", None),
        _only("signed/spec_version", "2.0"),
        _only("signed/_type", "mirrors"),
        _only("signed/_type", ["root"]),
        _only("signed/keys", []),
        _only("signed/roles/root/threshold", 0),
        _only("signed/roles/root/threshold", 2.5),
        _only("signed/roles/root/threshold", 10**30),
        _only("signatures", {}),
        _only("signatures", ["", {}]),
        _only("signatures", None),
        _only("signed", []),
    ],
)
def test_a_root_that_lacks_something_is_refused(change: Any) -> None:
    data = changed(FIRST, change)
    with contextlib.suppress(Exception):  # what has no canonical form cannot be signed
        tree = json.loads(data)
        if tree["signatures"] == json.loads(FIRST)["signatures"]:
            data = changed(data, lambda _tree: None, [ONE, TWO])
    with pytest.raises(TrustError):
        first_root(data)
    with pytest.raises(TrustError):
        newest_root(first_root(FIRST), [data.replace(b'"version": 1,', b'"version": 2,')] * 2 + [root(9)])


def _with_key(tree: dict[str, Any], role: str, key: Any) -> None:
    tree["signed"]["keys"]["k"] = key
    tree["signed"]["roles"][role]["keyids"] = ["k"]


PEM = CryptoSigner(ec.generate_private_key(ec.SECP256R1())).public_key.keyval["public"]


@pytest.mark.parametrize("role", ["snapshot", "targets"])
@pytest.mark.parametrize(
    "key",
    [
        {"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": {"public": PEM}},
        {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": "00"}},
        {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": "zz" * 32}},
        {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": 5}},
        {"keytype": "ed25519", "scheme": "ed25519", "keyval": {}},
        {"keytype": "ed25519", "scheme": "rsassa-pss-sha256", "keyval": {"public": PEM}},
        {"keytype": "rsa", "scheme": "ed25519", "keyval": {"public": PEM}},
        {"keytype": "tin", "scheme": "foil", "keyval": {"public": "00"}},
        {},
        None,
    ],
)
def test_server_and_publishers_have_ed25519_keys(role: str, key: Any) -> None:
    data = changed(FIRST, lambda tree: _with_key(tree, role, key), [ONE, TWO])
    with pytest.raises(TrustError):
        first_root(data)


@pytest.mark.parametrize(
    "made",
    [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)],
    ids=["ecdsa", "rsa"],
)
def test_holders_may_have_other_keys_as_smart_cards_do(made: Any) -> None:
    signer = CryptoSigner(made)
    metadata = Metadata[Root].from_bytes(root(signers=()))
    metadata.signed.add_key(signer.public_key, "root")
    metadata.sign(signer, append=True)
    metadata.sign(
        CryptoSigner(
            Ed25519PrivateKey.from_private_bytes(ONE.raw), metadata.signed.keys[ONE.public.raw.hex()]
        ),
        append=True,
    )
    assert first_root(metadata.to_bytes()).version == 1
    tree = json.loads(metadata.to_bytes())
    again = {**tree["signed"]["keys"][signer.public_key.keyid]}
    again["keyval"] = {"public": "\n" + again["keyval"]["public"]}
    tree["signed"]["keys"]["again"] = again
    tree["signed"]["roles"]["root"]["keyids"].append("again")
    metadata = Metadata[Root].from_dict(tree)
    metadata.signatures.clear()
    metadata.sign(signer)
    metadata.sign(
        CryptoSigner(
            Ed25519PrivateKey.from_private_bytes(ONE.raw), metadata.signed.keys[ONE.public.raw.hex()]
        ),
        append=True,
    )
    with pytest.raises(TrustError, match="one root key under two ids"):
        first_root(metadata.to_bytes())


def test_a_key_that_nobody_can_read_signs_nothing_and_stops_nothing() -> None:
    """E.g. one of a scheme that this device's library does not know yet."""

    def add(tree: dict[str, Any]) -> None:
        for name in ("a", "b"):
            tree["signed"]["keys"][name] = {
                "keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": {"public": "unreadable"}
            }  # fmt: skip
            tree["signed"]["roles"]["root"]["keyids"].append(name)

    assert first_root(changed(FIRST, add, [ONE, TWO])).version == 1
    with pytest.raises(TrustError, match="1 of the 2"):
        first_root(changed(FIRST, add, [ONE]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b'"root"',
        b"\xff\xfe",
        b'{"signed": 5, "signatures": []}',
        b"[" * MAX_ROOT_BYTES,
        b'{"signed":' * 1600,
        b"[" * 8000 + b"]" * 8000,
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
        b'{"signed": {"_type": "root", "version": ' + b"9" * 10_000 + b"}}",
        b"1" * MAX_ROOT_BYTES,
        b"NaN",
    ],
    ids=lambda data: f"{data[:12]!r} {len(data)}",
)
def test_hostile_json_is_refused(data: bytes) -> None:
    for read in (first_root, version_of, lambda data: next_root(first_root(FIRST), data)):
        with pytest.raises(TrustError):
            read(data)


@pytest.mark.parametrize("depth", [100, 900, 3000])
def test_deep_fields_within_a_root_are_refused_or_read(depth: int) -> None:
    deep = b'"deep": ' + b"[" * depth + b"]" * depth + b", "
    data = FIRST.replace(b'"signed": {', b'"signed": {' + deep, 1).replace(
        b'"signed":{', b'"signed":{' + deep, 1
    )
    assert len(data) > len(FIRST)
    with pytest.raises(TrustError):
        first_root(data)


def test_size_is_bounded_before_it_is_read() -> None:
    padded = FIRST + b" " * (MAX_ROOT_BYTES - len(FIRST))
    assert first_root(padded).version == 1
    with pytest.raises(TrustError, match=f"expected a root of at most {MAX_ROOT_BYTES} bytes"):
        first_root(padded + b" ")


@settings(max_examples=300, deadline=None)
@given(
    position=st.integers(0, len(FIRST) - 1),
    removed=st.integers(0, 8),
    inserted=st.binary(max_size=4)
    | st.sampled_from([b"[", b"{", b'"', b"1e5", b"null", b"-", b"0.5", b"{}", b"\\ud800"]),
)
def test_mutated_bytes_are_read_as_before_or_refused(position: int, removed: int, inserted: bytes) -> None:
    data = FIRST[:position] + inserted + FIRST[position + removed :]
    trusted = first_root(FIRST)
    with contextlib.suppress(TrustError):
        found = first_root(data)
        assert (found.version, found.server_keys, found.expires) == (1, trusted.server_keys, trusted.expires)
    with contextlib.suppress(TrustError):
        assert newest_root(trusted, [data]).version == 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just(ONE.public.raw.hex()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
PATHS = st.sampled_from(
    [
        "signed",
        "signatures",
        "signed/keys",
        "signed/roles",
        "signed/version",
        "signed/expires",
        "signed/roles/root",
        "signed/roles/root/keyids",
        "signed/roles/root/threshold",
        "signed/roles/snapshot/keyids",
        f"signed/keys/{ONE.public.raw.hex()}",
        f"signed/keys/{SERVER.public.raw.hex()}/keyval",
        f"signed/{FEDERATION_FIELD}",
        "signed/new",
        "new",
    ]
)


@settings(max_examples=300, deadline=None)
@given(path=PATHS, value=VALUES)
def test_values_of_any_type_are_read_or_refused(path: str, value: Any) -> None:
    data = changed(FIRST, _only(path, value))
    with contextlib.suppress(TrustError):
        first_root(data)
    with contextlib.suppress(TrustError):
        newest_root(first_root(FIRST), [data, data.replace(b'"version": 1', b'"version": 2')])


def test_a_holder_who_did_not_sign_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        first_root(FIRST)
        with pytest.raises(TrustError):
            first_root(changed(FIRST, lambda tree: tree["signatures"][0].update(sig="00")))
    assert caplog.text == ""
