"""Operators' commands on devices: who is there, who is let in, and who no longer is."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol.field_checks import check_range
from protocol.signing import PublicKey
from protocol.topics import check_device
from runtime.keys import write_text_secret
from server.config import ServerConfig
from server.errors import ServerError
from server.identities import ACTIVE, QUARANTINED, REVOKED
from server.revocation import open_revocations
from server.store import Store
from server.table import open_store, show

Command = Callable[[argparse.Namespace, ServerConfig], int]
PATIENCE_SECONDS = 20.0
COLUMNS = [
    "id",
    "status",
    "online",
    "last_seen",
    "release",
    "labelled_windows",
    "certificate_until",
    "agent_version",
    "firmware",
    "firmware_update",
    "public_key",
]
LISTED = COLUMNS[: COLUMNS.index("agent_version")]
"""What fits side by side into a terminal; `devices show NAME` and --json have all."""


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the actions of `graftwork-server devices`; without one the devices are listed."""
    parser.set_defaults(action=_list)
    actions = parser.add_subparsers(metavar="ACTION", title="actions (default: list)")

    def add(
        name: str, function: Command, text: str, *, device: str | None = "NAME"
    ) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text)
        action.set_defaults(action=function)
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
        if device:
            action.add_argument("device", metavar=device, help="name of the device")
        return action

    add("list", _list, "list devices", device=None)
    register = add("add", _add, "register a device by hand with its public key")
    register.add_argument("public_key", help="what `graftwork-agent key` printed")
    add("remove", _remove, "forget a device; one with a certificate is revoked first")
    token = add("token", _token, "make one-time tokens with which devices enrol", device=None)
    token.add_argument("devices", nargs="+", metavar="NAME", help="names of devices, one token each")
    token.add_argument("--days", type=float, default=90.0, help="how long they are good (default: 90)")
    token.add_argument(
        "--replace", action="store_true", help="also where the name is registered with another key (repair)"
    )
    token.add_argument(
        "--output", type=Path, metavar="DIR", help="write NAME.token files instead of printing"
    )
    add("requests", _requests, "list devices that wait for approval", device=None)
    approve = add("approve", _approve, "let a waiting device in")
    approve.add_argument("--key", help="its public key, where several ask for the name")
    revoke = add("revoke", _revoke, "end certificates and sessions of devices at once, for good", device=None)
    revoke.add_argument(
        "devices", nargs="+", metavar="NAME", help="names of devices; the broker is started anew once for all"
    )
    revoke.add_argument("--reason", default="by the operator", help="for the record")
    quarantine = add("quarantine", _quarantine, "count no update of a device until it is reinstated")
    quarantine.add_argument("--reason", default="by the operator", help="for the record")
    add("reinstate", _reinstate, "end a device's quarantine")
    add("show", _show, "show a device with its certificates")


def run(options: argparse.Namespace, config: ServerConfig) -> int:
    """Run the chosen action."""
    action: Command = options.action
    return action(options, config)


def _list(options: argparse.Namespace, config: ServerConfig) -> int:
    with open_store(config) as store:
        show(options, store.devices(), COLUMNS if options.json else LISTED)
    return 0


def _add(options: argparse.Namespace, config: ServerConfig) -> int:
    key = PublicKey.from_hex(options.public_key)
    with open_store(config) as store:
        store.register_device(check_device(options.device), key, time.time())
    print(f"registered {options.device}")
    return 0


def _remove(options: argparse.Namespace, config: ServerConfig) -> int:
    with open_store(config) as store:
        if not store.remove_device(options.device):
            raise _unknown(options.device)
    print(f"removed {options.device}")
    return 0


def _token(options: argparse.Namespace, config: ServerConfig) -> int:
    names, now = [check_device(name) for name in options.devices], time.time()
    check_range("--days", options.days, 0.01, 3650)
    with open_store(config) as store:
        tokens = store.make_tokens(names, now + options.days * 86_400, now, replace=options.replace)
    for name, token in tokens.items():
        if options.output is None:
            print(f"{name} {token}")
        else:
            write_text_secret(options.output / f"{name}.token", token)
    if options.output is not None:
        print(f"wrote {len(tokens)} tokens to {options.output}; each is good once, for {options.days:g} days")
    return 0


def _requests(options: argparse.Namespace, config: ServerConfig) -> int:
    with open_store(config) as store:
        show(options, store.requests(), ["device", "asked_at", "agent_version", "public_key"])
    return 0


def _approve(options: argparse.Namespace, config: ServerConfig) -> int:
    key = PublicKey.from_hex(options.key).raw if options.key else None
    with open_store(config) as store:
        approved = store.approve(options.device, key, time.time())
    print(f"approved {options.device} with key {approved.hex()}; it has its certificate within a minute")
    return 0


def _revoke(options: argparse.Namespace, config: ServerConfig) -> int:
    names, mistakes = list(dict.fromkeys(options.devices)), []
    with open_store(config) as store:
        for name in list(names):
            try:
                _set_status(store, name, REVOKED, options.reason)
            except ServerError as error:  # the others are none the less to go
                mistakes.append(str(error))
                names.remove(name)
            else:
                print(f"revoked {name}: nothing that it says is taken any more")
        if names:
            _bring_to_broker(store, config, names)
    if mistakes:
        raise ServerError("; ".join(mistakes))
    return 0


def _bring_to_broker(store: Store, config: ServerConfig, names: list[str]) -> None:
    revocations = open_revocations(config, store, time.time)
    if revocations is None:
        for name in names:
            store.note_session_ended(name, time.time())
        print("[trust] names no broker_directory: end sessions and certificates at the broker by hand")
        return
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left := sorted(set(names).intersection(store.sessions_to_end())):
        revocations.tick()
        if time.monotonic() > deadline:
            raise ServerError(
                f"the broker did not end the session of {', '.join(left)} within {PATIENCE_SECONDS:g} s; "
                "a running server goes on trying, and its log says what is wrong"
            )
        time.sleep(0.1)
    print("certificates are on the broker's list, and sessions were ended")


def _quarantine(options: argparse.Namespace, config: ServerConfig) -> int:
    with open_store(config) as store:
        _set_status(store, options.device, QUARANTINED, options.reason)
    print(f"{options.device} is in quarantine: its updates are refused until it is reinstated")
    return 0


def _reinstate(options: argparse.Namespace, config: ServerConfig) -> int:
    with open_store(config) as store:
        _set_status(store, options.device, ACTIVE, "")
    print(f"reinstated {options.device}")
    return 0


def _show(options: argparse.Namespace, config: ServerConfig) -> int:
    with open_store(config) as store:
        rows = [row for row in store.devices() if row["id"] == options.device]
        if not rows:
            raise _unknown(options.device)
        if options.json:
            row = {**rows[0], "certificates": store.certificates(options.device)}
            show(
                options,
                [row],
                [*COLUMNS, "status_reason", "certificates"],
            )
            return 0
        show(options, rows, [*COLUMNS, "status_reason"])
        show(options, store.certificates(options.device), ["serial", "issued_at", "not_after", "revoked_at"])
    return 0


def _set_status(store: Store, device: str, status: str, reason: str) -> None:
    identity: Any = store.identity(device)
    if identity is None:
        raise _unknown(device)
    if not store.set_status(device, status, reason, time.time()):
        hint = "; a revoked device enrols anew" if identity.status == REVOKED and status != REVOKED else ""
        raise ServerError(f"{device!r} is {identity.status} already{hint}")


def _unknown(device: str) -> ServerError:
    return ServerError(f"no device {device!r} is registered; see: graftwork-server devices")
