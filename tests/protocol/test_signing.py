"""Envelopes: what COSE calls a signature, bound to its context, checked by a foreign reader."""

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cwt import COSE, COSEKey
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import EncodingError, ProtocolError, SignatureError
from protocol.signing import ENVELOPE_BYTES, PrivateKey, PublicKey, sign, signed_payload, verify
from tests.builders import private_key

KEY, OTHER = private_key(1), private_key(2)
CONTEXT = b"graftwork/1 somewhere"
LIMIT = 4096


def to_be_signed(protected: bytes, payload: bytes, context: bytes) -> bytes:
    """Sig_structure of RFC 9052, section 4.4, written by hand."""
    return cbor2.dumps(["Signature1", protected, context, payload])


def test_the_first_vector_of_rfc_8032() -> None:
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    assert PrivateKey(secret).public.raw == public
    assert Ed25519PrivateKey.from_private_bytes(secret).sign(b"") == signature


def test_an_envelope_is_a_tagged_cose_sign1_with_eddsa() -> None:
    tagged = cbor2.loads(sign(b"payload", KEY, CONTEXT))
    assert tagged.tag == 18
    protected, unprotected, payload, signature = tagged.value
    assert cbor2.loads(protected) == {1: -8}
    assert (unprotected, payload, len(signature)) == ({}, b"payload", 64)


def test_the_signature_is_the_one_that_rfc_9052_describes() -> None:
    protected, _, payload, signature = cbor2.loads(sign(b"payload", KEY, CONTEXT)).value
    structure = to_be_signed(protected, payload, CONTEXT)
    Ed25519PublicKey.from_public_bytes(KEY.public.raw).verify(signature, structure)


def test_an_envelope_written_by_hand_is_verified() -> None:
    protected = cbor2.dumps({1: -8})
    signature = Ed25519PrivateKey.from_private_bytes(KEY.raw).sign(to_be_signed(protected, b"p", CONTEXT))
    envelope = cbor2.dumps(cbor2.CBORTag(18, [protected, {}, b"p", signature]))
    assert verify(envelope, KEY.public, CONTEXT, limit=LIMIT) == b"p"


def test_a_general_cose_library_reads_the_envelope_and_writes_the_same_bytes() -> None:
    public = COSEKey.new({1: 1, 3: -8, -1: 6, -2: KEY.public.raw})
    private = COSEKey.new({1: 1, 3: -8, -1: 6, -2: KEY.public.raw, -4: KEY.raw})
    for payload in (b"", b"payload", bytes(70_000)):
        envelope = sign(payload, KEY, CONTEXT)
        assert COSE.new().decode(envelope, public, external_aad=CONTEXT) == payload
        assert COSE.new(alg_auto_inclusion=True).encode(payload, private, external_aad=CONTEXT) == envelope


def test_the_same_payload_has_the_same_envelope() -> None:
    assert sign(b"p", KEY, CONTEXT) == sign(b"p", KEY, CONTEXT)


@settings(max_examples=40)
@given(st.binary(max_size=300), st.binary(max_size=40))
def test_what_is_signed_is_verified(payload: bytes, context: bytes) -> None:
    envelope = sign(payload, KEY, context)
    assert len(envelope) <= len(payload) + ENVELOPE_BYTES
    assert verify(envelope, KEY.public, context, limit=len(payload)) == payload
    assert signed_payload(envelope, limit=len(payload)) == payload


def test_another_key_or_context_is_refused() -> None:
    envelope = sign(b"p", KEY, CONTEXT)
    with pytest.raises(SignatureError):
        verify(envelope, OTHER.public, CONTEXT, limit=LIMIT)
    with pytest.raises(SignatureError):
        verify(envelope, KEY.public, CONTEXT + b"x", limit=LIMIT)


def test_every_flipped_byte_is_refused() -> None:
    envelope = sign(b"payload", KEY, CONTEXT)
    for position in range(len(envelope)):
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(envelope)
            damaged[position] ^= mask
            with pytest.raises(ProtocolError):
                verify(bytes(damaged), KEY.public, CONTEXT, limit=LIMIT)


def test_a_payload_over_the_limit_is_refused() -> None:
    envelope = sign(bytes(100), KEY, CONTEXT)
    for limit in (0, 50, 99):
        with pytest.raises(EncodingError):
            verify(envelope, KEY.public, CONTEXT, limit=limit)


def hand_made(
    protected: object = b"\xa1\x01\x27", payload: object = b"p", signature: object = bytes(64)
) -> bytes:
    return cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, signature]))


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"\xd2",
        hand_made()[1:],
        cbor2.dumps(cbor2.CBORTag(17, [b"\xa1\x01\x27", {}, b"p", bytes(64)])),
        cbor2.dumps(cbor2.CBORTag(18, [b"", {}, b"p"])),
        cbor2.dumps(cbor2.CBORTag(18, {1: 2})),
        hand_made(payload=None),
        hand_made(payload="p"),
        hand_made(signature=None),
        hand_made(protected={1: -8}),
        hand_made() + b"\x00",
    ],
)
def test_what_is_no_envelope_is_refused_as_such(envelope: bytes) -> None:
    with pytest.raises(EncodingError):
        verify(envelope, KEY.public, CONTEXT, limit=LIMIT)
    with pytest.raises(EncodingError):
        signed_payload(envelope, limit=LIMIT)


@pytest.mark.parametrize(
    "protected",
    [
        b"",
        b"\xf6",
        b"\x05",
        cbor2.dumps([1, -8]),
        cbor2.dumps({1: 5}),
        cbor2.dumps({1: "EdDSA"}),
        cbor2.dumps({1: [1]}),
        cbor2.dumps({1: -8, 2: 7}),
        b"\x81" * 3000 + b"\x00",
        bytes.fromhex("9b7fffffff7fffffff"),
        bytes.fromhex("bb00000000ffffffff"),
        bytes.fromhex("a101c5821b7fffffffffffffff03"),
        bytes.fromhex("a101d823612a"),
    ],
)
def test_a_hostile_protected_header_is_refused(protected: bytes) -> None:
    with pytest.raises(ProtocolError):
        verify(hand_made(protected), KEY.public, CONTEXT, limit=LIMIT)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_size_is_refused(size: int) -> None:
    for kind in (PublicKey, PrivateKey):
        with pytest.raises(SignatureError, match=f"32 bytes, got {size}"):
            kind(bytes(size))


@pytest.mark.parametrize("text", ["", "00", "zz" * 32, "é" * 32, "0" * 63])
def test_a_public_key_that_is_not_64_digits_is_refused(text: str) -> None:
    with pytest.raises(SignatureError, match="expected"):
        PublicKey.from_hex(text)


def test_keys_compare_by_value_and_hide_their_secret() -> None:
    assert PublicKey.from_hex(KEY.public.raw.hex()) == KEY.public != OTHER.public
    assert len({KEY.public, PublicKey(KEY.public.raw), OTHER.public}) == 2
    assert KEY.raw.hex() not in repr(KEY)
    assert PrivateKey.generate().raw != PrivateKey.generate().raw
