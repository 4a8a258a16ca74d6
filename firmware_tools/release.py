"""An index of releases from its publisher's side: what may be added, and what is signed anew by whom.

root       a threshold of offline keys: says the other keys; needed when one of them changes
targets    says what is released; needed for `add` and `floor`
snapshot, timestamp   say what is newest, for a few weeks; a machine that is online renews them

Nothing is signed again that was not signed by these keys before: who can write to the folder that is served
cannot have a bundle of his own signed by the next `add`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tuf.api.metadata import Metadata, MetaFile, Role, Root, Snapshot, TargetFile, Targets, Timestamp

from firmware_tools import release_files
from firmware_tools.build.plan import file_sha256
from firmware_tools.errors import FirmwareError
from firmware_tools.release_index import (
    FLOORS,
    KEY_NAME,
    METADATA,
    SIGNED,
    Index,
    Release,
    check_compatible,
    moment,
    read_index,
    written,
)
from firmware_tools.release_keys import ROOT_FILE, Signers, check_apart, make_key
from firmware_tools.versions import numbers
from runtime import whole_files

if TYPE_CHECKING:
    from pathlib import Path

    from firmware_tools.bundles import BundleFacts

DAY: Final = 86_400.0
ROOT_DAYS, TARGETS_DAYS, INDEX_DAYS = 730, 365, 14
ROLES = ("targets", "snapshot", "timestamp")


def create(folder: Path, keys: Path, now: float, *, root_keys: int = 3, threshold: int = 2) -> None:
    """Make keys and an index that holds nothing yet.

    Args:
        folder: what will be served.
        keys: new folder for the keys, and for the root that images are built with.
        now: Unix seconds.
        root_keys: how many of them.
        threshold: how many of those it takes to change a key.

    Raises:
        FirmwareError: there is an index or a key already, or the folders are not apart.
    """
    check_apart(folder, keys)
    if not 1 <= threshold <= root_keys <= 9:
        raise FirmwareError(f"expected a threshold of 1 to {root_keys} of at most 9 keys, got {threshold}")
    if (folder / METADATA).exists() or any(keys.glob("*.key")) or (keys / ROOT_FILE).exists():
        raise FirmwareError(f"{folder} or {keys} holds an index or keys already; they are never overwritten")
    root = Root(consistent_snapshot=True, unrecognized_fields={SIGNED: written(now)})
    signers: Signers = {}
    names = {"root": [f"root-{n + 1}" for n in range(root_keys)]} | {role: [role] for role in ROLES}
    for role, members in names.items():
        root.roles[role] = Role([], 1)
        for name in members:
            signer = make_key(keys, name, name)
            root.add_key(signer.public_key, role)
            signers[signer.public_key.keyid] = signer
    root.roles["root"].threshold = threshold
    targets = Targets(unrecognized_fields={FLOORS: {}})
    index = release_files.Signed(
        Metadata(root), Metadata(targets), Metadata(Snapshot()), Metadata(Timestamp())
    )
    for metadata in vars(index).values():
        metadata.signed.version = 0  # signing makes it 1
    Publisher(folder, index, signers).sign(now, root=True, targets=True)
    whole_files.write(keys / ROOT_FILE, index.root.to_bytes(), whole_files.PUBLIC)


class Publisher:
    """Who signs an index."""

    def __init__(self, folder: Path, index: release_files.Signed, signers: Signers) -> None:
        self._folder = folder
        self._signed = index
        self._signers = signers

    @classmethod
    def open(cls, folder: Path, first_root: bytes, signers: Signers) -> Publisher:
        """Read an index whose signatures hold.

        Raises:
            FirmwareError: they do not.
        """
        return cls(folder, release_files.read(folder, first_root), signers)

    @property
    def index(self) -> Index:
        """What it says."""
        return read_index(self._signed.targets.signed)

    def expiry(self) -> dict[str, float]:
        """Until when each role's file is good: Unix seconds by role."""
        files: dict[str, Metadata[Any]] = vars(self._signed)
        return {role: metadata.signed.expires.timestamp() for role, metadata in files.items()}

    def add(
        self, bundle: Path, facts: BundleFacts, now: float, *, older: bool = False, days: int = INDEX_DAYS
    ) -> tuple[Release, bool]:
        """Add a bundle that was verified; returns what stands in the index, and whether that is new.

        Args:
            bundle: file.
            facts: what it says of itself.
            now: Unix seconds.
            older: take a version below the newest one for these boards.
            days: that the index is good for.

        Raises:
            FirmwareError: the version is there with other bytes, too low, or it cannot be signed.
        """
        name = f"{check_compatible(facts.compatible)}-{facts.version}.raucb"
        found = file_sha256(bundle)
        release = Release(name, facts.compatible, facts.version, bundle.stat().st_size, found)
        newest, floor = self.index.newest(facts.compatible), self.index.floors.get(facts.compatible, "")
        if release in self.index.releases:
            return release, False
        if name in self._signed.targets.signed.targets:
            raise FirmwareError(
                f"{facts.version} for {facts.compatible} is in the index with other bytes; what was released "
                "never changes: give it a new version"
            )
        if floor and numbers(facts.version) < numbers(floor):
            raise FirmwareError(
                f"{facts.version} is below {floor}, the lowest version that devices may install"
            )
        if newest is not None and numbers(facts.version) < numbers(newest.version) and not older:
            raise FirmwareError(
                f"{facts.version} is below {newest.version}, the newest for {facts.compatible}: no device "
                "would take it; to have it there all the same, use --older"
            )
        target = TargetFile(
            release.length,
            {"sha256": release.sha256},
            name,
            {"custom": {"compatible": release.compatible, "version": release.version}},
        )
        self._needs("targets")
        release_files.copy_bundle(self._folder, bundle, release)
        self._signed.targets.signed.targets[name] = target
        self.sign(now, targets=True, days=days)
        return release, True

    def set_floor(self, compatible: str, version: str, now: float, *, days: int = INDEX_DAYS) -> None:
        """Say the lowest version that devices may install from now on.

        Raises:
            FirmwareError: it would sink, or no release reaches it.
        """
        before, newest = self.index.floors.get(compatible, ""), self.index.newest(compatible)
        if newest is None or numbers(newest.version) < numbers(version):
            raise FirmwareError(
                f"expected a version up to {newest.version if newest else '(none is released)'} for "
                f"{compatible}, got {version}: devices could install nothing"
            )
        if before and numbers(version) < numbers(before):
            raise FirmwareError(
                f"the floor is {before}, and devices that have seen it never go below; expected at least that"
            )
        self._signed.targets.signed.unrecognized_fields[FLOORS] = {**self.index.floors, compatible: version}
        self.sign(now, targets=True, days=days)

    def refresh(self, now: float, *, days: int = INDEX_DAYS, root: bool = False) -> None:
        """Renew for how long the index is good; `root`: also for how long the root is.

        What is released is renewed, too, where its key is at hand and half of its time has passed.
        """
        half = self.expiry()["targets"] - now < TARGETS_DAYS / 2 * DAY
        self.sign(now, root=root, targets=half and self._has("targets"), days=days)

    def rotate(self, name: str, keys: Path, now: float, *, days: int = INDEX_DAYS) -> Path:
        """Put a new key into the place of one; needs a threshold of root keys, and all others.

        Args:
            name: of the key, e.g. timestamp or root-2.
            keys: folder for the new one.
            now: Unix seconds.
            days: that the index is good for.

        Returns:
            The new key's file.

        Raises:
            FirmwareError: there is no such key, or too few signatures.
        """
        check_apart(self._folder, keys)
        root = self._signed.root.signed
        role = "root" if name.startswith("root-") else name
        if role not in root.roles:
            raise FirmwareError(f"no key {name!r}; expected one of {', '.join(self.key_names())}")
        old = [id_ for id_ in root.roles[role].keyids if root.keys[id_].unrecognized_fields[KEY_NAME] == name]
        if not old:
            raise FirmwareError(f"no key {name!r}; expected one of {', '.join(self.key_names())}")
        for other in ("root", *ROLES):
            if other != role or role == "root":
                self._needs(other)
        file_name = f"{name}.v{root.version + 1}"
        signer = make_key(keys, name, file_name)
        before = self._keys_of("root")
        root.revoke_key(old[0], role)
        root.add_key(signer.public_key, role)
        self._signers[signer.public_key.keyid] = signer
        self.sign(now, root=True, targets=True, days=days, root_before=before)
        return keys / f"{file_name}.key"

    def key_names(self) -> list[str]:
        """Names of the keys that count."""
        return sorted(
            str(key.unrecognized_fields[KEY_NAME]) for key in self._signed.root.signed.keys.values()
        )

    def sign(
        self,
        now: float,
        *,
        root: bool = False,
        targets: bool = False,
        days: int = INDEX_DAYS,
        root_before: list[str] | None = None,
    ) -> None:
        """Sign what is to change, and write it.

        Raises:
            FirmwareError: a key is missing; nothing was written.
        """
        index = self._signed
        if root:
            index.root.signed.unrecognized_fields[SIGNED] = written(now)
            keys = {*(root_before or ()), *self._keys_of("root")}
            self._sign(index.root, "root", now, ROOT_DAYS, keys)
        if targets:
            self._sign(index.targets, "targets", now, TARGETS_DAYS)
        described = MetaFile.from_data(index.targets.signed.version, index.targets.to_bytes(), ["sha256"])
        index.snapshot.signed.meta["targets.json"] = described
        self._sign(index.snapshot, "snapshot", now, days)
        version, data = index.snapshot.signed.version, index.snapshot.to_bytes()
        index.timestamp.signed.snapshot_meta = MetaFile.from_data(version, data, ["sha256"])
        index.timestamp.signed.unrecognized_fields[SIGNED] = written(now)
        self._sign(index.timestamp, "timestamp", now, days)
        release_files.write(self._folder, index, new_root=root)

    def _sign(
        self, metadata: Metadata[Any], role: str, now: float, days: int, keys: set[str] | None = None
    ) -> None:
        self._needs(role)
        metadata.signed.version += 1
        metadata.signed.expires = moment(now + days * DAY)
        metadata.signatures.clear()
        for keyid in sorted(keys or self._keys_of(role)):
            if keyid in self._signers:
                metadata.sign(self._signers[keyid], append=True)

    def _keys_of(self, role: str) -> list[str]:
        return list(self._signed.root.signed.roles[role].keyids)

    def _has(self, role: str) -> bool:
        there = sum(keyid in self._signers for keyid in self._keys_of(role))
        return there >= self._signed.root.signed.roles[role].threshold

    def _needs(self, role: str) -> None:
        if not self._has(role):
            root = self._signed.root.signed
            names = [str(root.keys[keyid].unrecognized_fields[KEY_NAME]) for keyid in self._keys_of(role)]
            raise FirmwareError(
                f"expected {root.roles[role].threshold} of the keys {', '.join(names)} in the folders given "
                "with --keys"
            )
