"""The firmware demo: from a bare host to a device that joined, was updated, and went back by itself.

Images are built with graftwork-firmware and boot in a virtual machine; broker and server run outside, as in
production. What the device says of its updates is read from the server's database, every word of it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

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
GOOD, BETTER, BROKEN = "1.0.0", "1.1.0", "1.2.0"
DAY = 86_400.0
STICK_MIB = 700
AGENT = "runuser -u graftwork -- graftwork-agent --config /data/graftwork/agent.toml status --json"


def run(directory: Path, console: Console) -> dict[str, Any]:
    """Run the demo in a folder; returns the figures of its last line.

    Raises:
        SimulationError: a step failed; with what the program said.
    """
    started = time.monotonic()
    for name in ("bundles", "server", "broker", "fleet", "tokens", "seeds", "experiment"):
        shutil.rmtree(directory / name, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    _build(directory, console)
    built = time.monotonic() - started
    site = _Site(directory)
    site.provision()
    stick = _stick(directory)
    with site.broker:
        site.server.start()
        try:
            words = _play(site, stick, console)
        finally:
            site.server.signal(signal.SIGTERM)
            site.server.wait(10)
    store = Store(site.data)
    try:
        [row] = store.devices()
        rounds = [r for r in store.rounds() if r["outcome"] == "released" and r["counted"]]
    finally:
        store.close()
    return {
        "built_seconds": round(built, 1),
        "joined": bool(rounds),
        "rounds": len(rounds),
        "reported": words,
        "firmware": row["firmware"],
        "update": row["firmware_update"],
        "false_success": any(BROKEN in word and word.startswith("healthy") for word in words),
        "seconds": round(time.monotonic() - started, 1),
    }


class _Site:
    """Broker, server and the one device's seed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "server" / "data"
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
        self.services_ca = folder / authority_file("services")
        self.key = load_or_make(self.data / SIGNING_FILE).public.raw.hex()
        config = directory / "server" / "server.toml"
        config.write_text(
            f'federation = "{FEDERATION}"\ndata_directory = "data"\nenrolment = "token"\n'
            f'[broker]\nhost = "localhost"\nport = {service}\ntls_ca = "{self.services_ca}"\n'
            f'tls_certificate = "data/{CLIENT}.crt"\ntls_key = "data/{CLIENT}.key"\n'
            f'[trust]\nbroker_directory = "{folder}"\n'
            "[round]\nminimum_devices = 1\nrounds = 2\ngather_seconds = 1.0\n[training]\nepochs = 5\n",
            "utf-8",
        )
        store = Store(self.data)
        try:
            tokens = directory / "tokens"
            tokens.mkdir()
            made = store.make_tokens([DEVICE], now + DAY, now)
            (tokens / f"{DEVICE}.token").write_text(made[DEVICE] + "\n", "ascii")
            (tokens / f"{DEVICE}.token").chmod(0o600)
        finally:
            store.close()
        with resources.as_file(resources.files("simulation") / "demo" / "vibration.zip") as package:
            _call([sys.executable, "-m", "server", "--config", str(config), "push", str(package)])
        self.broker = BrokerSupervisor(folder, configuration=folder)
        self.server = Program(
            "server", ["server", "--config", str(config), "run"], directory / "server" / "server.log"
        )

    def provision(self) -> None:
        """Write the device's seed into the first image."""
        ledger, seeds = self.directory / "ledger.sqlite", self.directory / "seeds"
        ledger.unlink(missing_ok=True)
        names = self.directory / "names"
        names.write_text(f"{DEVICE}\n", "utf-8")
        _firmware(
            "provision", "identities", "--names", str(names), "--ledger", str(ledger), "--output", str(seeds),
            "--federation", FEDERATION, "--server-key", self.key, "--broker-host", GUEST_HOST,
            "--broker-port", str(PORT), "--enrolment-port", str(ENROLMENT_PORT),
            "--services-ca", str(self.services_ca), "--tokens", str(self.directory / "tokens"),
        )  # fmt: skip
        image = self.directory / "device.img"
        _call(["cp", "--sparse=always", str(self.directory / "images" / GOOD / "image.img"), str(image)])
        _firmware("provision", "into", str(image), "--seed", str(seeds / DEVICE), "--ledger", str(ledger))


def _build(directory: Path, console: Console) -> None:
    keys, images, bundles = directory / "keys", directory / "images", directory / "bundles"
    if not keys.exists():
        _firmware("keys", "init", str(keys))
    bundles.mkdir()
    broken = directory / "broken"
    agent = broken / "usr/bin/graftwork-agent"
    agent.parent.mkdir(parents=True, exist_ok=True)
    agent.write_text("#!/bin/sh\necho this version is broken\nexit 1\n", "utf-8")
    agent.chmod(0o755)
    for version in (GOOD, BETTER, BROKEN):
        console.print(f"building version {version}{' (with a broken agent)' if version == BROKEN else ''}")
        extra = ["--overlay", str(broken)] if version == BROKEN else []
        _firmware(
            "build", TARGET, "--version", version, "--keyring", str(keys / "keyring.pem"), "--test-console",
            "--output", str(images / version), *extra,
        )  # fmt: skip
    for version in (BETTER, BROKEN):
        rootfs, output = images / version / "rootfs.squashfs", bundles / f"{version}.raucb"
        _firmware("bundle", str(rootfs), "--keys", str(keys), "--output", str(output))


