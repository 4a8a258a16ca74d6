"""The root file system: Debian, the agent with its locked requirements, and what makes a device of it.

    base     Debian packages, a user for the agent         mmdebstrap
    wheels   the agent and its locked requirements         pip, and trimmed
    system   both, with the wheels compiled to bytecode    mmdebstrap as a way into the tree, without packages
    rootfs   units, configuration and version over it      tar, then packed

No step needs root where mmdebstrap can do without (user namespaces), and none mounts anything.
"""

import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from firmware_tools.build.debian import ENVIRONMENT, debian_step
from firmware_tools.build.plan import Step
from firmware_tools.build.requirements import SITE, fetch_command
from firmware_tools.build.spec import TargetSpec
from firmware_tools.build.tar_merge import MOMENT, Entry, folder_layer, merge, tar_layer
from firmware_tools.build.ways import way_of
from firmware_tools.build.ways.way import BOOT_NAME

DEFAULT_BOOT = "grub-efi"
"""What a device takes itself to have where nothing is said."""
PROGRAMS = {"graftwork-agent": "agent.__main__", "graftwork-firmware": "firmware_tools.__main__"}
ENABLED = ("graftwork-seed", "graftwork-agent", "graftwork-health", "systemd-networkd", "systemd-resolved")
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "systemd-networkd-wait-online.service",
    "systemd-firstboot.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
    "sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
)  # fmt: skip
AUTOLOGIN = (
    b"[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 - $TERM\n"
)


def rootfs_steps(
    spec: TargetSpec,
    wheel: Path,
    lock_file: Path,
    version: str,
    keyring: bytes,
    *,
    test_console: bool = False,
    overlay: Path | None = None,
    firmware: Path | None = None,
    release_root: bytes = b"",
    floor: str = "",
) -> list[Step]:
    """Steps to the root file system of a version.

    Args:
        spec: the target.
        wheel: of graftwork.
        lock_file: requirements with hashes.
        version: of the image.
        keyring: certificates (PEM) that bundles must be signed under.
        test_console: logs root in on the serial line; never for a device.
        overlay: folder of more files, which win over all others.
        firmware: folder with the board's own boot files, where Debian's are not to be taken.
        release_root: root of the index of releases that devices believe; empty: they follow none.
        floor: the lowest version that devices install; empty: there is none.
    """
    files = device_files(
        spec, version, keyring, test_console=test_console, release_root=release_root, floor=floor
    )
    if overlay is not None:
        files |= folder_layer(overlay, ".")
    steps = [debian_step(spec), _wheels(spec, wheel, lock_file), _system(spec)]
    return [*steps, *way_of(spec).before(spec, firmware), _rootfs(spec, version, files)]


def device_files(
    spec: TargetSpec,
    version: str,
    keyring: bytes,
    *,
    test_console: bool = False,
    release_root: bytes = b"",
    floor: str = "",
) -> dict[str, Entry]:
    """What makes a device of the system, by path; `test_console` logs root in on the serial line."""
    overlay = Path(str(resources.files("firmware_tools"))) / "overlay"
    files = folder_layer(overlay / "etc", "./etc")
    files |= {
        "./etc/machine-id": Entry(b""),
        "./etc/hostname": Entry(b"graftwork\n"),
        "./etc/resolv.conf": Entry(link="/run/systemd/resolve/resolv.conf"),
        "./etc/rauc/system.conf": Entry(_rauc_configuration(spec, floor).encode()),
        "./etc/rauc/keyring.pem": Entry(keyring),
        "./etc/graftwork-release": Entry(_release(spec, version, floor)),
        "./usr/lib/graftwork/boot-backend": Entry(
            _program(spec, "firmware_tools.device.boot_backend"), mode=0o755
        ),
    }
    for name in ("dev", "proc", "sys", "run", "tmp", "var", "data", "identity", "seed", "boot/env"):
        files[f"./{name}"] = Entry(mode=0o755)
    for name, module in PROGRAMS.items():
        files[f"./usr/bin/{name}"] = Entry(_program(spec, module), mode=0o755)
    units = "./etc/systemd/system"
    if test_console:
        serial = spec.console.partition(",")[0] or "ttyS0"
        files[f"{units}/serial-getty@{serial}.service.d/autologin.conf"] = Entry(AUTOLOGIN)
    for name in ENABLED:
        home = "/etc/systemd/system" if name.startswith("graftwork") else "/usr/lib/systemd/system"
        files[f"{units}/multi-user.target.wants/{name}.service"] = Entry(link=f"{home}/{name}.service")
    timer = "graftwork-update.timer"
    files[f"{units}/timers.target.wants/{timer}"] = Entry(link=f"/etc/systemd/system/{timer}")
    if release_root:
        files["./etc/graftwork/release-root.json"] = Entry(release_root)
    for name in MASKED:
        files[f"{units}/{name}"] = Entry(link="/dev/null")
    if spec.boot != DEFAULT_BOOT:
        files[BOOT_NAME] = Entry(f"{spec.boot}\n".encode())
    return files | way_of(spec).files(spec)


