"""Roots of trust for tests: drafted and signed as their holders do."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.formats import encode_canonical

from protocol.signing import PrivateKey, PublicKey
from server.root_ceremony import add_signature, draft
from tests.builders import private_key

HOLDERS = tuple(private_key(number) for number in (40, 41, 42))
SERVER, NEXT_SERVER = private_key(100), private_key(101)
EXPIRES = 2_000_000_000.0


def root(
    version: int = 1,
    signers: Sequence[PrivateKey] = HOLDERS[:2],
    *,
    federation: str = "pumps",
    holders: Sequence[PrivateKey] = HOLDERS,
    threshold: int = 2,
    server: Sequence[PrivateKey] = (SERVER,),
    publishers: Sequence[PublicKey] = (),
    expires: float = EXPIRES,
) -> bytes:
    """A root, signed."""
    data = draft(
        federation,
        version,
        root_keys=[key.public for key in holders],
        threshold=threshold,
        server_keys=[key.public for key in server],
        publishers=publishers,
        expires=expires,
    )
    for key in signers:
        data = add_signature(data, key)
    return data


def changed(
    data: bytes, change: Callable[[dict[str, Any]], Any], signers: Sequence[PrivateKey] = ()
) -> bytes:
    """A root with other content, signed anew by whoever signs for it, under the ids that are the keys."""
    tree = json.loads(data)
    change(tree)
    if signers:
        payload = encode_canonical(tree["signed"]).encode()
        tree["signatures"] = [
            {
                "keyid": key.public.raw.hex(),
                "sig": Ed25519PrivateKey.from_private_bytes(key.raw).sign(payload).hex(),
            }
            for key in signers
        ]
    return json.dumps(tree).encode()
