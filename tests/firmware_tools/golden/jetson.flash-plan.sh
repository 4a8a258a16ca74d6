#!/bin/sh
# Flash plan for jetson, board jetson-orin-nano-devkit, made with its root file system. NOT RUN ON HARDWARE: checked with
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
#   4. The disk is at least 17940 MiB; num_sectors in the layout fits it.
#
# Never write an image straight to the NVMe disk: redundancy of the root file system then stays off in UEFI,
# and the device refuses every update, as a failed one would not lead back.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "${1:?name the folder Linux_for_Tegra}"
[ "$(id -u)" = 0 ] || { echo "run as root: owners and device files are unpacked" >&2; exit 1; }
[ -x apply_binaries.sh ] || { echo "expected Linux_for_Tegra, got $PWD" >&2; exit 1; }
[ -z "$(ls -A rootfs)" ] || { echo "rootfs/ is not empty: it holds another system" >&2; exit 1; }
[ -f tools/kernel_flash/flash_l4t_t234_nvme_rootfs_ab.xml ] || { echo "tools/kernel_flash/flash_l4t_t234_nvme_rootfs_ab.xml is missing" >&2; exit 1; }

# Root file system, then NVIDIA's kernel and drivers into it.
tar -xpzf "$here/rootfs.tar.gz" --numeric-owner -C rootfs
./apply_binaries.sh
sed -i 's/ rw / ro /' rootfs/boot/extlinux/extlinux.conf

# What updates are made of: the same tree, with NVIDIA's part. Give it to `graftwork-firmware bundle`.
mkdir -p "$here/update"
tar -C rootfs --sort=name --numeric-owner -czf "$here/update/rootfs.tar.gz" .
sum=$(sha256sum "$here/update/rootfs.tar.gz" | cut -d ' ' -f 1)
sed "/rootfs_sha256/s/[0-9a-f]\{64\}/$sum/" "$here/release.json" > "$here/update/release.json"

# Our partitions, before the table at the end of the disk; once.
cat > graftwork-partitions.xml <<'END'
        <partition name="seed" type="data">
            <allocation_policy> sequential </allocation_policy>
            <filesystem_type> basic </filesystem_type>
            <size> 4194304 </size>
            <file_system_attribute> 0 </file_system_attribute>
            <allocation_attribute> 0x8 </allocation_attribute>
            <percent_reserved> 0 </percent_reserved>
        </partition>
        <partition name="identity" type="data">
            <allocation_policy> sequential </allocation_policy>
            <filesystem_type> basic </filesystem_type>
            <size> 16777216 </size>
            <file_system_attribute> 0 </file_system_attribute>
            <allocation_attribute> 0x8 </allocation_attribute>
            <percent_reserved> 0 </percent_reserved>
        </partition>
        <partition name="data" type="data">
            <allocation_policy> sequential </allocation_policy>
            <filesystem_type> basic </filesystem_type>
            <size> 536870912 </size>
            <file_system_attribute> 0 </file_system_attribute>
            <allocation_attribute> 0x8 </allocation_attribute>
            <percent_reserved> 0 </percent_reserved>
        </partition>
END
grep -q 'partition name="identity"' tools/kernel_flash/flash_l4t_t234_nvme_rootfs_ab.xml ||
    sed -i '/<partition name="secondary_gpt"/e cat graftwork-partitions.xml' tools/kernel_flash/flash_l4t_t234_nvme_rootfs_ab.xml

# Boot loader into QSPI, both root file systems onto NVMe; ROOTFS_AB=1 switches redundancy on in UEFI.
ROOTFS_AB=1 ROOTFS_RETRY_COUNT_MAX=3 ./tools/kernel_flash/l4t_initrd_flash.sh --external-device nvme0n1p1 \
    -c tools/kernel_flash/flash_l4t_t234_nvme_rootfs_ab.xml -p '-c bootloader/generic/cfg/flash_t234_qspi.xml' \
    -S 8192MiB --showlogs --network usb0 jetson-orin-nano-devkit external
# On a module with eMMC and no NVMe, in its place, with our partitions added to that module's layout:
#     ROOTFS_AB=1 ROOTFS_RETRY_COUNT_MAX=3 ./flash.sh jetson-orin-nano-devkit mmcblk0p1
#
# After the first boot, on the device:
#     nvbootctrl -t rootfs dump-slots-info        # num_slots: 2, both normal
#     graftwork-firmware device status
