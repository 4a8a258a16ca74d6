"""Commands that make and check signed bundles, and the keys that sign them."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from firmware_tools.build.plan import file_sha256
from firmware_tools.bundles import BundleFacts, Signer, make_bundle, verify_bundle
from firmware_tools.errors import FirmwareError
from firmware_tools.signing_keys import KEYRING, ROOTS, SIGNER, make_keys, make_signer


def add_commands(commands: Any) -> None:
    """Add `keys` and `bundle` to a parser's commands."""
    keys = commands.add_parser("keys", help="keys that bundles are signed with")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    init = actions.add_parser("init", help="make two roots, a signer and the keyring for images")
    init.add_argument("directory", type=Path)
    init.add_argument("--name", default="graftwork", help="stands in the certificates (default: graftwork)")
    init.set_defaults(command=_keys_init)
    signer = actions.add_parser("signer", help="make a new signer under one of the roots")
    signer.add_argument("directory", type=Path)
    signer.add_argument("--root", choices=ROOTS, default=ROOTS[0], help=f"default: {ROOTS[0]}")
    signer.add_argument("--name", default="graftwork", help="stands in the certificate (default: graftwork)")
    signer.set_defaults(command=_keys_signer)

    bundle = commands.add_parser("bundle", help="make a signed update bundle of a root file system")
    bundle.add_argument(
        "rootfs", type=Path, help="rootfs.squashfs of `build`; its release.json lies beside it"
    )
    bundle.add_argument("--keys", type=Path, help="folder of `keys init`")
    bundle.add_argument("--cert", help="certificate of the signer, instead of --keys; file or PKCS #11 URI")
    bundle.add_argument("--key", help="key of the signer, instead of --keys; file or PKCS #11 URI")
    bundle.add_argument("--pkcs11-module", default="", help="library of the token, where the key is a URI")
    bundle.add_argument("--output", type=Path, required=True, metavar="FILE", help="bundle to write")
    bundle.set_defaults(command=_bundle)


def add_verify_commands(verify: Any) -> None:
    """Add `verify bundle`."""
    bundle = verify.add_parser("bundle", help="check a bundle's signature and every byte of its payload")
    bundle.add_argument("bundle", type=Path)
    bundle.add_argument("--keyring", type=Path, required=True, help="keyring.pem that devices have")
    bundle.set_defaults(command=_verify_bundle)


def _keys_init(options: argparse.Namespace) -> None:
    make_keys(options.directory, options.name, time.time())
    print(
        f"made {options.directory}; put {' and '.join(f'{root}.key' for root in ROOTS)} into two safes, and "
        f"give {KEYRING} to `build`"
    )


def _keys_signer(options: argparse.Namespace) -> None:
    make_signer(options.directory, options.name, options.root, time.time())
    print(f"made a new {SIGNER} under {options.root}; devices take its bundles at once")


def _bundle(options: argparse.Namespace) -> None:
    if (options.keys is None) == (options.cert is None or options.key is None):
        raise FirmwareError("expected --keys DIR, or --cert and --key")
    signer = Signer(options.cert or "", options.key or "", options.pkcs11_module)
    if options.keys is not None:
        signer = Signer(str(options.keys / f"{SIGNER}.crt"), str(options.keys / f"{SIGNER}.key"))
    described = options.rootfs.with_name("release.json")
    try:
        facts = json.loads(described.read_text("utf-8"))
        if facts["rootfs_sha256"] != file_sha256(options.rootfs):
            raise FirmwareError(f"{options.rootfs} is not the file that {described} speaks of; build again")
        bundle = BundleFacts(facts["compatible"], facts["version"])
    except (OSError, ValueError, KeyError) as error:
        raise FirmwareError(f"{described}: expected the description that `build` writes: {error}") from error
    make_bundle(options.rootfs, options.output, bundle, signer)
    print(
        f"{options.output}: version {bundle.version} for {bundle.compatible}, "
        f"{options.output.stat().st_size:,} bytes"
    )


def _verify_bundle(options: argparse.Namespace) -> None:
    facts = verify_bundle(options.bundle, options.keyring)
    print(f"good: version {facts.version} for {facts.compatible}; every byte was read")
