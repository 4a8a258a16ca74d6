"""NVIDIA Jetson Orin: a root file system, and the plan by which NVIDIA's tools flash it. Not run on hardware.

Partitions, boot loader and kernel are NVIDIA's. The plan is a shell script, to be read before it is run: it
checks what must be true, adds our three partitions to NVIDIA's, and flashes with root file system redundancy.
See device/jetson_boot.py.
"""

from collections.abc import Mapping
from pathlib import Path

from firmware_tools.build.partitions import Wanted
from firmware_tools.build.plan import Step
from firmware_tools.build.root_formats import TARBALL
from firmware_tools.build.spec import MIB, TargetSpec
from firmware_tools.build.tar_merge import Entry
from firmware_tools.build.ways.way import NOT_RUN, SlotDevice
from firmware_tools.device.jetson_boot import PARTITIONS, TRIAL
from firmware_tools.errors import FirmwareError

FSTAB = """\
# The root file system is read-only; what lasts is on data and identity, which are made at the first boot.
PARTLABEL=data      /data      ext4   noatime,x-systemd.makefs,x-systemd.growfs  0 0
PARTLABEL=identity  /identity  ext4   noatime,x-systemd.makefs                   0 0
PARTLABEL=seed      /seed      vfat   sync,umask=0077,noauto,nofail              0 0
tmpfs               /var       tmpfs  mode=0755,size=25%                         0 0
tmpfs               /tmp       tmpfs  mode=1777,size=25%                         0 0
"""
MASKED = ("nv_update_verifier.service", "l4t-rootfs-validation-config.service")
"""NVIDIA's: they tell UEFI that a boot succeeded before anything of ours was asked."""
_BACK = f"""\
[Unit]
ConditionKernelCommandLine=
ConditionPathExists=/data/{TRIAL}
"""
LAYOUT = "tools/kernel_flash/flash_l4t_t234_nvme_rootfs_ab.xml"
_PARTITION = """\
        <partition name="{name}" type="data">
            <allocation_policy> sequential </allocation_policy>
            <filesystem_type> basic </filesystem_type>
            <size> {size} </size>
            <file_system_attribute> 0 </file_system_attribute>
            <allocation_attribute> 0x8 </allocation_attribute>
            <percent_reserved> 0 </percent_reserved>
        </partition>
"""
_PLAN = """\
#!/bin/sh
# Flash plan for {name}, board {board}, made with its root file system. NOT RUN ON HARDWARE: checked with
# programs that play NVIDIA's. Read it, then run it as root; rootfs.tar.gz and release.json lie beside it:
#
#     sh flash-plan.sh /path/to/Linux_for_Tegra
#
# What must be true before:
#   1. Linux_for_Tegra is NVIDIA's driver package (Jetson Linux 36.x) for this board, unpacked, its rootfs/
#      empty; tools/l4t_flash_prerequisites.sh was run. It lies on no ZFS: NVIDIA's tool serves it by NFS.
#   2. This machine is x86_64 Linux, no virtual machine, and the board hangs on its USB, in recovery mode
#      (lsusb shows 0955:7x23).
#   3. The board's NVMe disk may be erased.
#   4. The disk is at least {disk_mib} MiB; num_sectors in the layout fits it.
#
# Never write an image straight to the NVMe disk: redundancy of the root file system then stays off in UEFI,
# and the device refuses every update, as a failed one would not lead back.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "${{1:?name the folder Linux_for_Tegra}}"
[ "$(id -u)" = 0 ] || {{ echo "run as root: owners and device files are unpacked" >&2; exit 1; }}
[ -x apply_binaries.sh ] || {{ echo "expected Linux_for_Tegra, got $PWD" >&2; exit 1; }}
[ -z "$(ls -A rootfs)" ] || {{ echo "rootfs/ is not empty: it holds another system" >&2; exit 1; }}
[ -f {layout} ] || {{ echo "{layout} is missing" >&2; exit 1; }}

# Root file system, then NVIDIA's kernel and drivers into it.
tar -xpzf "$here/rootfs.tar.gz" --numeric-owner -C rootfs
./apply_binaries.sh
sed -i 's/ rw / ro /' rootfs/boot/extlinux/extlinux.conf

# What updates are made of: the same tree, with NVIDIA's part. Give it to `graftwork-firmware bundle`.
mkdir -p "$here/update"
tar -C rootfs --sort=name --numeric-owner -czf "$here/update/rootfs.tar.gz" .
sum=$(sha256sum "$here/update/rootfs.tar.gz" | cut -d ' ' -f 1)
sed "/rootfs_sha256/s/[0-9a-f]\\{{64\\}}/$sum/" "$here/release.json" > "$here/update/release.json"

# Our partitions, before the table at the end of the disk; once.
cat > graftwork-partitions.xml <<'END'
{partitions}END
grep -q 'partition name="identity"' {layout} ||
    sed -i '/<partition name="secondary_gpt"/e cat graftwork-partitions.xml' {layout}

# Boot loader into QSPI, both root file systems onto NVMe; ROOTFS_AB=1 switches redundancy on in UEFI.
{flash}
# On a module with eMMC and no NVMe, in its place, with our partitions added to that module's layout:
#     {emmc}
#
# After the first boot, on the device:
#     nvbootctrl -t rootfs dump-slots-info        # num_slots: 2, both normal
#     graftwork-firmware device status
"""


