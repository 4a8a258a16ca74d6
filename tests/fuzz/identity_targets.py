"""Targets: what is sealed, roots of trust, orders to go back, and requests for certificates."""

import contextlib
import datetime as dt
from collections.abc import Callable
from random import Random

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from protocol import cbor
from protocol.errors import ProtocolError, SchemaError
from protocol.identity import EnrolmentRequest
from protocol.messages import sign_message, verify_message
from protocol.records import to_numbered
from protocol.rollback import CONTEXT, MAX_BYTES, Rollback, read_rollback
from protocol.sealing import SealingKey, unseal
from protocol.signing import sign
from protocol.topics import Topics
from protocol.trust import first_root, next_root, version_of
from server import certificates
from server.authority import Authority
from server.certificates import CertificateRequestError, Signer, Validity
from tests.builders import PUBLISHER, SEALING, private_key
from tests.fuzz import mutations
from tests.fuzz.target import Case, Raw, Target
from tests.roots import HOLDERS, NEXT_SERVER, SERVER, changed, root

LIMIT = 4096
KEY = private_key(1)
TOPIC = Topics("pumps").enroll("nonce", "request")
KEYS = [SEALING, SealingKey(bytes(range(96)))]
TRUSTED = first_root(root())
NOW = 1_800_000_000.0


def _sealed(data: bytes) -> Case:
    """The first byte says who seals the rest: the sender, to either key, or else it comes as it is."""
    mode, sealed = data[:1], data[1:]
    if mode in (b"\1", b"\2"):
        sealed = KEYS[mode[0] - 1].public.seal(sealed, TOPIC, 0)

    def decode(passed: Callable[[], None]) -> object:
        envelope = unseal(sealed, KEYS, TOPIC, limit=LIMIT).plaintext
        passed()
        return verify_message(EnrolmentRequest, envelope, KEY.public, TOPIC, limit=LIMIT)

    return Case(decode, 2 * LIMIT + cbor.LEAST_MEMORY // 2)


def _sealed_seeds() -> list[bytes]:
    request = EnrolmentRequest("pump-1", KEY.public.raw, b"csr", "token", "0.1")
    envelope = sign_message(request, KEY, TOPIC)
    headers = [bytes([number]) + key.public.id + bytes(5) for number, key in enumerate(KEYS, 1)]
    foreign = [bytes(1) + header + bytes(size) for header in headers for size in (1, 48, 1136)]
    return [b"\1" + envelope, b"\2" + envelope, bytes(1) + envelope, *foreign]


def _mutate_sealed(data: bytes, random: Random, change: Raw) -> bytes:
    if random.random() < 0.1:
        return random.choice((b"\0", b"\1", b"\2")) + data[1:]
    if data[:1] == b"\0":
        return data[:1] + change(data[1:])
    return data[:1] + mutations.envelope(data[1:], random, change, KEY, b"graftwork/1 " + TOPIC.encode())


def _root(data: bytes) -> Case:
    """Bits of the first byte: whether the holders signed the rest, and whether it follows a trusted one."""
    mode, document = (data[0] if data else 0), data[1:]
    if mode & 1:
        with contextlib.suppress(Exception):  # what cannot be signed stays as it is
            document = changed(document, lambda _tree: None, HOLDERS[:2])

    def decode(passed: Callable[[], None]) -> object:
        version_of(document)
        passed()
        return next_root(TRUSTED, document) if mode & 2 else first_root(document)

    return Case(decode, 32 * len(document) + 32 * 1024)


def _root_seeds() -> list[bytes]:
    first, second = root(), root(2, server=[SERVER, NEXT_SERVER], publishers=[PUBLISHER.public])
    other = root(2, federation="fans")
    return [b"\1" + first, b"\0" + first, b"\3" + second, b"\2" + second, b"\3" + other, b"\3" + first]


def _mutate_root(data: bytes, random: Random, change: Raw) -> bytes:
    if random.random() < 0.05:
        return bytes([random.randrange(4)]) + data[1:]
    return data[:1] + mutations.json_item(data[1:], random, change)


def _rollback(data: bytes) -> Case:
    """What a publisher signed as an order."""
    envelope = sign(data, PUBLISHER, CONTEXT)

    def decode(passed: Callable[[], None]) -> object:
        try:
            return read_rollback(envelope, [KEY.public, PUBLISHER.public])
        except SchemaError:
            passed()
            raise

    return Case(decode, cbor.LEAST_MEMORY // 2 + MAX_BYTES)


def _rollback_seeds() -> list[bytes]:
    orders = [Rollback("tiny", 5, 3, bytes(32)), Rollback("", 1 << 40, 0, bytes(range(32)), 1e12)]
    return [cbor.encode(to_numbered(order)) for order in orders]


def _certificate_request(data: bytes) -> Case:
    """A request as the authority takes it, when it is known whose it is."""

    def decode(passed: Callable[[], None]) -> object:
        try:
            certificates.request_key(data)
            passed()
            return _AUTHORITY.issue_device(data, "pump-1", NOW, days=60)
        except CertificateRequestError as error:  # the server's own root of errors
            if "key" in str(error):
                passed()
            raise ProtocolError(str(error)) from error

    return Case(decode, 16 * 1024 + 2 * len(data))


def _authority() -> Authority:
    start = dt.datetime.fromtimestamp(NOW - 86_400, dt.timezone.utc)
    validity = Validity(start, start + dt.timedelta(days=3650))
    key = certificates.new_key()
    name = certificates.name("graftwork-devices-ca", "pumps")
    return Authority("pumps", {"devices": Signer(certificates.self_signed(key, name, validity), key)})


_AUTHORITY = _authority()
_P256 = ec.derive_private_key(7, ec.SECP256R1())
_P384 = ec.derive_private_key(7, ec.SECP384R1())
_ED25519 = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))


def _requested(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, text: str, *extensions: x509.ExtensionType
) -> bytes:
    """A request that is the same every time."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return builder.sign(key, None).public_bytes(Encoding.DER)
    return builder.sign(key, SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)


def _request_seeds() -> list[bytes]:
    names = x509.SubjectAlternativeName([x509.DNSName("a.example"), x509.RFC822Name("a@example")])
    authority = x509.BasicConstraints(ca=True, path_length=None)
    return [
        _requested(_P256, "pump-1"),
        _requested(_ED25519, "pump-1"),
        _requested(_P384, "pump-1"),
        _requested(_P256, "", names, authority),
    ]


def _mutate_request(data: bytes, random: Random, change: Raw) -> bytes:
    if random.random() > 0.05:
        return change(data)
    odd = random.choice(("x" * 64, "\u20ac" * 8, "graftwork-server-pumps", "a/b", "\0"))
    with contextlib.suppress(ValueError):
        return _requested(random.choice((_P256, _ED25519)), odd, x509.SubjectAlternativeName([]))
    return change(data)


TARGETS = (
    Target("sealed", _sealed, _sealed_seeds, _mutate_sealed, LIMIT + 64, "sealing"),
    Target("root", _root, _root_seeds, _mutate_root, 6144, "JSON of root metadata"),
    Target("rollback", _rollback, _rollback_seeds, mutations.cbor_item, MAX_BYTES, "signature and CBOR"),
    Target(
        "certificate_request",
        _certificate_request,
        _request_seeds,
        _mutate_request,
        2048,
        "form of the request",
    ),
)
