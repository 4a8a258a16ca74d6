"""Roots of trust: which keys sign for a federation, said by a threshold of keys that are kept offline.

A root is the root metadata of The Update Framework (TUF 1.0, section 4.3), read and verified by python-tuf.
Its roles mean here:

    root                  keys that may change this file, with a threshold
    targets               publishers: who may sign model packages
    snapshot, timestamp   the server's signing keys

A new version is signed by a threshold of the keys of the version before and of its own (TUF 5.3), so devices
walk from the version that they were given to the newest, one by one. The federation is named inside, so that
the root of one is none for another.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from protocol.errors import SignatureError, TrustError, shown
from protocol.signing import PublicKey

MAX_ROOT_BYTES = 16 * 1024
MAX_ROOTS = 64
"""In one message: versions since the beginning."""
FEDERATION_FIELD = "x-graftwork-federation"
ROOT, PUBLISHERS, SERVER = "root", "targets", "snapshot"
"""Roles."""


@dataclass(frozen=True)
class Root:
    """A root whose signatures were checked."""

    version: int
    federation: str
    expires: float
    """Unix seconds."""
    server_keys: tuple[PublicKey, ...]
    publishers: tuple[PublicKey, ...]
    """Empty: whatever the server announces."""
    data: bytes
    """The signed file."""


def first_root(data: bytes) -> Root:
    """Read the root that a device or server was given; it must be signed by a threshold of its own keys.

    Memory: at most 64 times its bytes, which MAX_ROOT_BYTES bounds, and 64 KiB.

    Raises:
        TrustError: malformed, too large, or not signed by enough of its keys.
    """
    metadata = _read(data)
    _check_signatures(metadata, metadata, "its own")
    return _root(metadata, data)


def next_root(trusted: Root, data: bytes) -> Root:
    """Read the version that follows `trusted`.

    Memory: as `first_root`, for both of them.

    Raises:
        TrustError: not the next version, of another federation, or not signed by enough keys of both
        versions.
    """
    before, metadata = _read(trusted.data), _read(data)
    if metadata.signed.version != trusted.version + 1:
        raise TrustError(f"expected version {trusted.version + 1} of the root, got {metadata.signed.version}")
    _check_signatures(before, metadata, f"version {trusted.version}'s")
    _check_signatures(metadata, metadata, "its own")
    root = _root(metadata, data)
    if root.federation != trusted.federation:
        raise TrustError(
            f"expected the root of federation {trusted.federation}, got that of {shown(root.federation)}"
        )
    return root


def newest_root(trusted: Root, chain: Iterable[bytes]) -> Root:
    """Walk a chain from what is trusted to its last version; versions that are known are passed over.

    Raises:
        TrustError: a version is missing, or not signed by enough keys.
    """
    for data in chain:
        if version_of(data) > trusted.version:
            trusted = next_root(trusted, data)
    return trusted


def version_of(data: bytes) -> int:
    """The version that a root claims, WITHOUT checking its signatures.

    Raises:
        TrustError: malformed.
    """
    version: int = _read(data).signed.version
    return version


def check_fresh(root: Root, now: float) -> None:
    """Refuse a root that has expired.

    Raises:
        TrustError: names the version, and what to do.
    """
    if now > root.expires:
        raise TrustError(
            f"version {root.version} of the root has expired: sign a new version with the root keys "
            "(graftwork-server root), or set this machine's clock"
        )


def _read(data: bytes) -> Any:
    # tuf and what it loads take 6 MB of memory: a device whose root does not change does without.
    from tuf.api.exceptions import RepositoryError  # noqa: PLC0415
    from tuf.api.metadata import Metadata  # noqa: PLC0415

    for name in ("tuf", "securesystemslib"):
        logging.getLogger(name).setLevel(logging.WARNING)  # each key that has not signed is no news
    if len(data) > MAX_ROOT_BYTES:
        raise TrustError(f"expected a root of at most {MAX_ROOT_BYTES} bytes, got {len(data)}")
    try:
        metadata: Any = Metadata.from_bytes(data)
    except (RepositoryError, ValueError, RecursionError) as error:
        raise TrustError(f"not the root of a federation: {shown(error)}") from error
    if metadata.signed.type != ROOT:
        raise TrustError(f"expected root metadata, got {shown(metadata.signed.type)}")
    return metadata


def _check_signatures(by: Any, metadata: Any, whose: str) -> None:
    from tuf.api.exceptions import RepositoryError  # noqa: PLC0415

    try:
        result = by.signed.get_verification_result(ROOT, metadata.signed_bytes, metadata.signatures)
    except (
        RepositoryError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:  # e.g. fractions have no canonical form
        raise TrustError(f"the root's signatures cannot be checked: {shown(error)}") from error
    if not result.verified:
        raise TrustError(
            f"version {metadata.signed.version} of the root has {len(result.signed)} of the "
            f"{by.signed.roles[ROOT].threshold} signatures that it needs by {whose} root keys"
        )


def _root(metadata: Any, data: bytes) -> Root:
    signed = metadata.signed
    federation = signed.unrecognized_fields.get(FEDERATION_FIELD)
    if not isinstance(federation, str):
        raise TrustError(f"the root names no federation ({FEDERATION_FIELD})")
    _check_distinct(signed)
    server_keys = _keys(signed, SERVER)
    if not server_keys:
        raise TrustError(f"the root names no key of the server (role {SERVER})")
    publishers = _keys(signed, PUBLISHERS)
    return Root(
        signed.version,
        federation,
        signed.expires.timestamp(),
        server_keys,
        () if set(publishers) == set(server_keys) else publishers,
        data,
    )


def _check_distinct(signed: Any) -> None:
    """Refuse a root key under two ids: its one holder would count twice."""
    keys = [_material(signed.keys[keyid]) for keyid in signed.roles[ROOT].keyids if keyid in signed.keys]
    readable = [key for key in keys if key]
    if len(set(readable)) < len(readable):
        raise TrustError("the root names one root key under two ids: its holder would count twice")


def _material(key: Any) -> bytes:
    """A public key itself, however it is written; empty: it cannot be read, so it signs nothing either."""
    public: str = key.keyval["public"]
    try:
        if key.keytype == "ed25519":
            return bytes.fromhex(public)
        return load_pem_public_key(public.encode()).public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
    except (ValueError, UnsupportedAlgorithm):
        return b""


def _keys(signed: Any, role: str) -> tuple[PublicKey, ...]:
    keys = []
    for keyid in signed.roles[role].keyids:
        key = signed.keys.get(keyid)
        if key is None:
            raise TrustError(f"role {role}: expected only keys that the root lists, got {shown(keyid)}")
        if key.scheme != "ed25519":
            raise TrustError(f"role {role}: expected Ed25519 keys, got {shown(key.scheme)}")
        try:
            keys.append(PublicKey.from_hex(key.keyval["public"]))
        except SignatureError as error:
            raise TrustError(f"role {role}: {error}") from error
    return tuple(keys)
