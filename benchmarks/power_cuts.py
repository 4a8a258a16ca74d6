"""Power cuts: a device in a virtual machine is killed at random moments, and has to come up again as itself.

    python -m benchmarks.power_cuts [--cuts 50] [--workers 2] [--directory runs/firmware] [--json]

Four kinds of moments: while an update is installed, while the boot state is written again and again, in the
very first boot, and around the mark that makes a slot good. Each cut is SIGKILL of QEMU at a moment drawn
from a seed, and is followed by a whole boot: the device must pass its health gate, have its key (at the first
boot: enrol with a token that is good once), and must not call an update healthy that does not run. Torn
writes, byte by byte, are in tests/firmware_tools/test_boot_environment.py: the host keeps what the guest has
written, so a cut here loses no block that the disk took.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from firmware_tools.build.requirements import SITE
from firmware_tools.build.spec import load_spec
from firmware_tools.errors import FirmwareError
from firmware_tools.machine import Machine
from simulation.firmware_site import MOUNT_STICK, ON_STICK, TARGET, Images, Site, make_stick

INSTALL, BOOT_STATE, FIRST_BOOT, MARK_GOOD = "install", "boot state", "first boot", "mark good"
SHARE = {INSTALL: 15, BOOT_STATE: 18, FIRST_BOOT: 7, MARK_GOOD: 10}
"""Of 50 cuts."""
OLD, NEW = "1.0.0", "1.1.0"
BOOT_SECONDS = 600.0
UPDATE = f"graftwork-firmware device update --no-reboot {ON_STICK}/{NEW}.raucb"
WRITING = (
    '/usr/bin/python3 -I -c \'import sys; sys.path.insert(0, "/{site}"); '
    "from firmware_tools.device.boot_backend import handle; "
    "from firmware_tools.device.boot_control import boot_control; "
    "from firmware_tools.device.system import Device; "
    "control = boot_control(Device()); "
    'calls = (["set-state", "{other}", "bad"], ["set-primary", "{slot}"], ["set-state", "{slot}", "good"]); '
    '[handle(words, control) for words in calls]; print("wri" + "ting", flush=True); '
    "[handle(words, control) for _ in range(100000) for words in calls]'"
)
"""Says so only once every call was answered: what writes nothing must not pass for what survives cuts."""


@dataclass(frozen=True)
class Cut:
    """One cut and what came after it."""

    kind: str
    after_seconds: float
    """From the beginning of what was cut to the cut."""
    bootable: bool = False
    identity_kept: bool = False
    false_success: bool = False
    slot: str = ""
    update: str = ""
    boot_seconds: float = 0.0
    said: str = ""
    """What went wrong."""


class Life:
    """One device after another, each through its cuts."""

    def __init__(self, directory: Path, image: Path, bundle: Path, seed: int) -> None:
        self._directory, self._image = directory, image
        self._random = random.Random(seed)  # noqa: S311 - moments are to be repeated
        directory.mkdir(parents=True, exist_ok=True)
        self._stick = make_stick(directory / "stick.img", {f"{NEW}.raucb": bundle}, 300)
        self._install_seconds = 40.0
        self._boot_seconds = 60.0
        self._machine: Machine | None = None
        self._site: Site | None = None
        self._slot, self._identity = "", ""

    def run(self, kinds: list[str], say: Callable[[Cut], None]) -> list[Cut]:
        """Cut once for each of the kinds; the first boots come first, as each takes a new device."""
        cuts = []
        try:
            for kind in sorted(kinds, key=lambda kind: kind != FIRST_BOOT):
                cuts.append(self._cut(kind))
                say(cuts[-1])
        finally:
            self._end()
        return cuts

    def _cut(self, kind: str) -> Cut:
        seconds = 0.0
        try:
            if kind == FIRST_BOOT or self._machine is None:
                self._new_device()
            if kind != FIRST_BOOT and not self._identity:
                self._come_up()
            started = time.monotonic()
            {
                INSTALL: self._installing,
                BOOT_STATE: self._writing,
                FIRST_BOOT: self._booting,
                MARK_GOOD: self._marking,
            }[kind]()
            seconds = time.monotonic() - started
            machine, before = self._on, self._identity
            machine.cut_power()
            machine.start()
            status = self._come_up()
        except FirmwareError as error:
            self._end()  # the next cut takes a new device
            return Cut(kind, round(seconds, 1), said=str(error)[-1500:])
        told = str(status["update"] or "")
        return Cut(
            kind,
            round(seconds, 1),
            bootable=True,
            identity_kept=before in ("", self._identity),
            false_success=told.startswith("healthy") and told != f"healthy {status['version']}",
            slot=self._slot,
            update=told,
            boot_seconds=round(self._boot_seconds, 1),
        )

    def _installing(self) -> None:
        self._on.command(f"umount {ON_STICK} 2> /dev/null; {MOUNT_STICK}")
        self._on.send(UPDATE)
        time.sleep(self._random.uniform(0, 1.1 * self._install_seconds))

    def _writing(self) -> None:
        other = "B" if self._slot == "A" else "A"
        site = SITE.format(python=load_spec(TARGET).python)
        self._on.send(WRITING.format(site=site, slot=self._slot, other=other))
        self._on.expect("writing")
        time.sleep(self._random.uniform(0, 3))

    def _booting(self) -> None:
        time.sleep(self._random.uniform(0, 1.1 * self._boot_seconds))

    def _marking(self) -> None:
        started = time.monotonic()
        answer = self._on.command(f"umount {ON_STICK} 2> /dev/null; {MOUNT_STICK} && {UPDATE}", BOOT_SECONDS)
        if answer.status:
            raise FirmwareError(f"the update was refused: {answer.output}")
        self._install_seconds = time.monotonic() - started
        self._on.send("systemctl reboot")
        self._on.expect("healthy: agent", BOOT_SECONDS)
        time.sleep(self._random.uniform(0, 1))

    def _new_device(self) -> None:
        self._end()
        self._site = Site(self._directory / "site")
        self._site.provision(self._image)
        self._site.__enter__()
        self._machine = Machine(
            self._directory / "machine", self._site.image, ports=self._site.ports, disks=[self._stick]
        )
        self._identity = ""
        self._machine.start()

    def _come_up(self) -> dict[str, object]:
        """Wait until it has booted and passed its gate; returns its status.

        Raises:
            FirmwareError: it did not.
        """
        machine, started = self._on, time.monotonic()
        self._slot = machine.booted(BOOT_SECONDS)
        self._boot_seconds = time.monotonic() - started
        status = json.loads(
            machine.command("graftwork-firmware device status --json").output.splitlines()[-1]
        )
        gate = machine.command("systemctl show -p Result --value graftwork-health.service").output
        if "success" not in gate or status[f"slot_{self._slot.lower()}"] != "good":
            raise FirmwareError(f"the gate was not passed: {gate} {status}")
        keys = machine.command(
            "cat /identity/device.key /identity/identity.pem > /run/keys && sha256sum /run/keys"
        )
        if keys.status:
            raise FirmwareError(f"the device has no identity: {keys.output}")
        self._identity = keys.output.split()[-2]
        return dict(status)

    def _end(self) -> None:
        if self._machine is not None:
            self._machine.stop()
        if self._site is not None:
            self._site.__exit__()
        self._machine = self._site = None

    @property
    def _on(self) -> Machine:
        if self._machine is None:
            raise FirmwareError("no device is on")
        return self._machine


def measure(directory: Path, count: int, workers: int, seed: int, say: Callable[[Cut], None]) -> list[Cut]:
    """Cut the power so often.

    Args:
        directory: of images; built if they are not there.
        count: of cuts, in the shares of SHARE.
        workers: devices at a time.
        seed: of the moments.
        say: takes each cut.
    """
    images = Images(directory)
    for version in (OLD, NEW):
        images.build(version)
    image, bundle = directory / "images" / OLD / "image.img", images.bundle(NEW)
    kinds = _kinds(count)
    lives = [Life(directory / f"cuts-{n}", image, bundle, seed * 1000 + n) for n in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        done = [pool.submit(life.run, kinds[n::workers], say) for n, life in enumerate(lives)]
        return [cut for future in done for cut in future.result()]


def _kinds(count: int) -> list[str]:
    """So many kinds, each as often as its share says."""
    kinds: list[str] = []
    for number in range(1, count + 1):
        owed = {kind: share * number / sum(SHARE.values()) for kind, share in SHARE.items()}
        kinds.append(max(SHARE, key=lambda kind: owed[kind] - kinds.count(kind)))
    return kinds


def summary(cuts: list[Cut]) -> dict[str, object]:
    """The figures of docs/results.md."""
    return {
        "cuts": len(cuts),
        "by_kind": dict(Counter(cut.kind for cut in cuts)),
        "unbootable": sum(not cut.bootable for cut in cuts),
        "identities_lost": sum(cut.bootable and not cut.identity_kept for cut in cuts),
        "false_success": sum(cut.false_success for cut in cuts),
    }


def main() -> None:
    """Measure, and print a line for each cut and the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2, help="devices at a time, each takes a CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=Path("runs/firmware"), help="of images")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    cuts = measure(
        options.directory, options.cuts, options.workers, options.seed,
        lambda cut: print(json.dumps(asdict(cut)), file=sys.stderr, flush=True),
    )  # fmt: skip
    figures = summary(cuts)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
