"""Commands that make images and locks, try images, and tell whether this machine can."""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from firmware_tools import doctor
from firmware_tools.boot_test import DEFAULT, load_script, play
from firmware_tools.build import sbom
from firmware_tools.build.image import image_steps
from firmware_tools.build.plan import Plan, file_sha256
from firmware_tools.build.requirements import lock
from firmware_tools.build.rootfs import rootfs_steps
from firmware_tools.build.spec import TargetSpec, check_version, load_spec
from firmware_tools.build.tar_merge import MOMENT
from firmware_tools.build.ways import way_of
from firmware_tools.errors import FirmwareError
from firmware_tools.image_check import check_image
from firmware_tools.machine import GUEST_HOST, Machine
from firmware_tools.machine_models import MODELS, MachineModel
from firmware_tools.versions import numbers

CACHE = Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "graftwork-firmware"
LOCKS = Path(__file__).parent / "targets"


def add_commands(commands: Any) -> None:
    """Add `doctor`, `lock`, `build` and `boottest` to a parser's commands."""
    examine = commands.add_parser("doctor", help="try every tool that is needed, and name what is missing")
    examine.add_argument("--json", action="store_true", help="print JSON")
    examine.set_defaults(command=_doctor)

    locking = commands.add_parser("lock", help="write the agent's requirements for a target, with hashes")
    locking.add_argument("target", help="name of a target, or a .toml file")
    locking.add_argument(
        "--project", type=Path, default=Path(), help="folder with pyproject.toml (default: here)"
    )
    locking.add_argument("--output", type=Path, help="file to write (default: beside the built-in targets)")
    locking.set_defaults(command=_lock)

    build = commands.add_parser(
        "build", help="make an image of a target, and its root file system for bundles"
    )
    build.add_argument("target", help="name of a target, or a .toml file")
    build.add_argument("--version", required=True, dest="image_version", help="of the image, e.g. 1.4.0")
    build.add_argument(
        "--keyring", type=Path, required=True, help="keyring.pem of `keys init`: whose bundles it takes"
    )
    build.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="for image and root file system"
    )
    build.add_argument("--wheel", type=Path, help="of graftwork (default: built from --project)")
    build.add_argument("--project", type=Path, default=Path(), help="folder of the sources (default: here)")
    build.add_argument("--lock", type=Path, help="requirements with hashes (default: the target's own)")
    build.add_argument("--cache", type=Path, default=CACHE, help=f"of finished steps (default: {CACHE})")
    build.add_argument(
        "--overlay", type=Path, metavar="DIR", help="more files of the root file system; they win"
    )
    build.add_argument(
        "--firmware", type=Path, metavar="DIR",
        help="the board's own boot files, e.g. start4.elf (default: Debian's, where it has them)",
    )  # fmt: skip
    build.add_argument(
        "--test-console", action="store_true", help="log root in on the serial line; for boottest alone"
    )
    build.add_argument(
        "--release-root",
        type=Path,
        metavar="FILE",
        help="root.json of `release init`: devices follow its index",
    )
    build.add_argument("--floor", metavar="VERSION", help="the lowest version that devices install")
    build.add_argument("--plan", action="store_true", help="print every command and do nothing")
    build.set_defaults(command=_build)

    test = commands.add_parser("boottest", help="boot an image in a virtual machine and check it over serial")
    test.add_argument("image", type=Path, help="made with --test-console; it is not changed")
    test.add_argument("--script", type=Path, help="steps to play (default: boots and passes its health gate)")
    test.add_argument(
        "--disk", type=Path, action="append", default=[], help="further disk, vdb and so on (repeat)"
    )
    test.add_argument(
        "--port", action="append", default=[], metavar="GUEST:HOST",
        help=f"let the guest reach a port of this machine's loopback as {GUEST_HOST}:GUEST (repeat)",
    )  # fmt: skip
    test.add_argument(
        "--architecture", choices=MODELS, help="of the machine (default: what release.json beside it says)"
    )
    test.add_argument("--log", type=Path, help="keep what came over the serial line")
    test.set_defaults(command=_boot_test)


def add_verify_commands(verify: Any) -> None:
    """Add `verify image`."""
    text = "check an image as `build` made it: partitions, file systems, boot state, every byte of the system"
    image = verify.add_parser("image", help=text, description=text)
    image.add_argument("image", type=Path, help="its release.json lies beside it")
    image.add_argument("--target", help="a .toml file, where it is no built-in target")
    image.set_defaults(command=_verify_image)


def _doctor(options: argparse.Namespace) -> None:
    findings = doctor.examine()
    line = doctor.install_line([finding for finding in findings if not finding.optional])
    if options.json:
        print(json.dumps({"tools": [dataclasses.asdict(found) for found in findings], "install": line}))
    else:
        for found in findings:
            mark = "works  " if found.works else "absent " if found.optional else "MISSING"
            print(f"{mark}  {found.name:12} for {found.needed_for}: {found.detail}")
        print(line or "all is there")
    if line:
        raise FirmwareError("something that is needed does not work here")


def _lock(options: argparse.Namespace) -> None:
    spec = load_spec(options.target)
    output = options.output or LOCKS / f"{spec.name}.lock"
    output.write_text(lock(spec, options.project), "utf-8")
    print(f"wrote {output}")


