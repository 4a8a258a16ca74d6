"""Sealing: RFC 9180's own numbers, another implementation, and everything that must not open."""

from typing import Any

import pytest
from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKey

from protocol.errors import EncodingError, SealingError
from protocol.sealing import (
    HYBRID,
    MAX_NUMBER,
    SEALED_BYTES,
    SEALING_BYTES,
    SUITES,
    X25519,
    PublicSealingKey,
    SealingKey,
    Unsealed,
    unseal,
)
from protocol.topics import Topics

KEYS = {suite: SealingKey.generate(suite) for suite in SUITES}
OTHERS = {suite: SealingKey.generate(suite) for suite in SUITES}
TOPIC = Topics("pumps").up("pump-1", "update")
LIMIT = 1 << 16
HEADER = 10
SEED = 64
OTHER_HPKE = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES128_GCM)
by_suite = pytest.mark.parametrize("suite", SUITES)


def opened(sealed: bytes, key: SealingKey, topic: str = TOPIC, limit: int = LIMIT) -> Unsealed:
    return unseal(sealed, [key], topic, limit=limit)


def info(header: bytes, topic: str = TOPIC) -> bytes:
    """What a header and a topic are bound by, written down once more."""
    return b"graftwork/1 sealed " + header + topic.encode()


# RFC 9180, appendix A.1.1: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM, base mode, sequence 0.
RFC = {
    "info": "4f6465206f6e2061204772656369616e2055726e",
    "skRm": "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
    "pkRm": "3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d",
    "enc": "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
    "pt": "4265617574792069732074727574682c20747275746820626561757479",
    "aad": "436f756e742d30",
    "ct": "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a",
}


def test_the_suite_that_is_used_gives_the_numbers_of_the_standard() -> None:
    number = {name: bytes.fromhex(digits) for name, digits in RFC.items()}
    key = SealingKey(number["skRm"])
    assert key.public.raw == number["pkRm"]
    decrypt: Any = openssl.hpke._decrypt_with_aad  # type: ignore[attr-defined]
    found = decrypt(key._suite.hpke, number["enc"] + number["ct"], key._key, number["info"], number["aad"])
    assert found == number["pt"] == b"Beauty is truth, truth beauty"


def test_what_another_implementation_seals_is_opened() -> None:
    key, secret = KEYS[X25519], b"an envelope"
    header = b"\x01" + key.public.id + (7).to_bytes(5, "big")
    theirs = KEMKey.from_pyca_cryptography_key(X25519PublicKey.from_public_bytes(key.public.raw))
    encapsulated, context = OTHER_HPKE.create_sender_context(theirs, info=info(header))
    assert opened(header + encapsulated + context.seal(secret), key) == (7, secret)


def test_what_is_sealed_another_implementation_opens() -> None:
    key, secret = KEYS[X25519], b"an envelope"
    sealed = key.public.seal(secret, TOPIC, 7)
    header, encapsulated, rest = sealed[:HEADER], sealed[HEADER : HEADER + 32], sealed[HEADER + 32 :]
    theirs = KEMKey.from_pyca_cryptography_key(X25519PrivateKey.from_private_bytes(key.raw))
    context = OTHER_HPKE.create_recipient_context(encapsulated, theirs, info=info(header))
    assert context.open(rest) == secret


@by_suite
@settings(max_examples=30)
@given(
    plaintext=st.binary(max_size=300),
    number=st.integers(0, MAX_NUMBER),
    device=st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True),
)
def test_what_is_sealed_opens_as_it_was(suite: str, plaintext: bytes, number: int, device: str) -> None:
    topic = Topics("pumps").up(device, "update")
    sealed = KEYS[suite].public.seal(plaintext, topic, number)
    assert opened(sealed, KEYS[suite], topic) == (number, plaintext)
    assert plaintext not in sealed or len(plaintext) < 4


