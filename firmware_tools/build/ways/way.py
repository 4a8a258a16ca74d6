"""What the rest of the builder asks of a way to boot."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from firmware_tools.build.partitions import SLOTS, Layout, Wanted
from firmware_tools.build.plan import Step
from firmware_tools.build.root_formats import RootFormat
from firmware_tools.build.spec import TargetSpec
from firmware_tools.build.tar_merge import Entry

BOOT_NAME = "./etc/graftwork-boot"
"""Says on a device how it boots; absent: grub-efi."""
NOT_RUN = "not run on hardware: checked by golden files and by programs that play the board's own"


@dataclass(frozen=True)
class SlotDevice:
    """A slot as RAUC writes it."""

    device: str
    type: str
    """Of RAUC: raw, ext4."""


def raw_slots(layout: Layout) -> dict[str, SlotDevice]:
    """Slots that are partitions of ours, by the partitions' identifiers."""
    return {
        slot: SlotDevice(f"/dev/disk/by-partuuid/{layout[name].uuid}", "raw") for slot, name in SLOTS.items()
    }


class WayToBoot(Protocol):
    """One way, from the root file system to what is brought onto a board."""

    root: RootFormat
    products: Mapping[str, str]
    """Steps whose outputs are handed out, and the names that they get."""
    note: str
    """What `build` says at its end; empty: the way is run in tests."""
    layers: tuple[str, ...]
    """Steps whose outputs, tars, lie over the system in the root file system."""

    def partitions(self, spec: TargetSpec) -> Wanted:
        """The partitions of an image; none: others make them."""
        ...

    def slots(self, spec: TargetSpec) -> Mapping[str, SlotDevice]:
        """Devices by slot."""
        ...

    def files(self, spec: TargetSpec) -> dict[str, Entry]:
        """Files of the root file system that are for this way."""
        ...

    def before(self, spec: TargetSpec, firmware: Path | None) -> list[Step]:
        """Steps between the system and the root file system.

        Args:
            spec: the target.
            firmware: folder with the board's own boot files, where Debian's are not to be taken.
        """
        ...

    def after(self, spec: TargetSpec) -> list[Step]:
        """Steps from the root file system to what is handed out."""
        ...

    def check(self, folder: Path) -> str:
        """Whether what boots a fresh image is as it leaves the factory; returns that in words.

        Args:
            folder: has a folder for each partition with FAT, with its files.

        Raises:
            FirmwareError: it is not.
        """
        ...
