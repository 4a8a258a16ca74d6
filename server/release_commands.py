"""Operators' commands that change what the fleet runs: push a package, go back to a release or a package."""

import argparse
import contextlib
import hashlib
import time
from pathlib import Path

from protocol.errors import SignatureError
from protocol.package import ModelPackage, unpack
from protocol.rollback import Rollback, read_rollback, sign_rollback
from protocol.signing import PublicKey
from runtime.command_line import Add
from runtime.keys import load_or_make
from server.config import ServerConfig
from server.errors import ServerError
from server.evaluation import first_default
from server.keys import SIGNING_FILE
from server.store import Store
from server.table import open_store
from server.withdrawals import replacement

RECOVERY = 10_000
"""More releases than any backup is old."""
ORDER_SECONDS = 90 * 86_400.0
"""How long an order is good that the server signs itself."""


def add_commands(add: Add) -> None:
    """Add `push` and `rollback` to the server's command line."""
    push = add("push", _push, "check a model package and send it to the federation")
    push.add_argument("package", type=Path, help="file that graftwork-models wrote")
    push.add_argument("--publisher", help="public key (hexadecimal) that must have signed it")
    push.add_argument(
        "--rollback",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="ORDER",
        help="go back to an older version: file with the publisher's order (graftwork-models rollback); "
        "without a file the server orders it, where the federation has no publishers",
    )
    rollback = add("rollback", _rollback, "go back to an earlier release of the package that runs")
    rollback.add_argument("release", type=int, help="its number, see `releases`")
    rollback.add_argument("--reason", default="", help="for the record")
    recover = add(
        "recover", _recover, "after restoring a backup: go on with numbers that devices have not seen"
    )
    recover.add_argument(
        "--by", type=int, default=RECOVERY, help=f"how many numbers are passed over (default: {RECOVERY})"
    )


def _push(options: argparse.Namespace, config: ServerConfig) -> int:
    data = options.package.read_bytes()
    with open_store(config) as store:
        publishers = _publishers(options, config, store)
        package = _unpack(data, publishers)
        order = _order(options, config, store, package, publishers)
        name = f"{package.manifest.name} {package.manifest.version}"
        version = store.add_package(
            data,
            package.sha256,
            name,
            package.adapter,
            time.time(),
            default=first_default(package.manifest.tasks),
            rollback=order,
        )
    print(
        f"pushed {name} as version {version}: {len(data):,} bytes, "
        f"{package.manifest.parameters:,} adapter parameters, sha256 {package.sha256.hex()}"
    )
    return 0


def _rollback(options: argparse.Namespace, config: ServerConfig) -> int:
    with open_store(config) as store:
        newest, restored = store.newest_release(), store.release(options.release)
        if newest is None or restored is None:
            raise ServerError(f"there is no release {options.release}; see: graftwork-server releases")
        if restored.package_version != newest.package_version:
            raise ServerError(
                f"release {restored.number} is of another package than the one that runs: push that package "
                "with --rollback"
            )
        if restored.number >= newest.number:
            raise ServerError(f"expected a release before {newest.number}, the newest, got {restored.number}")
        reason = f"by the operator{': ' if options.reason else ''}{options.reason}"
        if not store.withdraw(reason, {}, replacement(newest, restored, time.time())):
            raise ServerError("another release came in between; look at `releases`, and try again")
    print(f"release {newest.number + 1} is release {restored.number} once more")
    return 0


def _recover(options: argparse.Namespace, config: ServerConfig) -> int:
    if options.by < 1:
        raise ServerError(f"--by: expected 1 or more, got {options.by}")
    with open_store(config) as store:
        release = store.skip_numbers(options.by, time.time())
    print(f"packages, rounds and releases go on from release {release}, which is the newest one once more")
    return 0


def _publishers(options: argparse.Namespace, config: ServerConfig, store: Store) -> list[PublicKey]:
    """Who may sign: whom the operator names, else the configuration, else the root."""
    named = [options.publisher] if options.publisher else config.publishers
    if named:
        return [PublicKey.from_hex(key) for key in named]
    root = store.newest_root()
    return list(root.publishers) if root else []


def _unpack(data: bytes, publishers: list[PublicKey]) -> ModelPackage:
    if not publishers:
        print("note: no publisher is configured, so the package's own signature is not checked")
        return unpack(data, None)
    for publisher in publishers[:-1]:
        with contextlib.suppress(SignatureError):
            return unpack(data, publisher)
    return unpack(data, publishers[-1])


def _order(
    options: argparse.Namespace,
    config: ServerConfig,
    store: Store,
    package: ModelPackage,
    publishers: list[PublicKey],
) -> bytes | None:
    """The signed order to go back, where the package is older than the one that runs; None: it is not.

    Raises:
        ServerError: an order is needed, or the one that was given is for another step.
    """
    manifest, now = package.manifest, time.time()
    if manifest.expires and now > manifest.expires:
        raise ServerError(
            f"package {manifest.name} {manifest.version} has expired: no device would install it"
        )
    held = _version_that_devices_had(store, manifest.name)
    if held is None or manifest.version >= held:
        return None
    if options.rollback is None:
        raise ServerError(
            f"version {manifest.version} of {manifest.name} is older than {held}, which devices had: they "
            "would refuse it; to go back, add --rollback"
        )
    if options.rollback != Path():
        envelope: bytes = options.rollback.read_bytes()
        order = read_rollback(envelope, publishers)
    elif publishers:
        raise ServerError(
            "only a publisher may order to go back: --rollback ORDER (graftwork-models rollback)"
        )
    else:
        order = Rollback(manifest.name, held, manifest.version, package.sha256, now + ORDER_SECONDS)
        envelope = sign_rollback(order, load_or_make(Path(config.data_directory) / SIGNING_FILE))
    if not order.allows(manifest.name, held, manifest.version, package.sha256, now):
        raise ServerError(
            f"the order is to go back from {order.name} {order.from_version} to {order.to_version}, and not "
            f"from {held} to this package; or it has expired"
        )
    return envelope


def _version_that_devices_had(store: Store, name: str) -> int | None:
    """Version of the newest package of this name, which need not be the one that runs."""
    newest = store.newest_package()
    for number in range(newest.version if newest else 0, 0, -1):
        record = store.package(number)
        if record is None or not f"{record.name} ".startswith(f"{name} "):
            continue
        data = store.package_path(record.sha256).read_bytes()
        manifest = unpack(data, None).manifest  # checked when it was pushed
        if hashlib.sha256(data).digest() == record.sha256 and manifest.name == name:
            return manifest.version
    return None
