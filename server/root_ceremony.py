"""Making and signing roots of trust: drafted once, signed by each holder of a root key, installed.

A root key never has to be where the server is: a draft is a file that goes from holder to holder. It is TUF
root metadata; see protocol/trust.py for what its roles mean here.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Role, Root
from tuf.api.serialization import DeserializationError

from protocol.errors import TrustError, shown
from protocol.signing import PrivateKey, PublicKey
from protocol.trust import FEDERATION_FIELD

_SERVER = ("snapshot", "timestamp")


def draft(
    federation: str,
    version: int,
    *,
    root_keys: Sequence[PublicKey],
    threshold: int,
    server_keys: Sequence[PublicKey],
    publishers: Sequence[PublicKey],
    expires: float,
) -> bytes:
    """Write a root that nobody has signed yet.

    Args:
        federation: its name.
        version: 1, or one more than the one before.
        root_keys: whose signatures change it.
        threshold: how many of them it takes.
        server_keys: what the server signs with; two while it changes its key.
        publishers: who may sign packages; none: whatever the server announces.
        expires: Unix seconds.

    Raises:
        TrustError: a threshold that cannot be reached, or a key in two places.
    """
    if not 1 <= threshold <= len(set(root_keys)):
        raise TrustError(f"expected a threshold of 1 to {len(set(root_keys))} root keys, got {threshold}")
    if set(root_keys) & set(server_keys):
        raise TrustError("a root key is the server's key, too: it would not be offline")
    root = Root(
        version=version,
        expires=dt.datetime.fromtimestamp(expires, dt.timezone.utc).replace(microsecond=0),
        consistent_snapshot=False,
        unrecognized_fields={FEDERATION_FIELD: federation},
    )
    roles = {"root": root_keys, "targets": publishers or server_keys} | dict.fromkeys(_SERVER, server_keys)
    for role, keys in roles.items():
        root.roles[role] = Role([], 1)
        for key in keys:
            root.add_key(_key(key), role)
    root.roles["root"].threshold = threshold
    return Metadata(root).to_bytes()


def add_signature(data: bytes, key: PrivateKey) -> bytes:
    """Add a holder's signature to a root.

    Any key may sign: a draft does not say whose signature the version before it wants. One that counts for
    neither is ignored where the root is read.

    Raises:
        TrustError: not a root, or it cannot be signed.
    """
    metadata = _read(data)
    signer = CryptoSigner(Ed25519PrivateKey.from_private_bytes(key.raw), _key(key.public))
    try:
        metadata.sign(signer, append=True)
    except UnsignedMetadataError as error:
        raise TrustError(f"the root cannot be signed: {error}") from error
    signed: bytes = metadata.to_bytes()
    return signed


def describe(data: bytes) -> dict[str, Any]:
    """What a root or draft says, for people; nothing is checked.

    Raises:
        TrustError: not a root.
    """
    metadata = _read(data)
    root = metadata.signed

    def keys(role: str) -> list[str]:
        return [root.keys[keyid].keyval["public"] for keyid in root.roles[role].keyids if keyid in root.keys]

    publishers, server = keys("targets"), keys("snapshot")
    return {
        "federation": root.unrecognized_fields.get(FEDERATION_FIELD),
        "version": root.version,
        "expires": root.expires.isoformat(),
        "root_keys": keys("root"),
        "threshold": root.roles["root"].threshold,
        "server_keys": server,
        "publishers": [] if set(publishers) == set(server) else publishers,
        "signatures": len(metadata.signatures),
    }


def _key(key: PublicKey) -> SSlibKey:
    # The id is the key itself: the same key has the same name in every version.
    return SSlibKey(key.raw.hex(), "ed25519", "ed25519", {"public": key.raw.hex()})


def _read(data: bytes) -> Any:
    try:
        metadata: Any = Metadata.from_bytes(data)
    except (DeserializationError, RecursionError) as error:
        raise TrustError(f"not the root of a federation: {shown(error)}") from error
    if metadata.signed.type != Root.type:
        raise TrustError(f"expected root metadata, got {shown(metadata.signed.type)}")
    return metadata
