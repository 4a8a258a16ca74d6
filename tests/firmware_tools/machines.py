"""What lsblk says on machines of several kinds, cut to the columns that matter and some that do not."""

from typing import Any

GIB = 1 << 30


def row(name: str, kind: str, size: int, **columns: Any) -> dict[str, Any]:
    """One device, as `lsblk --json --bytes -O` prints it."""
    children = columns.pop("children", None)
    mounts = columns.pop("mountpoints", [None])
    usual = {
        "name": name,
        "kname": name,
        "path": f"/dev/{name}",
        "type": kind,
        "size": size,
        "ro": False,
        "rm": False,
        "hotplug": False,
        "tran": None,
        "model": None,
        "vendor": None,
        "serial": None,
        "fstype": None,
        "mountpoint": mounts[0],
        "mountpoints": mounts,
    }
    found = {**usual, **columns}
    return {**found, "children": children} if children else found


USB = {"rm": True, "hotplug": True, "tran": "usb"}

LAPTOP = row(
    "nvme0n1",
    "disk",
    512 * GIB,
    tran="nvme",
    model="SAMSUNG MZVL2512",
    serial="S64KNX0T",
    children=[
        row("nvme0n1p1", "part", GIB, fstype="vfat", mountpoints=["/boot/efi"], tran="nvme"),
        row(
            "nvme0n1p2",
            "part",
            511 * GIB,
            fstype="crypto_LUKS",
            tran="nvme",
            children=[
                row(
                    "luks-1",
                    "crypt",
                    511 * GIB,
                    path="/dev/mapper/luks-1",
                    children=[
                        row("vg-root", "lvm", 500 * GIB, path="/dev/mapper/vg-root", mountpoints=["/"]),
                        row("vg-swap", "lvm", 8 * GIB, path="/dev/mapper/vg-swap", mountpoints=["[SWAP]"]),
                    ],
                )
            ],
        ),
    ],
)
CARD = row("sdb", "disk", 32 * GIB, vendor="Generic ", model="STORAGE DEVICE", serial="000000001206", **USB)
SMALL_CARD = row("mmcblk0", "disk", GIB, tran="mmc", hotplug=True, serial="0x1234abcd")
EMPTY_READER = row("sdc", "disk", 0, vendor="Generic", model="SD/MMC", **USB)
MOUNTED_STICK = row(
    "sdd",
    "disk",
    16 * GIB,
    model="Ultra Fit",
    **USB,
    children=[row("sdd1", "part", 16 * GIB, fstype="vfat", mountpoints=["/media/ann/PHOTOS"], **USB)],
)
LOCKED_CARD = row("sde", "disk", 32 * GIB, model="SD/MMC", ro=True, **USB)
RAID_DISK = row(
    "sdf",
    "disk",
    100 * GIB,
    tran="sata",
    model="WDC WD10",
    fstype="linux_raid_member",
    children=[row("md0", "raid1", 100 * GIB)],
)
LVM_DISK = row(
    "sdg", "disk", 64 * GIB, **USB, children=[row("sdg1", "part", 64 * GIB, fstype="LVM2_member", **USB)]
)
LARGE_STICK = row("sdh", "disk", 2000 * GIB, model="Portable SSD", **USB)
INTERNAL_DISK = row("sdi", "disk", 100 * GIB, tran="sata", model="Crucial")
OPTICAL = row("sr0", "rom", 4 * GIB, rm=True)
OLD_WORDS = {  # util-linux 2.32: strings throughout, no paths
    "name": "sdj",
    "type": "disk",
    "size": "34359738368",
    "ro": "0",
    "rm": "1",
    "mountpoint": None,
    "model": "Card",
}
EVERYTHING = {
    "blockdevices": [
        LAPTOP,
        CARD,
        SMALL_CARD,
        EMPTY_READER,
        MOUNTED_STICK,
        LOCKED_CARD,
        RAID_DISK,
        LVM_DISK,
        LARGE_STICK,
        INTERNAL_DISK,
        OPTICAL,
        OLD_WORDS,
    ]
}
