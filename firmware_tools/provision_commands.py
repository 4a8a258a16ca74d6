"""`graftwork-firmware provision`: identities from the factory to the scrap heap."""

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from firmware_tools import seed as seeds
from firmware_tools import seed_image
from firmware_tools.build.plan import file_sha256
from firmware_tools.errors import FirmwareError
from firmware_tools.ledger import COLUMNS, Ledger, parse_keys
from firmware_tools.ledger_schema import ENROLLED, PROVISIONED, STATUSES
from firmware_tools.media import check_target, find, list_media
from firmware_tools.provisioning import (
    DIRECTORY,
    FORMATS,
    Fleet,
    make_identities,
    read_serials,
    replace_identity,
    serials,
)
from protocol.errors import SignatureError
from protocol.signing import PublicKey

Add = Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]


def add_commands(commands: Any) -> None:
    """Add `provision` with its actions to the commands of `graftwork-firmware`."""
    text = "give devices their identities, and keep the ledger of them"
    actions = commands.add_parser("provision", help=text, description=text).add_subparsers(
        required=True, metavar="ACTION"
    )

    def add(name: str, function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        action: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
        action.set_defaults(command=function)
        action.add_argument(
            "--ledger", type=Path, default=Path("ledger.sqlite"), help="the ledger (default: ledger.sqlite)"
        )
        return action

    _add_making(add)
    _add_keeping(add)


def _add_making(add: Add) -> None:
    naming = add("names", _names, "print names of devices, e.g. for `graftwork-server devices token`")
    making = add("identities", _identities, "plan devices, and write a seed for each")
    for action in (naming, making):
        names = action.add_mutually_exclusive_group(required=True)
        names.add_argument("--count", type=int, help="how many")
        names.add_argument("--names", type=Path, metavar="FILE", help="names of devices, one in each line")
        action.add_argument("--prefix", default="edge-", help="with --count, what names begin with (edge-)")
        action.add_argument("--start", type=int, default=1, help="with --count, the first number (1)")
    repair = add("rma", _rma, "replace the record of a device after a repair, and write a new seed")
    repair.add_argument("serial", help="name of the device that was repaired")
    repair.add_argument("--new-serial", metavar="NAME", help="of the repaired device (default: the same)")
    repair.add_argument("--reason", default="repair", help="for the record")
    repair.add_argument(
        "--keep-medium", action="store_true", help="it keeps its medium, e.g. memory that is soldered on"
    )
    for action in (making, repair):
        _add_fleet(action)
    into = add("into", _into, "write a seed into the seed partition of an image or a medium")
    into.add_argument("target", type=Path, help="image, or block device")
    into.add_argument("--seed", type=Path, required=True, help="folder or FAT image of the seed")
    into.add_argument("--replace", action="store_true", help="also where a seed or keys are there already")
    into.add_argument("--medium", help="serial of the medium, where the ledger should have it")
    into.add_argument("--large", action="store_true", help="the medium is larger than cards usually are")
    into.add_argument("--internal", action="store_true", help="the medium is an internal disk")


def _add_fleet(action: argparse.ArgumentParser) -> None:
    action.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the seeds")
    action.add_argument("--federation", required=True, help="name of the federation")
    trust = action.add_mutually_exclusive_group(required=True)
    trust.add_argument("--server-key", default="", help="what `graftwork-server key` printed")
    trust.add_argument("--root", type=Path, help="the federation's root of trust")
    action.add_argument("--broker-host", required=True, help="of the broker, as devices reach it")
    action.add_argument("--broker-port", type=int, default=8883, help="of the broker (8883)")
    action.add_argument("--enrolment-port", type=int, default=8884, help="for newcomers (8884); 0: none")
    action.add_argument("--services-ca", type=Path, metavar="FILE", help="certificate of the services' CA")
    action.add_argument("--settings", type=Path, metavar="FILE", help="further settings for agent.toml")
    action.add_argument(
        "--tokens", type=Path, metavar="DIR", help="with what `graftwork-server devices token --output` wrote"
    )
    action.add_argument(
        "--factory-keys",
        action="store_true",
        help="air-gapped: make the devices' keys here, not on the device",
    )
    action.add_argument("--format", choices=FORMATS, default=DIRECTORY, help="of the seeds")


def _add_keeping(add: Add) -> None:
    listing = add("list", _list, "list the records")
    listing.add_argument("--status", choices=STATUSES, help="only those")
    listing.add_argument("--json", action="store_true", help="print JSON")
    history = add("history", _history, "list what happened to a device, through all its records")
    history.add_argument("serial", help="name of the device")
    revoke = add("revoke", _revoke, "put a device out of use (and `graftwork-server devices revoke` it)")
    revoke.add_argument("serial", help="name of the device")
    revoke.add_argument("--reason", default="by the operator", help="for the record")
    export = add("export", _export, "print all records")
    export.add_argument("--format", choices=("json", "csv"), default="json")
    record = add("record", _record, "note what is known of a device, or which devices have enrolled")
    which = record.add_mutually_exclusive_group(required=True)
    which.add_argument("serial", nargs="?", help="name of the device")
    which.add_argument(
        "--devices", type=Path, metavar="FILE", help="what `graftwork-server devices --json` printed"
    )
    record.add_argument("--status", choices=(PROVISIONED, ENROLLED))
    record.add_argument("--public-key", metavar="HEX", help="of the device")
    record.add_argument("--image", type=Path, help="image on its medium; its SHA-256 is noted")
    record.add_argument("--medium", help="serial of its medium")


def _names(options: argparse.Namespace) -> None:
    print("\n".join(_chosen(options)))


def _chosen(options: argparse.Namespace) -> list[str]:
    if options.names:
        return read_serials(options.names.read_text("utf-8"))
    return serials(options.prefix, options.count, options.start)


def _identities(options: argparse.Namespace) -> None:
    names = _chosen(options)
    with Ledger(options.ledger) as ledger:
        make_identities(ledger, names, _fleet(options), options.output, time.time())
    print(f"planned {len(names)} devices, {names[0]} to {names[-1]}; their seeds are in {options.output}")


def _rma(options: argparse.Namespace) -> None:
    with Ledger(options.ledger) as ledger:
        replace_identity(
            ledger,
            options.serial,
            _fleet(options),
            options.output,
            time.time(),
            new_serial=options.new_serial,
            reason=options.reason,
            keep_medium=options.keep_medium,
        )
    print(
        f"replaced {options.serial} by {options.new_serial or options.serial}; its seed is in "
        f"{options.output}"
    )


def _fleet(options: argparse.Namespace) -> Fleet:
    if options.enrolment_port and not options.services_ca:
        raise FirmwareError(
            "--services-ca: expected the certificate of the services' CA, as devices are to enrol; without "
            "enrolment: --enrolment-port 0"
        )
    if not options.factory_keys and options.enrolment_port and not options.tokens:
        raise FirmwareError(
            "--tokens: expected the folder that `graftwork-server devices token NAME... --output DIR` "
            "wrote to; for devices without a token: --factory-keys"
        )
    named = {
        seeds.SERVICES_CA: options.services_ca,
        seeds.ROOT: options.root,
        seeds.SETTINGS: options.settings,
    }
    files = {name: seeds.read_file(path) for name, path in named.items() if path}
    seeds.check_settings(files.get(seeds.SETTINGS, b""))
    return Fleet(
        options.federation,
        options.broker_host,
        options.broker_port,
        options.enrolment_port,
        options.server_key,
        files,
        options.tokens,
        options.factory_keys,
        options.format,
    )


def _into(options: argparse.Namespace) -> None:
    medium = find(list_media(), options.target) if options.target.is_block_device() else None
    serial = options.medium
    if options.target.is_block_device():
        check_target(options.target, medium, 0, large=options.large, internal=options.internal)
        serial = serial or (medium.serial if medium else "")
    elif not options.target.is_file():
        raise FirmwareError(f"{options.target}: expected an image or a block device")
    description = seed_image.read_seed(options.seed)
    with Ledger(options.ledger) as ledger:
        ledger.check_flash(serial or "", description.device)
        seed_image.put(options.seed, options.target, replace=options.replace)
        ledger.record(description.device, time.time(), status=PROVISIONED, medium=serial or None)
    print(f"{options.target} is {description.device} now; what was written reads back")


def _list(options: argparse.Namespace) -> None:
    with Ledger(options.ledger) as ledger:
        rows = ledger.records(options.status)
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        key, medium = (row["public_key"] or "-")[:16], row["medium"] or "-"
        print(f"{row['serial']:20} {row['status']:12} {key:16}  {medium:20} {row['reason']}".rstrip())
    print(f"{len(rows)} records")


def _history(options: argparse.Namespace) -> None:
    with Ledger(options.ledger) as ledger:
        rows = ledger.history(options.serial)
    for row in rows:
        when = datetime.fromtimestamp(row["at"], timezone.utc)
        print(f"{when:%Y-%m-%d %H:%M:%S}Z  {row['change']}")


def _revoke(options: argparse.Namespace) -> None:
    with Ledger(options.ledger) as ledger:
        ledger.revoke(options.serial, options.reason, time.time())
    print(f"revoked {options.serial} here; at the server: graftwork-server devices revoke {options.serial}")


def _export(options: argparse.Namespace) -> None:
    with Ledger(options.ledger) as ledger:
        rows = ledger.records()
    if options.format == "json":
        print(json.dumps(rows, indent=1))
        return
    writer = csv.DictWriter(sys.stdout, [*COLUMNS, "replaces"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _record(options: argparse.Namespace) -> None:
    with Ledger(options.ledger) as ledger:
        if options.devices:
            try:
                keys = parse_keys(json.loads(options.devices.read_text("utf-8")))
            except ValueError as error:
                raise FirmwareError(f"{options.devices}: not JSON: {error}") from error
            print(f"{ledger.record_enrolled(keys, time.time())} devices have enrolled")
            return
        try:
            key = PublicKey.from_hex(options.public_key) if options.public_key else None
        except SignatureError as error:
            raise FirmwareError(f"--public-key: {error}") from error
        image = file_sha256(options.image) if options.image else None
        ledger.record(
            options.serial,
            time.time(),
            status=options.status,
            public_key=key,
            image_sha256=image,
            medium=options.medium,
        )
    print(f"noted {options.serial}")
