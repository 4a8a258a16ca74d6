"""Debian of a target: its packages, the drivers of its initramfs, and a user for the agent."""

from firmware_tools.build.plan import Step
from firmware_tools.build.spec import TargetSpec
from firmware_tools.build.tar_merge import MOMENT

USER_ID = 990
PACKAGES = (
    "systemd", "systemd-sysv", "systemd-resolved", "udev", "dbus", "kmod", "iproute2", "util-linux",
    "e2fsprogs", "dosfstools", "ca-certificates", "python3", "initramfs-tools", "zstd", "rauc",
    "rauc-service", "libgomp1",
)  # fmt: skip
MODULES = (
    "squashfs",
    "ext4",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "virtio_blk",
    "virtio_pci",
    "virtio_net",
    "ahci",
    "nvme",
    "sd_mod",
)
FOREIGN_MODULES = (
    "mmc_block",
    "sdhci_pci",
    "sdhci_iproc",
    "sdhci_brcmstb",
    "usb_storage",
    "uas",
    "xhci_pci",
    "virtio_mmio",
)
"""Beside MODULES, where the initramfs holds nothing else."""
ENVIRONMENT = {"SOURCE_DATE_EPOCH": str(MOMENT)}


def debian_step(spec: TargetSpec) -> Step:
    """Debian's packages, configured: in emulation, where the architecture is foreign."""
    include = ",".join((*PACKAGES, *((spec.kernel,) if spec.kernel else ()), *spec.packages))
    user = f"useradd --system --uid {USER_ID} --gid {USER_ID} --no-create-home --home-dir /data/graftwork"
    sources = [spec.suite, "{output}"]
    if spec.sources:  # then mmdebstrap adds none by itself
        sources += [
            f"deb http://deb.debian.org/debian {spec.suite} main",
            f"deb http://deb.debian.org/debian {spec.suite}-updates main",
            f"deb http://security.debian.org/debian-security {spec.suite}-security main",
            *spec.sources,
        ]
    return Step(
        "base",
        f"Debian {spec.suite} for {spec.architecture}",
        ".tar",
        (
            (
                "mmdebstrap", "--quiet", "--variant=minbase", f"--architectures={spec.architecture}",
                "--skip=output/dev",  # which nobody but root could unpack again
                f"--include={include}",
                '--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Languages "none"',
                "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                *(["--dpkgopt=force-confold"] if spec.initramfs == "list" else []),
                f"--essential-hook={_initramfs(spec)}",
                f'--customize-hook=chroot "$1" groupadd --system --gid {USER_ID} graftwork',
                f'--customize-hook=chroot "$1" {user} --shell /usr/sbin/nologin graftwork',
                *sources,
            ),
        ),
        environment=ENVIRONMENT,
    )  # fmt: skip


def _initramfs(spec: TargetSpec) -> str:
    """A command that says, before there is a kernel, which drivers its initramfs is to hold."""
    folder = '"$1/etc/initramfs-tools"'
    modules = "\\n".join((*MODULES, *(FOREIGN_MODULES if spec.initramfs == "list" else ())))
    command = f'mkdir -p {folder} && printf "{modules}\\n" > {folder}/modules'
    if spec.initramfs == "list":
        settings = "MODULES=list\\nCOMPRESS=zstd\\nCOMPRESSLEVEL=1\\n"
        command += f' && mkdir -p {folder}/conf.d && printf "{settings}" > {folder}/conf.d/graftwork'
        # Made once, with the kernel, and not again when all packages are there.
        command += f" && echo update_initramfs=no > {folder}/update-initramfs.conf"
    return command
