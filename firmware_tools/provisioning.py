"""Making identities: seeds and records of many devices in one step, all of them or none.

The ledger and the seeds come to be together: the seeds are written while the ledger's transaction is open,
and it is committed when they are on disk. A serial in the ledger always has its seed.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from firmware_tools import seed as seeds
from firmware_tools import seed_image
from firmware_tools.errors import FirmwareError
from firmware_tools.ledger import Ledger
from firmware_tools.seed import SeedDescription
from protocol.signing import PrivateKey, PublicKey
from runtime.whole_files import sync

DIRECTORY, FAT = FORMATS = ("directory", "fat")
IMAGE_SUFFIX = ".seed.img"


@dataclass(frozen=True)
class Fleet:
    """What the seeds of a fleet have in common."""

    federation: str
    broker_host: str
    broker_port: int = 8883
    enrolment_port: int = 0
    server_key: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Of every seed: services-ca.crt, root.json, settings.toml."""
    tokens: Path | None = None
    """Folder of NAME.token files; None: the devices get none."""
    factory_keys: bool = False
    """Whether keys are made here, for air-gapped devices; else each device makes its own."""
    form: str = DIRECTORY
    """"directory" or "fat"."""

    def description(self, name: str, files: Mapping[str, bytes]) -> SeedDescription:
        """What the seed of one device says.

        Raises:
            FirmwareError: a value is out of range.
        """
        hashes = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        try:
            return SeedDescription(
                name,
                self.federation,
                self.broker_host,
                self.broker_port,
                self.enrolment_port,
                self.server_key,
                hashes,
            )
        except ValueError as error:
            raise FirmwareError(str(error)) from error


def serials(prefix: str, count: int, start: int = 1) -> list[str]:
    """Serials that are counted up, all of the same length, e.g. edge-0001.

    Raises:
        FirmwareError: fewer than one.
    """
    if count < 1 or start < 0:
        raise FirmwareError(f"--count: expected at least 1 and --start at least 0, got {count} and {start}")
    digits = max(4, len(str(start + count - 1)))
    return [f"{prefix}{number:0{digits}}" for number in range(start, start + count)]


def read_serials(text: str) -> list[str]:
    """Serials from a file with one in each line; empty lines and those that begin with # are passed over.

    Raises:
        FirmwareError: there is none, or one stands there twice.
    """
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    twice = {name for name in found if found.count(name) > 1} if len(set(found)) < len(found) else set()
    if twice or not found:
        raise FirmwareError("names: expected each once, got " + (f"{min(twice)} twice" if twice else "none"))
    return found


def make_identities(ledger: Ledger, names: Sequence[str], fleet: Fleet, output: Path, now: float) -> None:
    """Plan devices and write their seeds to `output`.

    Raises:
        FirmwareError: a serial is used, a token is missing, or a seed is there already. Nothing is left then.
    """
    keys = {name: PrivateKey.generate() for name in names} if fleet.factory_keys else {}
    public: dict[str, PublicKey | None] = {
        name: keys[name].public if name in keys else None for name in names
    }
    ledger.plan(public, now, before_commit=lambda: write_seeds(names, keys, fleet, output))


def replace_identity(
    ledger: Ledger,
    serial: str,
    fleet: Fleet,
    output: Path,
    now: float,
    *,
    new_serial: str | None = None,
    reason: str = "repair",
    keep_medium: bool = False,
) -> None:
    """Replace the record of a device after a repair, and write the seed of the new one to `output`.

    Raises:
        FirmwareError: as `make_identities`.
    """
    name = new_serial or serial
    keys = {name: PrivateKey.generate()} if fleet.factory_keys else {}
    ledger.rma(
        serial,
        now,
        new_serial=new_serial,
        key=keys[name].public if keys else None,
        reason=reason,
        keep_medium=keep_medium,
        before_commit=lambda: write_seeds([name], keys, fleet, output),
    )


def write_seeds(names: Sequence[str], keys: Mapping[str, PrivateKey], fleet: Fleet, output: Path) -> None:
    """Write a seed for each name, on disk when this returns; all of them or none.

    Args:
        names: of the devices.
        keys: made at the factory, by name; empty: the devices make theirs.
        fleet: what the seeds have in common.
        output: folder for them; made where it is missing.

    Raises:
        FirmwareError: a token is missing, or a seed is there already.
    """
    output.mkdir(parents=True, exist_ok=True, mode=0o700)
    suffix = IMAGE_SUFFIX if fleet.form == FAT else ""
    for name in names:
        if (output / (name + suffix)).exists():
            raise FirmwareError(
                f"{output / (name + suffix)} exists; a seed is never overwritten, choose another --output"
            )
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=output) as folder:
        stage = Path(folder)
        for name in names:
            _write_seed(name, keys.get(name), fleet, stage / name)
            if suffix:
                seed_image.make_image(stage / name, stage / (name + suffix))
        os.sync()  # at once: thousands of small files, one by one, would take minutes
        for name in names:
            (stage / (name + suffix)).rename(output / (name + suffix))
    sync(output)


def _write_seed(name: str, key: PrivateKey | None, fleet: Fleet, directory: Path) -> None:
    files = dict(fleet.files)
    if fleet.tokens is not None:
        token = fleet.tokens / f"{name}.token"
        files[seeds.TOKEN] = seeds.read_file(token)
        seeds.check_token(files[seeds.TOKEN], token)
    if key is not None:
        files[seeds.DEVICE_KEY] = (key.raw.hex() + "\n").encode()
    seeds.write(directory, fleet.description(name, files), files)
