"""`graftwork-models inspect`, `verify`, `rollback`: what a package says, and the order to go back to it."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from models.errors import ModelError
from protocol.package import MAX_PACKAGE_BYTES, unpack
from protocol.rollback import Rollback, sign_rollback
from protocol.signing import PublicKey
from runtime import keys

DAY = 86_400.0


def add(commands: Any) -> None:
    """Add the commands to a parser's.

    Args:
        commands: what `add_subparsers` returned.
    """
    command = commands.add_parser("inspect", help="show what a package says of itself")
    command.add_argument("package", type=Path)
    command.add_argument("--publisher", metavar="HEX", help="public key; checks the signature")
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(command=_inspect)

    command = commands.add_parser("verify", help="check signature, hashes and graphs; status 1 if any fails")
    command.add_argument("package", type=Path)
    command.add_argument("--publisher", required=True, metavar="HEX", help="who must have signed it")
    command.set_defaults(command=_verify)

    command = commands.add_parser("rollback", help="sign the order to go back to an older package")
    command.add_argument("package", type=Path, help="the older package")
    command.add_argument("--from-version", type=int, required=True, help="the version that is left, at most")
    command.add_argument("--key", type=Path, required=True, help="the publisher's key")
    command.add_argument("--days", type=float, default=30.0, help="how long it is good (default: 30)")
    command.add_argument("--output", type=Path, required=True, metavar="ORDER", help="file to write")
    command.set_defaults(command=_rollback)


def _inspect(options: argparse.Namespace) -> None:
    from models.packages import describe  # noqa: PLC0415

    publisher = PublicKey.from_hex(options.publisher) if options.publisher else None
    facts = describe(_read(options.package), publisher)
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(title=f"{facts['name']} version {facts['version']}", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if isinstance(value, dict):
            table.add_section()
            for entry, content in value.items():
                table.add_row(f"{name}.{entry}", _text(content))
            table.add_section()
        else:
            table.add_row(name, _text(value))
    Console().print(table)


def _verify(options: argparse.Namespace) -> None:
    from models.engine_checks import check_engines  # noqa: PLC0415
    from models.packages import verify  # noqa: PLC0415

    package = verify(_read(options.package), PublicKey.from_hex(options.publisher))
    manifest = package.manifest
    for engine, reason in check_engines(package).items():
        print(f"not run: the members for {engine} ({reason})")
    print(f"good: {manifest.name} version {manifest.version}, sha256 {package.sha256.hex()}")


def _rollback(options: argparse.Namespace) -> None:
    key = keys.read(options.key)
    package = unpack(_read(options.package), key.public)
    manifest, expires = package.manifest, time.time() + options.days * DAY
    if options.from_version <= manifest.version:
        raise ModelError(f"--from-version: expected more than {manifest.version}, the version gone back to")
    order = Rollback(manifest.name, options.from_version, manifest.version, package.sha256, expires)
    options.output.write_bytes(sign_rollback(order, key))
    print(
        f"wrote {options.output}: {order.name} may go back from version {order.from_version} to "
        f"{order.to_version}; next: graftwork-server push {options.package} --rollback {options.output}"
    )


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_PACKAGE_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{file}: not readable: {error.strerror}") from error


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
