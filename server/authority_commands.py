"""The operators' commands for the certificate authority and for the broker's configuration."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from rich import box
from rich.console import Console
from rich.table import Table

from runtime import whole_files
from runtime.command_line import Add
from server import authority, broker_config, broker_settings, credentials
from server.authority import KINDS, Authority
from server.broker_settings import BrokerSettings
from server.config import ServerConfig
from server.errors import ServerError
from server.table import open_store

CLIENT = "broker-client"
"""Files of the server's own client certificate, in its data directory."""
AUTHORITY_DAYS = 3650
CLAIM_DAYS = 365


def add_commands(add: Add) -> None:
    """Add `ca` and `broker-config` to the server's command line."""
    ca = add("ca", _ca, "make and show the certificate authority, or make a claim certificate")
    ca.add_argument(
        "action",
        choices=("init", "claim", "show"),
        help="init: make the CA, once; claim: make a certificate with which new devices may ask for "
        "enrolment; show: until when the CA is good",
    )
    ca.add_argument("name", nargs="?", help="name of the claim, for claim")
    ca.add_argument(
        "--days",
        type=int,
        help=f"how long it is good (default: {AUTHORITY_DAYS} for init, {CLAIM_DAYS} for claim)",
    )
    ca.add_argument("--output", type=Path, metavar="DIR", help="where claim writes NAME.crt and NAME.key")
    ca.add_argument("--json", action="store_true", help="print JSON instead of a table, for show")
    config = add(
        "broker-config",
        _broker_config,
        "write the complete configuration of the mosquitto brokers, with certificates; again to renew them",
    )
    config.add_argument("directory", type=Path, help="for everything that the brokers read and write")
    config.add_argument(
        "--host",
        action="append",
        required=True,
        help="name or IP address under which devices reach the broker; may be given several times",
    )
    config.add_argument("--port", type=int, default=8883, help="for devices (default: 8883)")
    config.add_argument(
        "--enrolment-port",
        type=int,
        default=8884,
        help="for devices without a certificate (default: 8884); 0: no enrolment over the network",
    )
    config.add_argument("--service-port", type=int, default=8885, help="for the server (default: 8885)")
    config.add_argument("--bind", default="", help="IP address to listen on for devices (default: all)")
    config.add_argument(
        "--service-bind",
        default="127.0.0.1",
        help="IP address to listen on for the server (default: 127.0.0.1)",
    )
    config.add_argument(
        "--require-claim",
        action="store_true",
        help="let only holders of a claim certificate ask for enrolment",
    )
    config.add_argument(
        "--no-audit",
        action="store_true",
        help="leave out of the broker's log what was denied to whom; it takes about a line for each packet",
    )


def _ca(options: argparse.Namespace, config: ServerConfig) -> int:
    directory = Path(config.data_directory) / authority.DIRECTORY
    if options.action == "claim":
        return _claim(options, Authority.open(directory))
    if options.name is not None:
        raise ServerError(f"expected: ca {options.action}, got a name as well: {options.name!r}")
    if options.action == "show":
        return _show(options, Authority.open(directory))
    days = AUTHORITY_DAYS if options.days is None else options.days
    made = Authority.create(directory, config.federation, time.time(), days=days)
    end = made.certificate("devices").not_valid_after_utc
    print(f"made the certificate authority of {config.federation} in {directory}, good until {end:%Y-%m-%d}")
    print("keep a copy of that directory in a safe place: without it every device must be enrolled anew")
    return 0


def _claim(options: argparse.Namespace, ca: Authority) -> int:
    if options.name is None or options.output is None:
        raise ServerError("expected: ca claim NAME --output DIR")
    days = CLAIM_DAYS if options.days is None else options.days
    credential = ca.issue_claim(options.name, time.time(), days)
    key, certificate = (options.output / f"{options.name}.{ending}" for ending in ("key", "crt"))
    if key.exists() or certificate.exists():
        raise ServerError(
            f"{options.output} holds a claim {options.name!r} already; choose another name or DIR"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    whole_files.write(key, credential.key, whole_files.SECRET)
    whole_files.write(certificate, credential.certificate, whole_files.PUBLIC)
    print(f"wrote {certificate} and {key}")
    return 0


def _show(options: argparse.Namespace, ca: Authority) -> int:
    rows = [_row(kind, ca.certificate(kind)) for kind in KINDS]
    if options.json:
        print(json.dumps(rows))
        return 0
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
    return 0


def _row(kind: str, certificate: x509.Certificate) -> dict[str, Any]:
    return {
        "ca": kind,
        "subject": certificate.subject.rfc4514_string(),
        "good_until": f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        "sha256": certificate.fingerprint(SHA256()).hex(),
    }


def _broker_config(options: argparse.Namespace, config: ServerConfig) -> int:
    data, now = Path(config.data_directory), time.time()
    ca = Authority.open(data / authority.DIRECTORY)
    with open_store(config) as store:
        revoked = store.revoked_serials(now)
    settings = broker_config.write(
        options.directory,
        config.federation,
        ca,
        hosts=options.host,
        now=now,
        revocations=ca.revocation_list(revoked, now),
        port=options.port,
        enrolment_port=options.enrolment_port,
        service_port=options.service_port,
        bind=options.bind,
        service_bind=options.service_bind,
        require_claim=options.require_claim,
        audit=not options.no_audit,
    )
    credentials.keep(data, CLIENT, ca, lambda: ca.issue_server(now), now)
    print(_instructions(settings, data, options.config.parent, options.host[0]))
    return 0


def _instructions(settings: BrokerSettings, data: Path, folder: Path, host: str) -> str:
    """What to do next. `folder` is that of server.toml, from which its paths count."""
    here = os.path.relpath(data, folder)
    trusted = settings.directory / broker_settings.authority_file("services")
    programs = [broker_settings.BROKER] + [broker_settings.ENROLMENT] * bool(settings.enrolment_port)
    return "\n".join(
        (
            f"wrote {settings.directory}; it must belong to the user that runs mosquitto. Best it is",
            "that of the server, which can then revoke and read the brokers' logs (units: deploy/systemd):",
            f"  chown -R graftwork: {settings.directory}",
            "run" + (", as two processes" if len(programs) > 1 else "") + ":",
            *(f"  mosquitto -c {settings.directory / program}" for program in programs),
            "restart what runs already; it must be run by something that starts it again whenever it ends,",
            "as the units do: the server ends the broker to have it read a new list of revoked certificates",
            "",
            "server.toml:",
            "[broker]",
            f"host = {json.dumps(settings.service_host)}",
            f"port = {settings.service_port}",
            f"tls_ca = {json.dumps(f'{here}/{authority.DIRECTORY}/services.crt')}",
            f"tls_certificate = {json.dumps(f'{here}/{CLIENT}.crt')}",
            f"tls_key = {json.dumps(f'{here}/{CLIENT}.key')}",
            "",
            "[trust]",
            f"broker_directory = {json.dumps(os.path.relpath(settings.directory, folder.resolve()))}",
            "",
            f"agent.toml, with a copy of {trusted} beside it:",
            "[broker]",
            f"host = {json.dumps(host)}",
            f"port = {settings.port}",
            f"tls_ca = {json.dumps(trusted.name)}",
            *_enrolment(settings),
        )
    )


def _enrolment(settings: BrokerSettings) -> list[str]:
    """How agents enrol, where they may."""
    if not settings.enrolment_port:
        return []
    claim = ['claim_certificate = "claim.crt"', 'claim_key = "claim.key"'] * settings.require_claim
    return ["", "[enrolment]", f"port = {settings.enrolment_port}", 'token_file = "token"', *claim]