def _build(options: argparse.Namespace) -> None:
    spec, version = load_spec(options.target), check_version(options.image_version)
    lock_file = options.lock or LOCKS / f"{spec.name}.lock"
    if not lock_file.exists():
        raise FirmwareError(f"{lock_file} is missing: graftwork-firmware lock {options.target}")
    with tempfile.TemporaryDirectory() as folder:
        wheel = options.wheel or _wheel(options.project, Path(folder))
        steps = rootfs_steps(
            spec, wheel, lock_file, version, options.keyring.read_bytes(),
            test_console=options.test_console, overlay=options.overlay, firmware=options.firmware,
            release_root=_release_root(options.release_root), floor=_floor(options.floor, version),
        )  # fmt: skip
        plan = Plan([*steps, *image_steps(spec)])
        if options.plan:
            print(plan.describe())
            return
        started = time.monotonic()
        agent = [*sbom.distributions(lock_file.read_text("utf-8")), sbom.own_wheel(wheel, file_sha256(wheel))]
        outputs = plan.run(options.cache, say=lambda line: print(line, file=sys.stderr, flush=True))
    facts = _hand_out(spec, version, outputs, options.output)
    _describe(spec, facts, outputs["system"], agent, options.output)
    made = options.output / next(iter(way_of(spec).products.values()))
    print(f"{made}: version {version} of {spec.name}, {time.monotonic() - started:.0f} s")
    if note := way_of(spec).note:
        print(f"{spec.name} is {note}")


def _release_root(path: Path | None) -> bytes:
    if path is None:
        return b""
    from firmware_tools.release_index import check_root  # noqa: PLC0415 - devices have these commands, too

    data = path.read_bytes()
    check_root(data, name=str(path))
    return data


def _floor(floor: str | None, version: str) -> str:
    if floor is None:
        return ""
    if numbers(floor) > numbers(version):
        raise FirmwareError(f"--floor {floor}: expected at most the version of the image, {version}")
    return floor


def _boot_test(options: argparse.Namespace) -> None:
    script = load_script(options.script) if options.script else DEFAULT
    with tempfile.TemporaryDirectory(prefix="graftwork-boot-") as name:
        folder = Path(name)
        disk = folder / "disk.img"
        subprocess.run(["cp", "--sparse=always", str(options.image), str(disk)], check=True)  # noqa: S603, S607
        model = _model(options.architecture, options.image)
        machine = Machine(folder, disk, ports=_ports(options.port), disks=options.disk, model=model)
        try:
            with machine:
                play(machine, script, lambda line: print(line, file=sys.stderr, flush=True))
        finally:
            if options.log and machine.log_file.exists():
                shutil.copyfile(machine.log_file, options.log)
    print(f"good: {len(script.step)} steps")


def _ports(texts: list[str]) -> dict[int, int]:
    ports = {}
    for text in texts:
        guest, _, host = text.partition(":")
        if not (guest.isdecimal() and host.isdecimal()):
            raise FirmwareError(f"--port: expected GUEST:HOST in numbers, got {text!r}")
        ports[int(guest)] = int(host)
    return ports


def _model(architecture: str | None, image: Path) -> MachineModel:
    """The machine for an image, as its description says; without one, as most are."""
    if architecture is None:
        described = image.with_name("release.json")
        try:
            architecture = str(json.loads(described.read_text("utf-8")).get("architecture", "amd64"))
        except (OSError, ValueError, AttributeError):
            architecture = "amd64"
        if architecture not in MODELS:
            raise FirmwareError(f"{described}: expected an architecture of {', '.join(MODELS)}")
    return MODELS[architecture]


def _hand_out(spec: TargetSpec, version: str, outputs: dict[str, Path], folder: Path) -> dict[str, str]:
    """Copy what came out, with a description that later commands read; returns that."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "target": spec.name,
        "compatible": spec.compatible,
        "architecture": spec.architecture,
        "version": version,
    }
    for name, file_name in way_of(spec).products.items():
        target = folder / file_name
        command = ["cp", "--sparse=always", "--reflink=auto", str(outputs[name]), str(target)]
        subprocess.run(command, check=True)  # noqa: S603
        facts[f"{name}_sha256"] = file_sha256(target)
    (folder / "release.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    return facts


def _describe(
    spec: TargetSpec, facts: dict[str, str], system: Path, agent: list[sbom.Distribution], folder: Path
) -> None:
    """Write what the image is made of; without the library for that, say so, and have none."""
    path = folder / sbom.NAME
    path.unlink(missing_ok=True)  # one of another build would lie
    try:
        bill = sbom.bill_of_materials(spec, facts, sbom.packages(sbom.dpkg_status(system)), agent)
    except FirmwareError as error:
        print(f"warning: {error}", file=sys.stderr)
        return
    path.write_text(bill, "utf-8")


def _wheel(project: Path, folder: Path) -> Path:
    """Build the wheel of graftwork from its sources."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "-w",
        str(folder),
        str(project.resolve()),
    ]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(MOMENT)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    found = sorted(folder.glob("graftwork-*.whl"))
    if result.returncode or len(found) != 1:
        raise FirmwareError(
            f"{project}: no wheel of graftwork could be built: {result.stderr.strip()[-500:]}"
        )
    return found[0]


def _verify_image(options: argparse.Namespace) -> None:
    print("\n".join(check_image(options.image, options.target)))
