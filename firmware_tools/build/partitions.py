"""Partitions of an image: where they lie, and how sfdisk makes them.

Identifiers are made of the target's name, so the same specification gives the same bytes.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from firmware_tools.build.spec import MIB, TargetSpec

SECTOR = 512
FIRST_MIB, LAST_MIB = 1, 1
"""Kept free at both ends, for the partition tables."""
SLOTS = {"A": "rootfs-a", "B": "rootfs-b"}
TYPES = {
    "esp": "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    "fat": "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
    "linux": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
}
_NAMESPACE = uuid.UUID("6f0fe5a9-5d1e-4f6e-9f43-0d6f2b0c7a11")

Wanted = Sequence[tuple[str, int, str]]
"""(name, MiB, key of TYPES) of each partition, in their order."""


@dataclass(frozen=True)
class Partition:
    """One partition."""

    name: str
    number: int
    """From 1."""
    start: int
    """Byte of the image."""
    size: int
    """In bytes."""
    uuid: str
    type: str


@dataclass(frozen=True)
class Layout:
    """The partitions of one target."""

    disk_uuid: str
    size: int
    """Of the image in bytes."""
    partitions: tuple[Partition, ...]

    def __getitem__(self, name: str) -> Partition:
        """The partition of a name; KeyError where there is none."""
        for partition in self.partitions:
            if partition.name == name:
                return partition
        raise KeyError(name)

    def sfdisk_script(self) -> str:
        """What `sfdisk` makes the partition table of."""
        lines = [
            "label: gpt",
            f"label-id: {self.disk_uuid}",
            "unit: sectors",
            f"first-lba: {FIRST_MIB * MIB // SECTOR}",
        ]
        lines += [
            f"start={p.start // SECTOR}, size={p.size // SECTOR}, type={p.type}, uuid={p.uuid}, name={p.name}"
            for p in self.partitions
        ]
        return "\n".join(lines) + "\n"


def lay_out(spec: TargetSpec, wanted: Wanted) -> Layout:
    """Partitions one after another."""
    start, partitions = FIRST_MIB * MIB, []
    for number, (name, mib, kind) in enumerate(wanted, start=1):
        partitions.append(Partition(name, number, start, mib * MIB, identifier(spec, name), TYPES[kind]))
        start += mib * MIB
    return Layout(identifier(spec, "disk"), start + LAST_MIB * MIB, tuple(partitions))


def identifier(spec: TargetSpec, what: str) -> str:
    """A UUID that depends on the target and on what it names, and on nothing else."""
    return str(uuid.uuid5(_NAMESPACE, f"{spec.compatible} {what}"))
