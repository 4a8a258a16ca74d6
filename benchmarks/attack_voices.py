"""Everything that can be said to the devices of a federation, by whoever holds its keys or others."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.identity import Identity
from protocol.artifacts import describe
from protocol.charter import TrainingPolicy
from protocol.identity import CertificateResponse, Trust
from protocol.messages import Announcement, Chunk, Receipt, Release, Round, sign_message
from protocol.package import pack, unpack
from protocol.release_coding import adapter_sha256
from protocol.sealing import SealingKey
from protocol.signing import PrivateKey
from protocol.topics import Topics
from server.authority import Authority
from server.root_ceremony import add_signature, draft
from simulation.fake_broker import FakeClock

DEVICE, FEDERATION = "pump-1", "plant"
DAY = 86_400.0
START = 1_800_000_000.0
VALIDITY = 90 * DAY


class Voices:
    """The keys of a federation, and messages in its order of time."""

    def __init__(self, directory: Path, package: bytes) -> None:
        """Make all keys.

        Args:
            directory: for the certificate authority.
            package: that the federation runs; it is signed anew, by the publisher here.
        """
        self.clock = FakeClock(START)
        self.topics = Topics(FEDERATION)
        self.server, self.publisher = PrivateKey.generate(), PrivateKey.generate()
        self.holders = [PrivateKey.generate() for _ in range(3)]
        self.sealing = SealingKey.generate()
        self.roots = [self.root(1)]
        unpacked = unpack(package, None)
        self.members, self.manifest = unpacked.members, replace(unpacked.manifest, version=1)
        self.package = self.packed()
        self.base = adapter_sha256(unpacked.adapter)
        self.version, self.release, self.round = 0, 0, 0
        """Newest that was said."""
        self.offers: dict[bytes, bytes] = {}
        """Artifacts whose chunks the server hands out, by SHA-256."""
        self._authority = Authority.create(directory / "ca", FEDERATION, START)

    def root(
        self,
        version: int,
        *,
        server: PrivateKey | None = None,
        signers: Iterable[PrivateKey] | None = None,
        federation: str = FEDERATION,
        holders: list[PrivateKey] | None = None,
        days: float = 365.0,
    ) -> bytes:
        """A version of the root; two of three holders have to sign."""
        holders = holders or self.holders
        data = draft(
            federation,
            version,
            root_keys=[key.public for key in holders],
            threshold=2,
            server_keys=[(server or self.server).public],
            publishers=[self.publisher.public],
            expires=self.clock() + days * DAY,
        )
        for key in holders[:2] if signers is None else signers:
            data = add_signature(data, key)
        return data

    def packed(self, key: PrivateKey | None = None, **changes: Any) -> bytes:
        """A package, of the publisher's by default."""
        return pack(replace(self.manifest, **changes), self.members, key or self.publisher)

    def said(self, topic: str, message: object, key: PrivateKey | None = None) -> tuple[str, bytes]:
        """Topic and envelope of a message, by default the server's."""
        return topic, sign_message(message, key or self.server, topic)

    def trust(
        self, roots: list[bytes] | None = None, key: PrivateKey | None = None, **changes: Any
    ) -> tuple[str, bytes]:
        """A word on the keys."""
        issued = self.clock()
        message = Trust(
            tuple(self.roots if roots is None else roots), self.sealing.public.raw, issued, issued + VALIDITY
        )
        return self.said(self.topics.all("trust"), replace(message, **changes), key)

    def announcement(self, data: bytes, version: int, *, offer: bool = True, **changes: Any) -> Announcement:
        """An announcement of a package, whose chunks are on offer from then on."""
        artifact = describe(data)
        if offer:
            self.offers = {artifact.sha256: data}
        policy = replace(TrainingPolicy(), epochs=1)
        issued = self.clock()
        message = Announcement(version, "trial", artifact, policy, issued=issued, expires=issued + VALIDITY)
        return replace(message, **changes)

    def offer(self, sha256: bytes, data: bytes) -> None:
        """Answer requests for the chunks of an artifact with those of `data`."""
        self.offers = {sha256: data}

    def announced(self, message: Announcement, key: PrivateKey | None = None) -> tuple[str, bytes]:
        """As it travels."""
        return self.said(self.topics.all("announcement"), message, key)

    def released(self, number: int, key: PrivateKey | None = None, **changes: Any) -> tuple[str, bytes]:
        """A release with the package's initial adapter."""
        issued = self.clock()
        package = describe(self.package).sha256
        message = Release(number, package, b"", self.base, b"", issued=issued, expires=issued + VALIDITY)
        return self.said(self.topics.all("release"), replace(message, **changes), key)

    def opened(self, number: int, key: PrivateKey | None = None) -> tuple[str, bytes]:
        """A round that the device is to answer."""
        package = describe(self.package).sha256
        message = Round(number, package, self.base, (DEVICE,), self.clock() + 600)
        return self.said(self.topics.all("round"), message, key)

    def receipt(
        self, update: bytes, device: str = DEVICE, key: PrivateKey | None = None
    ) -> tuple[str, bytes]:
        """The word that an update is counted, as it is said to `device`."""
        return self.said(self.topics.down(device, "receipt"), Receipt(update, self.round, "counted"), key)

    def chunk(self, chunk: Chunk, device: str = DEVICE, key: PrivateKey | None = None) -> tuple[str, bytes]:
        """A chunk as it travels to `device`."""
        return self.said(self.topics.down(device, "chunk"), chunk, key)

    def certificate(self, identity: Identity, name: str) -> CertificateResponse:
        """The authority's answer to what a device asks for."""
        request = identity.signing_request()
        issued = self._authority.issue_device(request, name, self.clock(), days=60)
        return CertificateResponse("issued", hashlib.sha256(request).digest(), issued.certificate)