def _stick(directory: Path) -> Path:
    """A stick with the bundles, and with the recordings that the machine's sensor made."""
    chosen = tuple(machine for machine in machines(0) if machine.id == DEVICE)
    vibration.write_fleet(directory / "fleet", 0, chosen)
    experiment = prepare(directory / "experiment", directory / "fleet", Settings(labels_per_class=10))
    stick = directory / "stick.img"
    with stick.open("wb") as file:
        file.truncate(STICK_MIB << 20)
    _call(["mkfs.vfat", "-F", "32", str(stick)])
    _call(["mmd", "-i", str(stick), "::/spool"])
    for recording in sorted((experiment.participants[0].directory / "spool").iterdir()):
        _call(["mcopy", "-i", str(stick), str(recording), f"::/spool/{recording.name}"])
    for bundle in sorted((directory / "bundles").iterdir()):
        _call(["mcopy", "-i", str(stick), str(bundle), f"::/{bundle.name}"])
    return stick


def _play(site: _Site, stick: Path, console: Console) -> list[str]:
    """Boot, and follow what the device says of its updates; returns every word of it, in order."""
    script = site.directory / "script.toml"
    lines = [
        f"{name} = {json.dumps(value)}"
        for step in _STEPS
        for name, value in [("[[step]]", None), *step.items()]
    ]
    script.write_text("\n".join(line.removesuffix(" = null") for line in lines) + "\n", "utf-8")
    ports = [word for guest, host in site.ports.items() for word in ("--port", f"{guest}:{host}")]
    command = [
        sys.executable, "-m", "firmware_tools", "boottest", str(site.directory / "device.img"),
        "--script", str(script), "--disk", str(stick), "--log", str(site.directory / "serial.log"), *ports,
    ]  # fmt: skip
    words: list[str] = []
    store = Store(site.data)
    out = site.directory / "boottest.log"
    try:
        with out.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:  # noqa: S603
            shown = 0
            while process.poll() is None:
                shown = _show(out, shown, console)
                for row in store.devices():
                    word = row["firmware_update"] or f"runs {row['firmware']}"
                    if row["firmware"] and (not words or words[-1] != word):
                        words.append(word)
                        console.print(f"  the server knows: {DEVICE} {word}", style="green", highlight=False)
                time.sleep(0.3)
            _show(out, shown, console)
        if process.returncode:
            raise SimulationError(f"the boot test failed:\n{out.read_text('utf-8', 'replace')[-3000:]}")
    finally:
        store.close()
    return words


def _show(path: Path, shown: int, console: Console) -> int:
    """Print the lines that are new; returns how many there are."""
    lines = path.read_text("utf-8", "replace").splitlines()
    for line in lines[shown:]:
        console.print(line[:110], highlight=False, markup=False)
    return len(lines)


def _firmware(*arguments: str) -> None:
    _call([sys.executable, "-m", "firmware_tools", *arguments])


def _call(command: Sequence[str]) -> None:
    path = f"{sys.prefix}/bin:/usr/sbin:/sbin:/usr/bin:/bin"
    result = subprocess.run(  # noqa: S603 - our own programs, and Debian's
        command, capture_output=True, text=True, check=False, env={**_environment(), "PATH": path}
    )
    if result.returncode:
        said = (result.stderr or result.stdout).strip()[-2000:]
        raise SimulationError(f"{' '.join(command[:5])} ... failed:\n{said}")


def _environment() -> dict[str, str]:
    return dict(os.environ)


_STICK = "mkdir -p /run/stick && mount /dev/vdb /run/stick"
_SPOOL = "cp /run/stick/spool/* /data/graftwork/spool/ && chown -R graftwork: /data/graftwork/spool"
# Seldom: what asks takes the one emulated CPU from the agent, which is nice.
_JOINED = (
    f"""for i in $(seq 40); do sleep 15; {AGENT} | grep -q '"release": 2' && break; done; """
    f"""{AGENT} | grep '"release": 2' || {{ journalctl -u graftwork-agent -n 30 --no-pager; false; }}"""
)
_UPDATE = "graftwork-firmware device update --no-reboot /run/stick/"
_STEPS: tuple[dict[str, Any], ...] = (
    {"boot": "A"},
    {"run": f"{_STICK} && mkdir -p /data/graftwork/spool && {_SPOOL}"},
    {"run": _JOINED, "seconds": 900.0},
    {"run": f"{_UPDATE}{BETTER}.raucb"},
    {"reboot": "B"},
    {"run": "graftwork-firmware device status", "contains": f"healthy {BETTER}"},
    {"run": f"{_STICK} && {_UPDATE}{BROKEN}.raucb"},
    {"send": "systemctl reboot"},
    {"loader": "A"},
    {"loader": "A"},
    {"loader": "A"},
    {"boot": "B"},
    {"run": "graftwork-firmware device status", "contains": f"rolled back from {BROKEN} to {BETTER}"},
    {"run": "sleep 15"},
)
"""What happens to the device: it joins, is updated, gets a broken version, goes back after three tries."""