@pytest.mark.parametrize(("suite", "added"), [(X25519, SEALED_BYTES), (HYBRID, 1146)])
def test_sealing_adds_so_many_bytes(suite: str, added: int) -> None:
    for size in (0, 1, 4096):
        assert len(KEYS[suite].public.seal(bytes(size), TOPIC, 1)) == size + added
    assert (SEALED_BYTES, added <= SEALING_BYTES) == (58, True)


@by_suite
def test_the_same_message_is_sealed_differently_each_time(suite: str) -> None:
    assert len({KEYS[suite].public.seal(b"the same", TOPIC, 1) for _ in range(5)}) == 5


@by_suite
@pytest.mark.parametrize(
    "topic",
    [
        Topics("pumps").up("pump-2", "update"),
        Topics("pumps").up("pump-1", "report"),
        Topics("fans").up("pump-1", "update"),
        Topics("pumps").down("pump-1", "update"),
        "",
    ],
    ids=["device", "kind", "federation", "direction", "none"],
)
def test_what_was_moved_does_not_open(suite: str, topic: str) -> None:
    sealed = KEYS[suite].public.seal(b"secret", TOPIC, 1)
    with pytest.raises(SealingError, match="does not open"):
        opened(sealed, KEYS[suite], topic)


@by_suite
def test_what_was_renumbered_does_not_open(suite: str) -> None:
    sealed = KEYS[suite].public.seal(b"secret", TOPIC, 5)
    later = sealed[:5] + (6).to_bytes(5, "big") + sealed[HEADER:]
    with pytest.raises(SealingError, match="does not open"):
        opened(later, KEYS[suite])


@by_suite
def test_no_flipped_byte_opens(suite: str) -> None:
    sealed = KEYS[suite].public.seal(b"secret", TOPIC, 5)
    for position in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[position] ^= 0x80 if position % 2 else 0x01
        with pytest.raises(SealingError):
            opened(bytes(damaged), KEYS[suite])


def test_the_one_bit_that_x25519_ignores_is_in_what_is_authenticated() -> None:
    """The highest bit of a point counts for nothing in RFC 7748, but it is in HPKE's key schedule."""
    sealed = bytearray(KEYS[X25519].public.seal(b"secret", TOPIC, 5))
    sealed[HEADER + 31] ^= 0x80
    with pytest.raises(SealingError):
        opened(bytes(sealed), KEYS[X25519])


@by_suite
def test_no_truncation_nor_addition_opens(suite: str) -> None:
    sealed = KEYS[suite].public.seal(b"secret", TOPIC, 5)
    for size in range(len(sealed)):
        with pytest.raises((SealingError, EncodingError)):
            opened(sealed[:size], KEYS[suite])
    with pytest.raises(SealingError):
        opened(sealed + b"\0", KEYS[suite])


@by_suite
def test_another_key_is_told_apart_before_anything_is_decrypted(suite: str) -> None:
    sealed = OTHERS[suite].public.seal(b"secret", TOPIC, 5)
    with pytest.raises(SealingError, match="expected a message sealed to this server's key"):
        opened(sealed, KEYS[suite])
    claimed = sealed[:1] + KEYS[suite].public.id + sealed[5:]
    with pytest.raises(SealingError, match="does not open"):
        opened(claimed, KEYS[suite])


def test_while_a_key_is_replaced_both_open_even_of_two_suites() -> None:
    old, new = KEYS[X25519], KEYS[HYBRID]
    for key in (old, new):
        sealed = key.public.seal(b"secret", TOPIC, 5)
        assert unseal(sealed, [new, old], TOPIC, limit=LIMIT).plaintext == b"secret"
        other_suite = bytes([3 - sealed[0]]) + sealed[1:]
        with pytest.raises(SealingError, match="expected a message sealed"):
            unseal(other_suite, [new, old], TOPIC, limit=LIMIT)


