"""A run as in production: mosquitto with TLS, a certificate authority, a root of trust, enrolment.

RUN/broker/             what `graftwork-server broker-config` writes
RUN/root-keys/          keys of the root's three holders; two of them sign
RUN/devices/ID/token    one-time token; used up when the device enrols
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protocol.signing import PublicKey
from runtime.keys import make, write_text_secret
from server import broker_config, credentials
from server.authority import DIRECTORY, Authority
from server.authority_commands import CLIENT
from server.broker import BrokerSupervisor, free_port
from server.broker_settings import authority_file
from server.root_ceremony import add_signature, draft
from server.store import Store
from simulation.experiment import Experiment

HOST = "localhost"
ROOT_FILE, TOKEN_FILE = "root.json", "token"
HOLDERS, THRESHOLD = ("one", "two", "three"), 2
DAY = 86_400.0


@dataclass(frozen=True)
class Secured:
    """The broker of a secured run, and what programs need to know of it."""

    broker: BrokerSupervisor
    server: Mapping[str, Any]
    """More of server.toml."""
    device: Mapping[str, Any]
    """More of every agent.toml."""


def secure(experiment: Experiment, server_key: PublicKey) -> Secured:
    """Set up authority, root, tokens and broker of a run.

    Args:
        experiment: prepared, with its server's store not yet in use.
        server_key: what the server signs with.

    Raises:
        ServerError: a file cannot be written, or mosquitto is not installed.
    """
    now = time.time()  # noqa: TID251 - certificates are good from now on, by the clocks of all programs
    data, folder = experiment.server_directory / "data", (experiment.directory / "broker").resolve()
    authority = Authority.create(data / DIRECTORY, experiment.federation, now)
    port, enrolment_port, service_port = free_port(), free_port(), free_port()
    broker_config.write(
        folder,
        experiment.federation,
        authority,
        hosts=[HOST],
        now=now,
        port=port,
        enrolment_port=enrolment_port,
        service_port=service_port,
        bind="127.0.0.1",
    )
    credentials.keep(data, CLIENT, authority, lambda: authority.issue_server(now), now)
    store = Store(data)
    try:
        root = _root(experiment, server_key, now)
        store.add_root(root, experiment.federation, now)
        tokens = store.make_tokens([p.device.id for p in experiment.participants], now + DAY, now)
    finally:
        store.close()
    for participant in experiment.participants:
        write_text_secret(participant.directory / TOKEN_FILE, tokens[participant.device.id])
        (participant.directory / ROOT_FILE).write_bytes(root)
    trusted = str(folder / authority_file("services"))
    return Secured(
        BrokerSupervisor(folder, configuration=folder),
        {
            "enrolment": "token",
            "broker": {
                "host": HOST,
                "port": service_port,
                "tls_ca": trusted,
                "tls_certificate": f"data/{CLIENT}.crt",
                "tls_key": f"data/{CLIENT}.key",
            },
            "trust": {"broker_directory": os.path.relpath(folder, experiment.server_directory.resolve())},
        },
        {
            "server_key": "",
            "root": ROOT_FILE,
            "broker": {"host": HOST, "port": port, "tls_ca": trusted},
            "enrolment": {"port": enrolment_port, "token_file": TOKEN_FILE},
        },
    )


def _root(experiment: Experiment, server_key: PublicKey, now: float) -> bytes:
    folder = experiment.directory / "root-keys"
    keys = [make(folder / f"{holder}.key") for holder in HOLDERS]
    root = draft(
        experiment.federation,
        1,
        root_keys=[key.public for key in keys],
        threshold=THRESHOLD,
        server_keys=[server_key],
        publishers=[],
        expires=now + 365 * DAY,
    )
    for key in keys[:THRESHOLD]:
        root = add_signature(root, key)
    return root
