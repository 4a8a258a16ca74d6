"""A publisher of releases in a folder, with real keys, and a device that believes its root."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from firmware_tools import release
from firmware_tools.bundles import BundleFacts
from firmware_tools.device import health
from firmware_tools.release import Publisher
from firmware_tools.release_index import Release
from firmware_tools.release_keys import first_root, load_keys
from tests.firmware_tools.fake_device import FakeDevice, new_device

NOW = 1_800_000_000.0
DAY = 86_400.0
BOARD = "graftwork-x86_64-uefi"


@dataclass(frozen=True)
class Site:
    """What one publisher has."""

    folder: Path

    @property
    def index(self) -> Path:
        """Folder that is served."""
        return self.folder / "index"

    @property
    def keys(self) -> Path:
        """Folder of its keys."""
        return self.folder / "keys"

    @property
    def metadata(self) -> Path:
        """Of the index."""
        return self.index / "metadata"

    def publisher(self) -> Publisher:
        """Read the index as the commands do."""
        return Publisher.open(self.index, first_root([self.keys]), load_keys([self.keys]))

    def release(self, version: str, *, now: float = NOW, board: str = BOARD, size: int = 5000) -> Release:
        """Release a version whose bundle is of no meaning."""
        bundle = self.folder / f"{version}.raucb"
        bundle.write_bytes((f"{board} {version} ".encode() * size)[:size])
        return self.publisher().add(bundle, BundleFacts(board, version), now)[0]

    def copy(self, name: str) -> Path:
        """The index as it is now, kept elsewhere."""
        return Path(shutil.copytree(self.index, self.folder / name))

    def served(self, found: Release) -> Path:
        """The file of a bundle."""
        return self.index / "targets" / found.file_name


def new_site(folder: Path, now: float = NOW) -> Site:
    """Keys and an empty index."""
    site = Site(folder)
    folder.mkdir(parents=True, exist_ok=True)
    release.create(site.index, site.keys, now)
    return site


def following_device(folder: Path, root: Path) -> FakeDevice:
    """A device with version 1.0.0, found healthy, that believes a root."""
    device = new_device(folder)
    (folder / "etc/graftwork").mkdir()
    shutil.copy(root, folder / "etc/graftwork/release-root.json")
    assert health.pass_gate(device) == ""
    return device