class Jetson:
    """The way."""

    root = TARBALL
    products: Mapping[str, str] = {"rootfs": "rootfs.tar.gz", "plan": "flash-plan.sh"}
    note = NOT_RUN
    layers: tuple[str, ...] = ()

    def partitions(self, _spec: TargetSpec) -> Wanted:
        """NVIDIA's tools make them."""
        return []

    def slots(self, _spec: TargetSpec) -> Mapping[str, SlotDevice]:
        """By NVIDIA's names."""
        return {
            slot: SlotDevice(f"/dev/disk/by-partlabel/{name}", "ext4") for slot, name in PARTITIONS.items()
        }

    def files(self, _spec: TargetSpec) -> dict[str, Entry]:
        """Mounts, and what of NVIDIA's must not run."""
        units = "./etc/systemd/system"
        return {
            "./etc/fstab": Entry(FSTAB.encode()),
            f"{units}/graftwork-back.service.d/jetson.conf": Entry(_BACK.encode()),
            **{f"{units}/{name}": Entry(link="/dev/null") for name in MASKED},
        }

    def before(self, _spec: TargetSpec, _firmware: Path | None) -> list[Step]:
        """None: kernel and boot loader are NVIDIA's."""
        return []

    def check(self, _folder: Path) -> str:
        """There is no image."""
        raise FirmwareError("NVIDIA's tools make what a Jetson boots from")

    def after(self, spec: TargetSpec) -> list[Step]:
        """The plan."""
        plan = flash_plan(spec)

        def make(output: Path, _outputs: Mapping[str, Path]) -> None:
            """Write the commands of NVIDIA's tools."""
            output.write_text(plan, "utf-8")

        return [Step("plan", f"flash plan, {NOT_RUN}", ".sh", inputs={"plan": plan}, work=make)]


def flash_plan(spec: TargetSpec) -> str:
    """A shell script that flashes a board with NVIDIA's tools."""
    sizes = {"seed": spec.sizes.seed, "identity": spec.sizes.identity, "data": spec.sizes.data}
    redundant = "ROOTFS_AB=1 ROOTFS_RETRY_COUNT_MAX=3"
    return _PLAN.format(
        name=spec.name,
        board=spec.board,
        layout=LAYOUT,
        disk_mib=2 * spec.sizes.rootfs + sum(sizes.values()) + 1024,
        partitions="".join(_PARTITION.format(name=name, size=mib * MIB) for name, mib in sizes.items()),
        flash=(
            f"{redundant} ./tools/kernel_flash/l4t_initrd_flash.sh --external-device nvme0n1p1 \\\n"
            f"    -c {LAYOUT} -p '-c bootloader/generic/cfg/flash_t234_qspi.xml' \\\n"
            f"    -S {spec.sizes.rootfs}MiB --showlogs --network usb0 {spec.board} external"
        ),
        emmc=f"ROOTFS_AB=1 ROOTFS_RETRY_COUNT_MAX=3 ./flash.sh {spec.board} mmcblk0p1",
    )