def _wheels(spec: TargetSpec, wheel: Path, lock_file: Path) -> Step:
    site = "{scratch}/root/" + SITE.format(python=spec.python)
    environment = str(Path(site).parents[2])
    return Step(
        "wheels",
        "the agent and its requirements",
        ".tar",
        (
            fetch_command(spec, "{lock}", site),
            # Unpacked, as pip would note where on this machine the wheel lay.
            (sys.executable, "-m", "zipfile", "--extract", "{wheel}", site),
            (sys.executable, "-m", "firmware_tools", "trim", environment),
            ("rm", "-rf", f"{site}/bin"),
            (
                "tar", "--create", "--file", "{output}", "--directory", "{scratch}/root", "--sort=name",
                "--owner=0", "--group=0", "--numeric-owner", "--mode=u=rwX,go=rX", f"--mtime=@{MOMENT}", ".",
            ),
        ),
        files={"wheel": wheel.resolve(), "lock": lock_file.resolve()},
    )  # fmt: skip


def _system(spec: TargetSpec) -> Step:
    site = SITE.format(python=spec.python)
    compile_all = "python3 -m compileall -q --invalidation-mode unchecked-hash"
    return Step(
        "system",
        "Debian and agent together, compiled",
        ".tar",
        (
            (
                "mmdebstrap", "--quiet", "--variant=custom",
                "--skip=check/empty,check/qemu,update,essential/unlink,cleanup/apt,download/empty,output/dev",
                "--setup-hook=tar-in {base} /", "--customize-hook=tar-in {wheels} /",
                f'--customize-hook=chroot "$1" {compile_all} /{site}',
                "", "{output}", "deb [trusted=yes] copy:/nonexistent ./",
            ),
        ),
        after=("base", "wheels"),
        environment=ENVIRONMENT,
    )  # fmt: skip


def _rootfs(spec: TargetSpec, version: str, files: Mapping[str, Entry]) -> Step:
    way = way_of(spec)

    def lay_over(output: Path, outputs: Mapping[str, Path]) -> None:
        """Lay the device's files over the system, and pack it."""
        merged = output.with_suffix(".merged.tar")
        try:
            layers = [tar_layer(outputs[name]) for name in way.layers]
            merge(outputs["system"], [*layers, files], merged, MOMENT)
            way.root.pack(merged, output, MOMENT)
        finally:
            merged.unlink(missing_ok=True)

    return Step(
        "rootfs",
        f"root file system of version {version}",
        way.root.suffix,
        after=("system", *way.layers),
        inputs={"squashfs": way.root.settings, **{name: entry.describe() for name, entry in files.items()}},
        work=lay_over,
    )


def _program(spec: TargetSpec, module: str) -> bytes:
    site = SITE.format(python=spec.python)
    return (
        "#!/usr/bin/python3 -I\n"
        f'import sys\n\nsys.path.insert(0, "/{site}")\nfrom {module} import main\n\nsys.exit(main())\n'
    ).encode()


def _release(spec: TargetSpec, version: str, floor: str) -> bytes:
    lines = [f"compatible={spec.compatible}", f"version={version}", *([f"floor={floor}"] if floor else [])]
    return ("\n".join(lines) + "\n").encode()


def _rauc_configuration(spec: TargetSpec, floor: str) -> str:
    slots = "".join(
        f"\n[slot.rootfs.{number}]\ndevice={slot.device}\ntype={slot.type}\nbootname={name}\n"
        for number, (name, slot) in enumerate(way_of(spec).slots(spec).items())
    )
    lowest = f"min-bundle-version={floor}\n" if floor else ""
    return (
        f"[system]\ncompatible={spec.compatible}\nbootloader=custom\nbundle-formats=verity\n"
        f"data-directory=/data/rauc\nactivate-installed=true\n{lowest}\n"
        "[handlers]\nbootloader-custom-backend=/usr/lib/graftwork/boot-backend\n\n"
        "[keyring]\npath=/etc/rauc/keyring.pem\ncheck-purpose=codesign\nuse-bundle-signing-time=true\n"
        f"{slots}"
    )
