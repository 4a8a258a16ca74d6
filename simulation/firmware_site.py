"""A site with one device in a virtual machine: its images and stick, and broker and server outside.

What boots is an image of graftwork-firmware, and broker and server are those of production: TLS,
certificates, enrolment by a token. The firmware demo, the boot tests and the power-cut benchmark are played
here.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from runtime.keys import load_or_make
from server import broker_config, credentials
from server.authority import DIRECTORY, Authority
from server.authority_commands import CLIENT
from server.broker import BrokerSupervisor, free_port
from server.broker_settings import authority_file
from server.keys import SIGNING_FILE
from server.store import Store
from simulation import vibration
from simulation.errors import SimulationError
from simulation.experiment import Settings, prepare
from simulation.machines import machines
from simulation.processes import Program

TARGET, DEVICE, FEDERATION = "qemu-x86_64", "pump-1", "plant"
GUEST_HOST = "10.0.2.100"
"""Where the virtual machine reaches this one."""
PORT, ENROLMENT_PORT = 8883, 8884
DAY = 86_400.0
STICK_MIB = 700
ON_STICK = "/run/stick"
MOUNT_STICK = f"mkdir -p {ON_STICK} && mount /dev/vdb {ON_STICK}"

Step = Mapping[str, Any]
"""Of a boot test's script; see firmware_tools/boot_test.py."""


class Images:
    """Images of versions, with the bundles made of them, in a folder that later runs go on from."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys = directory / "keys"
        directory.mkdir(parents=True, exist_ok=True)
        if not self.keys.exists():
            firmware("keys", "init", str(self.keys))

    def build(self, version: str, *, overlay: Path | None = None) -> Path:
        """Build an image whose serial console is open; returns the folder that it is in."""
        output = self.directory / "images" / version
        extra = ["--overlay", str(overlay)] if overlay else []
        firmware(
            "build", TARGET, "--version", version, "--keyring", str(self.keys / "keyring.pem"),
            "--test-console", "--output", str(output), *extra,
        )  # fmt: skip
        return output

    def bundle(self, version: str) -> Path:
        """Make the update of a version that was built."""
        output = self.directory / "bundles" / f"{version}.raucb"
        output.parent.mkdir(exist_ok=True)
        output.unlink(missing_ok=True)
        rootfs = self.directory / "images" / version / "rootfs.squashfs"
        firmware("bundle", str(rootfs), "--keys", str(self.keys), "--output", str(output))
        return output

    def broken_agent(self) -> Path:
        """An overlay whose agent ends at once."""
        overlay = self.directory / "broken"
        agent = overlay / "usr/bin/graftwork-agent"
        agent.parent.mkdir(parents=True, exist_ok=True)
        agent.write_text("#!/bin/sh\necho this version is broken\nexit 1\n", "utf-8")
        agent.chmod(0o755)
        return overlay


class Site:
    """Broker, server and the one device's seed; a context manager that runs broker and server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "server" / "data"
        self.image = directory / "device.img"
        for name in ("server", "broker", "tokens", "seeds", "fleet", "experiment"):
            shutil.rmtree(directory / name, ignore_errors=True)
        (directory / "server").mkdir(parents=True)
        now = time.time()  # noqa: TID251 - certificates are good from now on
        authority = Authority.create(self.data / DIRECTORY, FEDERATION, now)
        folder = (directory / "broker").resolve()
        self.ports = {PORT: free_port(), ENROLMENT_PORT: free_port()}
        service = free_port()
        broker_config.write(
            folder, FEDERATION, authority, hosts=[GUEST_HOST, "localhost"], now=now, bind="127.0.0.1",
            port=self.ports[PORT], enrolment_port=self.ports[ENROLMENT_PORT], service_port=service,
        )  # fmt: skip
        credentials.keep(self.data, CLIENT, authority, lambda: authority.issue_server(now), now)
        self._services_ca = folder / authority_file("services")
        self._key = load_or_make(self.data / SIGNING_FILE).public.raw.hex()
        config = directory / "server" / "server.toml"
        config.write_text(
            f'federation = "{FEDERATION}"\ndata_directory = "data"\nenrolment = "token"\n'
            f'[broker]\nhost = "localhost"\nport = {service}\ntls_ca = "{self._services_ca}"\n'
            f'tls_certificate = "data/{CLIENT}.crt"\ntls_key = "data/{CLIENT}.key"\n'
            f'[trust]\nbroker_directory = "{folder}"\n'
            "[round]\nminimum_devices = 1\nrounds = 2\ngather_seconds = 1.0\n[training]\nepochs = 5\n",
            "utf-8",
        )
        self._write_token(now)
        with resources.as_file(resources.files("simulation") / "demo" / "vibration.zip") as package:
            call([sys.executable, "-m", "server", "--config", str(config), "push", str(package)])
        self._broker = BrokerSupervisor(folder, configuration=folder)
        self._server = Program(
            "server", ["server", "--config", str(config), "run"], directory / "server" / "server.log"
        )

    def __enter__(self) -> "Site":
        self._broker.start()
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.signal(signal.SIGTERM)
        self._server.wait(10)
        self._broker.stop()

    def provision(self, image: Path) -> None:
        """Copy an image for the device, and write its seed into it."""
        ledger, seeds = self.directory / "ledger.sqlite", self.directory / "seeds"
        ledger.unlink(missing_ok=True)
        shutil.rmtree(seeds, ignore_errors=True)
        names = self.directory / "names"
        names.write_text(f"{DEVICE}\n", "utf-8")
        firmware(
            "provision", "identities", "--names", str(names), "--ledger", str(ledger), "--output", str(seeds),
            "--federation", FEDERATION, "--server-key", self._key, "--broker-host", GUEST_HOST,
            "--broker-port", str(PORT), "--enrolment-port", str(ENROLMENT_PORT),
            "--services-ca", str(self._services_ca), "--tokens", str(self.directory / "tokens"),
        )  # fmt: skip
        call(["cp", "--sparse=always", str(image), str(self.image)])
        firmware("provision", "into", str(self.image), "--seed", str(seeds / DEVICE), "--ledger", str(ledger))

    def recordings(self) -> list[Path]:
        """What the device's sensor has recorded, with its labels."""
        chosen = tuple(machine for machine in machines(0) if machine.id == DEVICE)
        fleet, experiment = self.directory / "fleet", self.directory / "experiment"
        vibration.write_fleet(fleet, 0, chosen)
        prepared = prepare(experiment, fleet, Settings(labels_per_class=10))
        return sorted((prepared.participants[0].directory / "spool").iterdir())

    def store(self) -> Store:
        """The server's database, to look at."""
        return Store(self.data)

    def boot(
        self,
        steps: Sequence[Step],
        stick: Path,
        watch: Callable[[Store], None],
        console: Callable[[str], None],
    ) -> None:
        """Boot the device and play a script.

        Args:
            steps: what must hold.
            stick: in its port.
            watch: is given the server's database again and again.
            console: takes a line at each step.

        Raises:
            SimulationError: something did not hold; with what the boot test said.
        """
        script = self.directory / "script.toml"
        script.write_text("\n".join(map(_toml, steps)), "utf-8")
        ports = [word for guest, host in self.ports.items() for word in ("--port", f"{guest}:{host}")]
        command = [
            sys.executable, "-m", "firmware_tools", "boottest", str(self.image), "--script", str(script),
            "--disk", str(stick), "--log", str(self.directory / "serial.log"), *ports,
        ]  # fmt: skip
        out, shown = self.directory / "boottest.log", 0
        store = self.store()
        try:
            with out.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:  # noqa: S603
                running = True
                while running:
                    running = process.poll() is None
                    lines = out.read_text("utf-8", "replace").splitlines()
                    for line in lines[shown:]:
                        console(line)
                    shown = len(lines)
                    watch(store)
                    time.sleep(0.3)
        finally:
            store.close()
        if process.returncode:
            raise SimulationError(f"the boot test failed:\n{out.read_text('utf-8', 'replace')[-3000:]}")

    def _write_token(self, now: float) -> None:
        tokens = self.directory / "tokens"
        tokens.mkdir()
        with contextlib.closing(self.store()) as store:
            made = store.make_tokens([DEVICE], now + DAY, now)
        token = tokens / f"{DEVICE}.token"
        token.write_text(made[DEVICE] + "\n", "ascii")
        token.chmod(0o600)


