"""Operators' commands on the federation's root of trust, and on the server's own keys."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from protocol.errors import ProtocolError
from protocol.field_checks import check_range
from protocol.signing import PrivateKey, PublicKey
from protocol.trust import MAX_ROOT_BYTES, first_root
from runtime import keys as key_files
from runtime import whole_files
from server.config import ServerConfig
from server.errors import ServerError
from server.keys import NEXT_SIGNING_FILE, SIGNING_FILE, replace_sealing_key
from server.root_ceremony import add_signature, describe, draft
from server.table import open_store

Command = Callable[[argparse.Namespace, ServerConfig], int]
DAY = 86_400.0
MIN_DAYS, MAX_DAYS = 1, 36_500


def add_root_commands(parser: argparse.ArgumentParser) -> None:
    """Add the actions of `graftwork-server root`."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def add(name: str, function: Command, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text)
        action.set_defaults(action=function)
        return action

    keygen = add("keygen", _keygen, "make a root key; its holder keeps the file offline")
    keygen.add_argument("file", type=Path)
    keygen.set_defaults(offline=True)
    new = add("draft", _draft, "write the next version of the root, for the holders to sign")
    new.add_argument("file", type=Path, help="file to write")
    new.add_argument("--root-key", action="append", metavar="HEX", help="public key of a holder (repeat)")
    new.add_argument(
        "--threshold", type=int, help="holders that it takes (default: as before, else a majority)"
    )
    new.add_argument("--publisher", action="append", metavar="HEX", help="who may sign packages (repeat)")
    new.add_argument("--days", type=float, default=730.0, help="how long it is good (default: 730)")
    sign = add("sign", _sign, "add a holder's signature to a draft")
    sign.add_argument("file", type=Path)
    sign.add_argument("--key", type=Path, required=True, help="file of the holder's root key")
    sign.set_defaults(offline=True)
    install = add("install", _install, "make a signed draft the root that holds")
    install.add_argument("file", type=Path)
    export = add("export", _export, "write the first version of the root, which devices are given")
    export.add_argument("file", type=Path)
    show = add("show", _show, "show the root that holds, or a file")
    show.add_argument("file", type=Path, nargs="?")


def run_root(options: argparse.Namespace, config: ServerConfig) -> int:
    """Run the chosen action."""
    action: Command = options.action
    return action(options, config)


def add_key_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `graftwork-server key`."""
    parser.add_argument(
        "--next",
        action="store_true",
        help="make the key that follows: it signs once a root names it and the server was restarted",
    )
    parser.add_argument("--new-sealing", action="store_true", help="replace the key that devices seal to")


def run_key(options: argparse.Namespace, config: ServerConfig) -> int:
    """Print the server's public key, or make new keys."""
    directory = Path(config.data_directory)
    if options.new_sealing:
        key = replace_sealing_key(directory, config.trust.sealing)
        print(f"made a new sealing key, {key.public.id.hex()}; restart the server to use it")
        return 0
    name = NEXT_SIGNING_FILE if options.next else SIGNING_FILE
    print(key_files.load_or_make(directory / name).public.raw.hex())
    return 0


def _keygen(options: argparse.Namespace, _config: ServerConfig) -> int:
    print(key_files.make(options.file).public.raw.hex())
    return 0


def _draft(options: argparse.Namespace, config: ServerConfig) -> int:
    directory, now = Path(config.data_directory), time.time()
    check_range("--days", options.days, MIN_DAYS, MAX_DAYS)
    with open_store(config) as store:
        newest = store.newest_root()
    before = describe(newest.data) if newest else {}
    root_keys = options.root_key or before.get("root_keys", [])
    if not root_keys:
        raise ServerError("expected --root-key HEX for each holder (graftwork-server root keygen)")
    threshold = options.threshold or before.get("threshold") or len(root_keys) // 2 + 1
    publishers = options.publisher or before.get("publishers") or list(config.publishers)
    names = [SIGNING_FILE, *([NEXT_SIGNING_FILE] if (directory / NEXT_SIGNING_FILE).exists() else [])]
    # The key that follows alone: what the one before signs is worth nothing once this root holds.
    server_keys = [key_files.load_or_make(directory / name).public for name in names]
    data = draft(
        config.federation,
        newest.version + 1 if newest else 1,
        root_keys=[PublicKey.from_hex(key) for key in root_keys],
        threshold=threshold,
        server_keys=server_keys[-1:],
        publishers=[PublicKey.from_hex(key) for key in publishers],
        expires=now + options.days * DAY,
    )
    _write(options.file, data)
    print(json.dumps(describe(data), indent=2))
    print(f"wrote {options.file}; next, {threshold} holders: graftwork-server root sign FILE --key KEY")
    return 0


def _sign(options: argparse.Namespace, _config: ServerConfig) -> int:
    key: PrivateKey = key_files.read(options.key)
    signed = add_signature(_read(options.file), key)
    _write(options.file, signed)
    public = key.public.raw.hex()
    print(f"signed {options.file} with {public}")
    if public not in describe(signed)["root_keys"]:
        print("note: the draft does not name this root key; it counts only if the version before does")
    return 0


def _install(options: argparse.Namespace, config: ServerConfig) -> int:
    with open_store(config) as store:
        root = store.add_root(_read(options.file), config.federation, time.time())
    print(f"version {root.version} of the root holds; restart the server")
    return 0


def _export(options: argparse.Namespace, config: ServerConfig) -> int:
    with open_store(config) as store:
        roots = store.roots()
    if not roots:
        raise ServerError("there is no root yet (graftwork-server root draft)")
    _write(options.file, roots[0])
    print(f'wrote {options.file}; devices name it in agent.toml: root = "{options.file.name}"')
    return 0


def _show(options: argparse.Namespace, config: ServerConfig) -> int:
    if options.file is None:
        with open_store(config) as store:
            newest = store.newest_root()
        if newest is None:
            raise ServerError("there is no root yet (graftwork-server root draft)")
        print(json.dumps(describe(newest.data), indent=2))
        return 0
    data = _read(options.file)
    print(json.dumps(describe(data), indent=2))
    try:
        first_root(data)
        print("signed by enough of its own keys")
    except ProtocolError as error:
        print(f"not complete: {error}")
    return 0


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    if len(data) > MAX_ROOT_BYTES:
        raise ServerError(f"{path}: expected a root of at most {MAX_ROOT_BYTES} bytes, got {len(data)}")
    return data


def _write(path: Path, data: bytes) -> None:
    whole_files.write(path, data, whole_files.PUBLIC)
