"""On the device, at its first boot: a seed becomes the agent's configuration and the device's secrets.

    1. services-ca.crt and root.json go beside agent.toml
    2. the secrets go into the identity directory, readable by their owner alone
    3. agent.toml is written: the agent's unit waits for it
    4. the secrets in the seed are overwritten and removed
    5. seed.toml is removed: the seed is taken

Each step leaves a whole file or none, and is done again after a power cut until step 5. Nothing is wiped
before all is on disk. Not here: the device's keys, which the agent makes; in air-gapped fleets the seed
holds one.
"""

import argparse
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firmware_tools import seed as seeds
from firmware_tools.errors import FirmwareError
from firmware_tools.seed import SeedDescription
from protocol import toml
from runtime.whole_files import PUBLIC, SECRET, own_as, sync, write


@dataclass(frozen=True)
class Taken:
    """What `take_seed` did."""

    device: str
    new: bool
    """False: the seed had been taken before, there was nothing to do."""


def add_commands(commands: Any) -> None:
    """Add `take-seed` to the commands of `graftwork-firmware device`."""
    text = "take over the identity that was provisioned; for a unit before the agent's"
    command = commands.add_parser("take-seed", help=text, description=text)
    command.add_argument("--seed", type=Path, required=True, metavar="DIR", help="where the seed is mounted")
    command.add_argument("--identity", type=Path, required=True, metavar="DIR", help="for the device's keys")
    command.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="agent.toml, to be written"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=_take)


def take_seed(seed: Path, identity: Path, config: Path) -> Taken:
    """Take a seed; may be called at every boot, and again after a power cut at any moment.

    Args:
        seed: folder of the seed; can be written to.
        identity: folder for the device's secrets; made where it is missing.
        config: agent.toml; its folder is made where it is missing.

    Raises:
        FirmwareError: there is no seed and no configuration, the seed is not whole, or the device has another
            identity already. Nothing is wiped then.
        OSError: a file cannot be written.
    """
    description_file = seed / seeds.SEED_FILE
    if not description_file.exists():
        return Taken(_configured(config, description_file), new=False)
    description = seeds.parse(seeds.read_file(description_file), description_file)
    public = {
        name: _whole(description, name, seed / name)
        for name in description.files
        if name not in description.secrets
    }
    secrets = {name: _secret(description, name, seed, identity) for name in description.secrets}
    _check_same_device(description, identity, config)
    for folder, mode in ((identity, 0o700), (config.parent, 0o755)):
        if not folder.exists():
            folder.mkdir(parents=True, mode=mode)
            own_as(folder.parent, folder)
            sync(folder.parent)
    for name in (seeds.SERVICES_CA, seeds.ROOT):
        if name in public:
            write(config.parent / name, public[name], PUBLIC)
    for name, content in secrets.items():
        if content is not None:
            write(identity / name, content, SECRET)
    text = seeds.configure(
        description,
        public.get(seeds.SETTINGS, b""),
        token_file=str(identity.absolute() / seeds.TOKEN),
        identity=str(identity.absolute()),
    )
    write(config, text, PUBLIC)
    for name in description.secrets:
        wipe(seed / name)
    description_file.unlink()
    sync(seed)
    return Taken(description.device, new=True)


def wipe(path: Path) -> None:
    """Overwrite a file with zeros, on disk, and remove it. Flash memory may still hold a copy of old blocks.

    Raises:
        OSError: it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    except FileNotFoundError:  # by the power cut before
        return
    try:
        os.write(descriptor, bytes(os.fstat(descriptor).st_size))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    path.unlink()
    sync(path.parent)


def _take(options: argparse.Namespace) -> None:
    taken = take_seed(options.seed, options.identity, options.config)
    if options.json:
        print(json.dumps(vars(taken)))
    else:
        print(f"{taken.device} " + ("has taken its seed" if taken.new else "had taken its seed before"))


def _configured(config: Path, missing: Path) -> str:
    """The device in agent.toml: its seed was taken before."""
    try:
        return str(toml.loads(config.read_text("utf-8"))["device"])
    except (OSError, KeyError, UnicodeDecodeError, toml.TOMLDecodeError) as error:
        raise FirmwareError(
            f"{missing}: expected a seed, as {config} names no device either; provision this medium: "
            "graftwork-firmware provision into"
        ) from error


def _whole(description: SeedDescription, name: str, path: Path) -> bytes:
    content = seeds.read_file(path)
    if hashlib.sha256(content).hexdigest() != description.files[name]:
        raise FirmwareError(f"{path}: not what {seeds.SEED_FILE} speaks of; provision this medium anew")
    return content


def _secret(description: SeedDescription, name: str, seed: Path, identity: Path) -> bytes | None:
    """A secret of the seed; None: it is in the identity directory, perhaps half wiped in the seed."""
    kept = identity / name
    if kept.exists() and hashlib.sha256(kept.read_bytes()).hexdigest() == description.files[name]:
        return None
    return _whole(description, name, seed / name)


def _check_same_device(description: SeedDescription, identity: Path, config: Path) -> None:
    if config.exists():
        device = _configured(config, config)
        if device != description.device:
            raise FirmwareError(
                f"expected a seed for {device}, which this device is, got one for {description.device}; for "
                f"another identity remove {config} and what is in {identity} first"
            )
    kept, wanted = identity / seeds.DEVICE_KEY, description.files.get(seeds.DEVICE_KEY)
    if wanted and kept.exists() and hashlib.sha256(kept.read_bytes()).hexdigest() != wanted:
        raise FirmwareError(
            f"{kept}: this device has a key already, and a key is never overwritten; for a repaired "
            f"device remove what is in {identity} first"
        )