def make_stick(path: Path, files: Mapping[str, Path], mib: int = STICK_MIB) -> Path:
    """A stick (FAT) with files, by their path on it."""
    with path.open("wb") as file:
        file.truncate(mib << 20)
    call(["mkfs.vfat", "-F", "32", str(path)])
    for folder in sorted({name.rpartition("/")[0] for name in files} - {""}):
        call(["mmd", "-i", str(path), f"::/{folder}"])
    for name, source in files.items():
        call(["mcopy", "-i", str(path), str(source), f"::/{name}"])
    return path


def firmware(*arguments: str) -> None:
    """Run graftwork-firmware.

    Raises:
        SimulationError: it failed; with what it said.
    """
    call([sys.executable, "-m", "firmware_tools", *arguments])


def call(command: Sequence[str]) -> None:
    """Run a program of ours or of Debian.

    Raises:
        SimulationError: it failed; with what it said.
    """
    path = f"{sys.prefix}/bin:/usr/sbin:/sbin:/usr/bin:/bin"
    result = subprocess.run(  # noqa: S603 - fixed commands
        command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    if result.returncode:
        said = (result.stderr or result.stdout).strip()[-2000:]
        raise SimulationError(f"{' '.join(command[:5])} ... failed:\n{said}")


def _toml(step: Step) -> str:
    return "\n".join(["[[step]]", *(f"{name} = {json.dumps(value)}" for name, value in step.items())]) + "\n"
