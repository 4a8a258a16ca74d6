"""A virtual machine that boots an image: QEMU without KVM, one CPU, driven over its serial line.

/dev/kvm can be there and still run no guest, so nothing is taken from it. The guest reaches the ports that
are named, and nothing else. The console of a test image logs in by itself (`build --test-console`); what is
typed there is answered with the status of each command. When the guest restarts itself, QEMU ends and a new
one goes on with the same disks: QEMU 7.2's own reset, emulating, hangs once in some twenty times.
"""

import contextlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.errors import FirmwareError
from firmware_tools.machine_models import MODELS, MachineModel

MEMORY_MIB = 1024
GUEST_HOST = "10.0.2.100"
"""Where the guest reaches forwarded ports of this machine's loopback."""
PROMPT = "graftwork login: root (automatic login)"
OFF = "reboot: Power down"
"""What Linux says last when it switches the machine off."""


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    output: str


class Machine:
    """One virtual machine; use as a context manager."""

    def __init__(
        self,
        directory: Path,
        image: Path,
        *,
        ports: Mapping[int, int] | None = None,
        disks: Sequence[Path] = (),
        model: MachineModel = MODELS["amd64"],
    ) -> None:
        """Prepare.

        Args:
            directory: for its log and the firmware's variables.
            image: raw disk; what the guest writes stays in it.
            ports: of GUEST_HOST to ports of 127.0.0.1 here; nothing else is reachable.
            disks: more raw disks, vdb and so on, e.g. a stick with a bundle.
            model: what kind of machine the image is for.

        Raises:
            FirmwareError: QEMU or its firmware is missing.
        """
        model.check()
        self._model = model
        self.log_file = directory / "serial.log"
        self._directory = directory
        self._image = image
        self._ports = dict(ports or {})
        self._disks = list(disks)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._seen = ""
        """What came over serial and was not matched yet."""

    def start(self) -> None:
        """Switch it on."""
        self._seen = ""
        self._switch_on()

    def _switch_on(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        variables = self._directory / self._model.variables.name
        if not variables.exists():
            shutil.copyfile(self._model.variables, variables)
        path = self._directory / "serial"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen(1)
            listening.settimeout(30)
            with (self._directory / "qemu.log").open("ab") as out:
                self._process = subprocess.Popen(  # noqa: S603 - a fixed command
                    self._command(path, variables),
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                )  # fmt: skip
            self._channel, _ = listening.accept()
        self._channel.settimeout(1.0)

    def expect(self, pattern: str, seconds: float = 240.0) -> re.Match[str]:
        """Wait for a pattern on the serial line; what came before it is forgotten.

        Raises:
            FirmwareError: it did not come, or the machine went off; with the last lines.
        """
        deadline = time.monotonic() + seconds
        while True:
            match = re.search(pattern, self._seen)
            if match:
                self._seen = self._seen[match.end() :]
                return match
            if time.monotonic() > deadline or not self._read():
                last = "\n".join(self._seen.splitlines()[-15:])
                raise FirmwareError(
                    f"waited {seconds:g} s for {pattern!r} on the serial line; it ended with:\n{last}"
                )

    def log_in(self, seconds: float = 300.0) -> None:
        """Wait for the shell of a test image."""
        self.expect(r"root@graftwork:[^#]*# ", seconds)
        self.command(
            "stty -echo cols 400; dmesg -n 1; systemctl is-system-running --wait > /dev/null", seconds
        )

    def command(self, line: str, seconds: float = 240.0) -> Answer:
        """Run a command in the guest's shell.

        Raises:
            FirmwareError: it gave no answer.
        """
        mark = secrets.token_hex(6)
        self.send(f"{{ {line}\n}} 2>&1; printf '\\n%s %s\\n' '{mark[:6]}''{mark[6:]}' $?")
        match = self.expect(rf"(?s)(.*?)\r?\n{mark} (\d+)\r?\n", seconds)
        return Answer(int(match[2]), match[1].replace("\r", "").strip())

    def reboot(self, seconds: float = 300.0) -> str:
        """Restart the guest and log in again; returns the slot that booted."""
        self.send("systemctl reboot")
        return self.booted(seconds)

    def booted(self, seconds: float = 300.0) -> str:
        """Wait for the boot loader and log in; returns the slot that booted."""
        slot = self.chosen_slot(seconds)
        self.log_in(seconds)
        return slot

    def chosen_slot(self, seconds: float = 300.0) -> str:
        """Wait for the boot loader; returns the slot that it chose."""
        # The screen and the serial line say it both; what follows the second one is the kernel's.
        return self.expect(r"graftwork: slot ([AB]) \(primary [^\n]*\n", seconds)[1]

    def send(self, line: str) -> None:
        """Type a line; what is typed while the guest restarts is lost."""
        if self._channel is None:
            raise FirmwareError("the machine is off")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.sendall(line.encode() + b"\n")

    @property
    def running(self) -> bool:
        """Whether it is on."""
        return self._process is not None and self._process.poll() is None

    def cut_power(self) -> None:
        """Kill it as a power cut does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Switch it off."""
        self._end(signal.SIGTERM)

    def __enter__(self) -> "Machine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _read(self) -> bool:
        """Take what came; False: the machine is off."""
        if self._channel is None:
            return False
        try:
            part = self._channel.recv(65536)
        except TimeoutError:
            return self.running
        except ConnectionResetError:
            part = b""  # it ended before it took what was typed
        if not part:
            return self._restarted()
        with self.log_file.open("ab") as file:
            file.write(part)
        text = re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[()].)", "", part.decode("utf-8", "replace"))
        self._seen = (self._seen + text)[-262144:]
        return True

    def _restarted(self) -> bool:
        """Go on after QEMU's end, if the guest restarted itself; False: it is off, or QEMU failed."""
        process, channel = self._process, self._channel
        if process is None or channel is None:
            return False
        channel.close()
        self._channel = None
        try:
            status = process.wait(30)
        except subprocess.TimeoutExpired:
            return False
        if status or OFF in self._seen[-4096:]:
            return False
        self._switch_on()
        return True

    def _command(self, serial: Path, variables: Path) -> list[str]:
        relay = Path(__file__).with_name("relay.py")
        forwards = "".join(
            f",guestfwd=tcp:{GUEST_HOST}:{guest}-cmd:{sys.executable} {relay} {host}"
            for guest, host in self._ports.items()
        )
        disks = [self._image, *self._disks]
        drives = [
            argument
            for number, disk in enumerate(disks)
            for argument in (
                "-drive", f"file={disk},format=raw,if=none,id=d{number},cache=writeback",
                "-device", f"virtio-blk-pci,drive=d{number}",
            )
        ]  # fmt: skip
        return [
            self._model.program, *self._model.machine, "-accel", "tcg", "-smp", "1",
            "-m", str(MEMORY_MIB), "-display", "none", "-monitor", "none", "-nodefaults",
            "-serial", f"unix:{serial}",
            "-netdev", f"user,id=n0,restrict=on{forwards}", "-device", "virtio-net-pci,netdev=n0,romfile=",
            "-object", "rng-random,filename=/dev/urandom,id=r0", "-device", "virtio-rng-pci,rng=r0",
            "-device", "i6300esb", "-action", "watchdog=reset,reboot=shutdown",
            "-drive", f"if=pflash,format=raw,readonly=on,file={self._model.code}",
            "-drive", f"if=pflash,format=raw,file={variables}",
            *drives,
        ]  # fmt: skip
