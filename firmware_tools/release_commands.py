"""`graftwork-firmware release`: an index of update bundles, signed, for a web server or a USB stick."""

import argparse
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firmware_tools.build.spec import check_version
from firmware_tools.bundles import verify_bundle
from firmware_tools.errors import FirmwareError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firmware_tools.release import Publisher

INDEX_DAYS = 14


def add_commands(actions: Any) -> None:
    """Add the actions to those of `release`."""
    init = actions.add_parser("init", help="make the keys, and an index that holds nothing yet")
    init.add_argument("directory", type=Path, help="what will be served, or copied to a stick")
    init.add_argument("--keys", type=Path, required=True, help="new folder for the keys, apart from it")
    init.add_argument("--root-keys", type=int, default=3, help="that stay offline (default: 3)")
    init.add_argument(
        "--threshold", type=int, default=2, help="root keys that it takes to change a key (default: 2)"
    )
    init.set_defaults(command=_init)

    add = _signing(actions, "add", "verify bundles wholly and add them")
    add.add_argument("bundle", type=Path, nargs="+")
    add.add_argument("--keyring", type=Path, required=True, help="keyring.pem that devices have")
    add.add_argument("--older", action="store_true", help="also below the newest version for these boards")
    add.set_defaults(command=_add)

    floor = _signing(actions, "floor", "say the lowest version that devices may install from now on")
    floor.add_argument("compatible", help="of the boards")
    floor.add_argument("version", help="e.g. 1.4.0; it never sinks")
    floor.set_defaults(command=_floor)

    refresh = _signing(actions, "refresh", "renew for how long the index is good; for cron")
    refresh.add_argument("--root", action="store_true", help="the root, too: needs its keys")
    refresh.set_defaults(command=_refresh)

    rotate = _signing(actions, "rotate-key", "put a new key into the place of one")
    rotate.add_argument("role", help="targets, snapshot, timestamp or root-N")
    rotate.set_defaults(command=_rotate)

    show = actions.add_parser("list", help="show what a device would see")
    show.add_argument("directory", type=Path)
    _root_option(show)
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(command=_list)

    verify = actions.add_parser("verify", help="check every signature and every byte, as devices do")
    verify.add_argument("directory", type=Path)
    _root_option(verify)
    verify.set_defaults(command=_verify)


def _signing(actions: Any, name: str, text: str) -> Any:
    parser = actions.add_parser(name, help=text)
    parser.add_argument("directory", type=Path, help="of the index")
    parser.add_argument(
        "--keys", type=Path, action="append", required=True,
        help="folder with keys and root.json; repeat it for keys on several media, new ones go to the first",
    )  # fmt: skip
    parser.add_argument(
        "--days", type=int, default=INDEX_DAYS, help=f"that the index is good for (default: {INDEX_DAYS})"
    )
    return parser


def _root_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, required=True, help="root.json that images are built with")


def _init(options: argparse.Namespace) -> None:
    from firmware_tools import release  # noqa: PLC0415 - the device's commands do without python-tuf
    from firmware_tools.release_keys import ROOT_FILE  # noqa: PLC0415

    release.create(
        options.directory, options.keys, time.time(),
        root_keys=options.root_keys, threshold=options.threshold,
    )  # fmt: skip
    names = ", ".join(f"root-{number + 1}.key" for number in range(options.root_keys))
    print(
        f"made {options.directory}; put {names} into safes, each in another, and give "
        f"{options.keys / ROOT_FILE} to `build --release-root`"
    )


def _add(options: argparse.Namespace) -> None:
    verified = [(bundle, verify_bundle(bundle, options.keyring)) for bundle in options.bundle]
    with _publishing(options) as publisher:
        for bundle, facts in verified:
            found, new = publisher.add(bundle, facts, time.time(), older=options.older, days=options.days)
            print(f"{'added' if new else 'there already:'} {found.version} for {found.compatible}")
        _say_expiry(publisher)


def _floor(options: argparse.Namespace) -> None:
    with _publishing(options) as publisher:
        publisher.set_floor(
            options.compatible, check_version(options.version), time.time(), days=options.days
        )
    print(f"{options.compatible}: nothing below {options.version}, on every device that sees this index")


def _refresh(options: argparse.Namespace) -> None:
    with _publishing(options) as publisher:
        publisher.refresh(time.time(), days=options.days, root=options.root)
        _say_expiry(publisher)


def _rotate(options: argparse.Namespace) -> None:
    with _publishing(options) as publisher:
        path = publisher.rotate(options.role, options.keys[0], time.time(), days=options.days)
    print(f"made {path}; the key before counts for nothing any more, once devices have seen this index")


@contextlib.contextmanager
def _publishing(options: argparse.Namespace) -> "Iterator[Publisher]":
    """Who signs; while they do, no other command changes the index."""
    from firmware_tools.release import Publisher  # noqa: PLC0415
    from firmware_tools.release_files import locked  # noqa: PLC0415
    from firmware_tools.release_keys import check_apart, first_root, load_keys  # noqa: PLC0415

    if not 1 <= options.days <= 366:
        raise FirmwareError(f"--days: expected 1 to 366, got {options.days}")
    for folder in options.keys:
        check_apart(options.directory, folder)
    with locked(options.directory):
        yield Publisher.open(options.directory, first_root(options.keys), load_keys(options.keys))


def _say_expiry(publisher: "Publisher") -> None:
    from firmware_tools.release_index import written  # noqa: PLC0415

    print("good until: " + ", ".join(f"{role} {written(when)}" for role, when in publisher.expiry().items()))


def _list(options: argparse.Namespace) -> None:
    from firmware_tools.release import Publisher  # noqa: PLC0415
    from firmware_tools.release_index import written  # noqa: PLC0415

    publisher = Publisher.open(options.directory, options.root.read_bytes(), {})
    index, expiry = publisher.index, publisher.expiry()
    if options.json:
        releases = [vars(release) for release in index.releases]
        print(json.dumps({"releases": releases, "floors": dict(index.floors), "expires": expiry}))
        return
    for found in index.releases:
        floor = " (floor)" if index.floors.get(found.compatible) == found.version else ""
        print(f"{found.compatible:24} {found.version:12} {found.length:>13,} {found.sha256[:16]}{floor}")
    for role, when in expiry.items():
        print(f"{role:10} good until {written(when)}")


def _verify(options: argparse.Namespace) -> None:
    from firmware_tools.release_client import ReleaseClient  # noqa: PLC0415
    from firmware_tools.release_index import BUNDLES  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as store:
        client = ReleaseClient(options.root.read_bytes(), Path(store), str(options.directory), time.time())
        index = client.index()
        bad = [
            found.file_name
            for found in index.releases
            if not client.is_whole(found, options.directory / BUNDLES / found.file_name)
        ]
    if bad:
        raise FirmwareError(f"missing or changed: {', '.join(bad)}; put them back from where they were built")
    print(f"good: {len(index.releases)} bundles; every byte was read")
