"""graftwork-firmware: build, provision, flash and update device images."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firmware_tools import (
    build_commands,
    bundle_commands,
    device_commands,
    device_identity,
    flash_commands,
    golden,
    provision_commands,
    release_commands,
)
from firmware_tools.errors import FirmwareError
from firmware_tools.trim import trim


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="graftwork-firmware", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "trim", help="remove from a device's environment what an agent never loads, e.g. numpy's tests"
    )
    command.add_argument("environment", type=Path, help="a virtual environment that only the agent uses")
    command.add_argument("--dry-run", action="store_true", help="remove nothing, only say how much it is")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=_trim)
    build_commands.add_commands(commands)
    bundle_commands.add_commands(commands)
    release_commands.add_commands(
        _group(commands, "release", "a signed index of bundles that devices follow")
    )
    provision_commands.add_commands(commands)
    flash_commands.add_commands(commands)
    verify = _group(commands, "verify", "check media and root file systems")
    flash_commands.add_verify_commands(verify)
    golden.add_commands(verify)
    build_commands.add_verify_commands(verify)
    bundle_commands.add_verify_commands(verify)
    device = _group(
        commands, "device", "what runs on the device itself: health gate, updates, boot state, seed"
    )
    device_identity.add_commands(device)
    device_commands.add_commands(device)
    options = parser.parse_args(arguments)
    try:
        options.command(options)
    except (FirmwareError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _group(commands: Any, name: str, text: str) -> Any:
    """Commands below a command."""
    return commands.add_parser(name, help=text, description=text).add_subparsers(
        required=True, metavar="ACTION"
    )


def _trim(options: argparse.Namespace) -> None:
    found = trim(options.environment, dry_run=options.dry_run)
    if options.json:
        print(json.dumps(vars(found)))
        return
    for name, size in found.by_distribution.items():
        print(f"{name:16} {size / 1e6:6.1f} MB")
    verb = "would be removed" if options.dry_run else "removed"
    print(f"{found.files} files, {found.bytes / 1e6:.1f} MB {verb}")


if __name__ == "__main__":
    sys.exit(main())
