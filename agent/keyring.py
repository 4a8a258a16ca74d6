"""Which keys the device believes, and that the server never goes back behind what the device has seen.

A device is given either the server's key, which then holds for ever, or a root (protocol/trust.py), from
which the server's keys and the publishers follow. What it learned is in the store, so a restart changes
nothing.

Time is the device's clock, but never before the newest moment that the server signed: a clock that was set
back, or has no battery, cannot make what has expired good again.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from agent.store import Store
from protocol import cbor, records
from protocol.errors import SignatureError, TrustError
from protocol.identity import Trust
from protocol.messages import Announcement, Release, peek, verify_message
from protocol.sealing import PublicSealingKey
from protocol.signing import PublicKey
from protocol.trust import Root, check_fresh, first_root, newest_root

Message = TypeVar("Message")

MAX_KEPT_BYTES = 64 * 1024
ISSUED_STEP_SECONDS = 3600.0
"""The newest signed moment is written down when it has advanced by this much: not with every message."""


@dataclass(frozen=True)
class Kept:
    """What the store holds of it."""

    pinned: bytes
    """SHA-256 of the key or root that the device was given: another one starts afresh."""
    root: bytes = b""
    root_version: int = 0
    root_expires: float = 0.0
    server_keys: tuple[bytes, ...] = ()
    publishers: tuple[bytes, ...] = ()
    sealing_key: bytes = b""
    trust_issued: float = 0.0
    """Of the newest message about trust."""


class Keyring:
    """Keys, and the newest of everything that was seen."""

    def __init__(
        self,
        store: Store,
        federation: str,
        now: Callable[[], float],
        *,
        server_key: str = "",
        root: bytes = b"",
    ) -> None:
        """Go on from what the store holds.

        Args:
            store: the device's memory.
            federation: whose root is expected.
            now: Unix seconds.
            server_key: the server's public key, hexadecimal; empty where there is a root.
            root: the signed root that the device was given.

        Raises:
            TrustError: the root is malformed, not signed by enough of its keys, or of another federation.
        """
        self._store = store
        self._federation = federation
        self._now = now
        self._latest = float(store.text("latest_issued") or 0)
        pinned = hashlib.sha256(root or server_key.encode()).digest()
        data = store.blob("trust")
        kept = records.from_numbered(Kept, cbor.decode(data, limit=MAX_KEPT_BYTES)) if data else None
        if kept is None or kept.pinned != pinned:
            kept = Kept(pinned, server_keys=() if root else (PublicKey.from_hex(server_key).raw,))
            if root:
                kept = self._with_root(kept, first_root(root))
        self._kept = kept

    @property
    def server_keys(self) -> tuple[PublicKey, ...]:
        """Any of which may sign what the server says."""
        return tuple(PublicKey(raw) for raw in self._kept.server_keys)

    @property
    def publishers(self) -> tuple[PublicKey, ...]:
        """Who may sign packages, by the root; empty: it names none."""
        return tuple(PublicKey(raw) for raw in self._kept.publishers)

    @property
    def sealing_key(self) -> PublicSealingKey | None:
        """What updates and reports are sealed to; None: the server did not say yet."""
        return PublicSealingKey(self._kept.sealing_key) if self._kept.sealing_key else None

    @property
    def now(self) -> float:
        """Unix seconds, never before what the server signed."""
        return max(self._now(), self._latest)

    def verify(self, kind: type[Message], envelope: bytes, topic: str) -> Message:
        """Read a message of the server.

        Raises:
            ProtocolError: malformed, not signed by the server for `topic`, or the root has expired.
        """
        self._check_root()
        return _verify(kind, envelope, topic, self.server_keys)

    def check_age(self, message: Announcement | Release) -> None:
        """Refuse what has expired or is older than what was seen; note what is newer.

        Raises:
            TrustError: says what was seen, and what came.
        """
        if message.expires and self.now > message.expires:
            raise TrustError(
                "it has expired: an old message was replayed, the server was away for long, or this device's "
                "clock is wrong"
            )
        if isinstance(message, Announcement):
            name, number = "version", message.version
        else:
            name, number = "release", message.number
        seen = self._store.number(f"seen_{name}", -1)
        if number < seen:
            raise TrustError(
                f"{name} {number} is older than {seen}, which this device has seen: an old message was "
                "replayed, or a backup of the server was restored"
            )
        if isinstance(message, Announcement) and number == seen:
            self._check_charter_age(message)
        if number > seen:
            self._store.note_blob(f"seen_{name}", str(number).encode())
        if isinstance(message, Announcement):
            self._store.note_blob("seen_charter", repr(message.issued).encode())
        if message.issued > self._latest + ISSUED_STEP_SECONDS:
            self._latest = message.issued
            self._store.note_blob("latest_issued", repr(message.issued).encode())

    def _check_charter_age(self, announcement: Announcement) -> None:
        """The charter may change without a new version: then the later word holds."""
        seen = float(self._store.text("seen_charter") or 0)
        if announcement.issued < seen:
            raise TrustError(
                f"version {announcement.version} was announced again since: an old message was replayed, or "
                "the server's clock went back"
            )

    def take(self, envelope: bytes, topic: str) -> bool:
        """Take a message about trust; whether it changed which keys hold.

        Raises:
            ProtocolError: not signed by a key that the newest root names, expired, or older than the last
            one.
        """
        trust, kept = peek(Trust, envelope), self._kept
        if kept.root and trust.roots and trust.roots[-1] != kept.root:
            # A root that is known is not read again: what reads it takes memory.
            kept = self._with_root(kept, newest_root(self._root_of(kept), trust.roots))
        if kept.root:
            check_fresh(self._root_of(kept), self.now)
        keys = tuple(PublicKey(raw) for raw in kept.server_keys)
        trust = _verify(Trust, envelope, topic, keys)
        if self.now > trust.expires:
            raise TrustError("it has expired: an old message was replayed, or this device's clock is wrong")
        if trust.issued < kept.trust_issued:
            raise TrustError("it is older than the last one of its kind: an old message was replayed")
        before = (self._kept.server_keys, self._kept.sealing_key)
        PublicSealingKey(trust.sealing_key)  # one that cannot be used must not replace one that can
        self._kept = replace(kept, sealing_key=trust.sealing_key, trust_issued=trust.issued)
        self._store.note_blob("trust", cbor.encode(records.to_numbered(self._kept)))
        return before != (self._kept.server_keys, self._kept.sealing_key)

    def _root_of(self, kept: Kept) -> Root:
        """The root that is kept; its signatures were checked when it came."""
        return Root(
            kept.root_version,
            self._federation,
            kept.root_expires,
            tuple(PublicKey(raw) for raw in kept.server_keys),
            tuple(PublicKey(raw) for raw in kept.publishers),
            kept.root,
        )

    def _with_root(self, kept: Kept, root: Root) -> Kept:
        if root.federation != self._federation:
            raise TrustError(f"expected a root of federation {self._federation}, got {root.federation!r}")
        return replace(
            kept,
            root=root.data,
            root_version=root.version,
            root_expires=root.expires,
            server_keys=tuple(key.raw for key in root.server_keys),
            publishers=tuple(key.raw for key in root.publishers),
        )

    def _check_root(self) -> None:
        if self._kept.root:
            check_fresh(self._root_of(self._kept), self.now)


def _verify(kind: type[Message], envelope: bytes, topic: str, keys: tuple[PublicKey, ...]) -> Message:
    for key in keys[:-1]:
        try:
            return verify_message(kind, envelope, key, topic)
        except SignatureError:
            continue
    return verify_message(kind, envelope, keys[-1], topic)