@by_suite
def test_a_point_of_low_order_opens_nothing(suite: str) -> None:
    """It would make the shared secret known to everyone; the library refuses it."""
    sealed = KEYS[suite].public.seal(b"secret", TOPIC, 5)
    start = HEADER if suite == X25519 else HEADER + 1088
    for point in (bytes(32), b"\x01" + bytes(31)):
        with pytest.raises(SealingError):
            opened(sealed[:start] + point + sealed[start + 32 :], KEYS[suite])
    with pytest.raises(SealingError, match="cannot be used"):
        PublicSealingKey(KEYS[suite].public.raw[:-32] + bytes(32))


@given(st.binary(max_size=200))
def test_hostile_bytes_are_refused(data: bytes) -> None:
    keys = [KEYS[X25519], KEYS[HYBRID]]
    for sealed in (data, b"\x01" + keys[0].public.id + data, b"\x02" + keys[1].public.id + data):
        with pytest.raises((SealingError, EncodingError)):
            unseal(sealed, keys, TOPIC, limit=LIMIT)


@by_suite
def test_size_is_bounded_before_and_after_it_is_opened(suite: str) -> None:
    key = KEYS[suite]
    assert opened(key.public.seal(bytes(64), TOPIC, 1), key, limit=64).plaintext == bytes(64)
    with pytest.raises(EncodingError, match="expected at most 64 bytes, got 65"):
        opened(key.public.seal(bytes(65), TOPIC, 1), key, limit=64)
    with pytest.raises(EncodingError, match=f"expected at most {64 + SEALING_BYTES} bytes"):
        opened(bytes(64 + SEALING_BYTES + 1), key, limit=64)


def test_without_keys_nothing_opens() -> None:
    with pytest.raises(SealingError):
        unseal(KEYS[X25519].public.seal(b"x", TOPIC, 1), [], TOPIC, limit=LIMIT)


@by_suite
def test_keys_are_the_same_after_they_were_written_down(suite: str) -> None:
    key = KEYS[suite]
    again = SealingKey(key.raw)
    assert (again.suite, again.public, hash(again.public)) == (suite, key.public, hash(key.public))
    assert PublicSealingKey(key.public.raw) == key.public != OTHERS[suite].public
    assert opened(again.public.seal(b"secret", TOPIC, 1), key).plaintext == b"secret"
    assert len(key.public.raw) == {X25519: 32, HYBRID: 1216}[suite]
    assert len(key.raw) == {X25519: 32, HYBRID: SEED + 32}[suite]


def test_the_hybrid_key_is_no_weaker_than_either_part() -> None:
    """With one part of the private key exchanged, nothing opens: both are needed."""
    key, other = KEYS[HYBRID], OTHERS[HYBRID]
    sealed = key.public.seal(b"secret", TOPIC, 1)
    for raw in (other.raw[:SEED] + key.raw[SEED:], key.raw[:SEED] + other.raw[SEED:]):
        with pytest.raises(SealingError, match="does not open"):
            SealingKey(raw).open(sealed, TOPIC)


@pytest.mark.parametrize("size", [0, 1, 31, 33, 64, 95, 97, 1215, 1217, 5000])
def test_a_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(SealingError, match=f"expected a sealing key of .* bytes, got {size}"):
        PublicSealingKey(bytes(size))
    with pytest.raises(SealingError, match="expected a sealing key of 32 or 96 bytes"):
        SealingKey(bytes(size))


def test_a_private_key_is_not_shown() -> None:
    for key in KEYS.values():
        assert key.raw.hex() not in repr(key)
        assert key.public.id.hex() in repr(key)


def test_the_hybrid_suite_is_the_one_of_the_library() -> None:
    """ML-KEM-768 with X25519 (X-Wing): sealed here, opened by the library with the same `info`."""
    key = KEYS[HYBRID]
    sealed = key.public.seal(b"secret", TOPIC, 3)
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)
    assert suite.decrypt(sealed[HEADER:], key._key, info(sealed[:HEADER])) == b"secret"
