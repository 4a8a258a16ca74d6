"""Runs a device agent on a real link."""

import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

from agent.config import STORE_FILE, AgentConfig
from agent.device import DeviceAgent
from agent.enrolment import Enrolment
from agent.identity import Identity
from agent.keyring import Keyring
from agent.store import Store
from protocol.topics import Topics
from runtime import memory, notify
from runtime.link import Link
from runtime.loop import serve, stop_on_signals

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5


def run(config: AgentConfig) -> None:
    """Take part until SIGINT or SIGTERM; get a certificate first where that is wanted and there is none."""
    _yield_to_others(config.limits.nice)
    # Importing touched far more of the libraries than running will.
    memory.release_start_up()
    store = _open_store(config)
    stopping = stop_on_signals()
    try:
        identity, keyring = _who(config, store)
        while not config.enrolment.port or _enrolled(config, identity, keyring, stopping):
            _take_part(config, store, identity, keyring, stopping)
            if stopping.is_set() or not config.enrolment.port:
                break
    finally:
        store.close()


def enrol(config: AgentConfig) -> bool:
    """Get a certificate if there is none, until SIGINT or SIGTERM; whether there is one now."""
    store = _open_store(config)
    try:
        identity, keyring = _who(config, store)
        return _enrolled(config, identity, keyring, stop_on_signals())
    finally:
        store.close()


def _open_store(config: AgentConfig) -> Store:
    directory = Path(config.state_directory)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Store(directory / STORE_FILE)


def _who(config: AgentConfig, store: Store) -> tuple[Identity, Keyring]:
    """Who the device is, and whom it believes."""
    root = Path(config.root).read_bytes() if config.root else b""
    keyring = Keyring(store, config.federation, time.time, server_key=config.server_key, root=root)
    return Identity(Path(config.identity_directory), config.device), keyring


def _enrolled(config: AgentConfig, identity: Identity, keyring: Keyring, stopping: threading.Event) -> bool:
    """Whether there is a certificate; where there is none that is good, ask for one first."""
    validity = identity.validity()
    if validity and time.time() < validity.not_after:
        return True
    settings, link = config.enrolment, None
    token = Path(settings.token_file).read_text("ascii").strip() if settings.token_file else ""

    def publish(topic: str, payload: bytes, retain: bool) -> bool:
        return link is not None and link.publish(topic, payload, retain=retain)

    program = Enrolment(
        config.device,
        Topics(config.federation),
        publish,
        time.time,
        identity=identity,
        keyring=keyring,
        token=token,
    )
    broker = replace(
        config.broker,
        host=settings.host or config.broker.host,
        port=settings.port,
        tls_certificate=settings.claim_certificate,
        tls_key=settings.claim_key,
    )
    link = Link(broker, program.nonce, program.subscriptions, persistent=False)
    log.info("device=%s asks for a certificate at %s:%d", config.device, broker.host, broker.port)
    serve(program, link, stopping, tick_seconds=TICK_SECONDS)
    return program.finished


def _take_part(
    config: AgentConfig, store: Store, identity: Identity, keyring: Keyring, stopping: threading.Event
) -> None:
    link: Link | None = None

    def publish(topic: str, payload: bytes, retain: bool) -> bool:
        return link is not None and link.publish(topic, payload, retain=retain)

    def traffic() -> tuple[int, int]:
        return (link.bytes_up, link.bytes_down) if link else (0, 0)

    agent = DeviceAgent(
        config,
        store,
        publish,
        time.time,
        identity=identity,
        keyring=keyring,
        traffic=traffic,
        listen_again=lambda: link.listen_again() if link else None,
    )
    broker = config.broker
    if config.enrolment.port:
        broker = replace(broker, tls_certificate=str(identity.certificate_file))
    link = Link(broker, config.device, agent.subscriptions)
    log.info(
        "device=%s federation=%s broker=%s:%d",
        config.device, config.federation, config.broker.host, config.broker.port,
    )  # fmt: skip
    notify.ready()  # a service manager need not wait for the broker: training goes on without it
    serve(agent, link, stopping, tick_seconds=TICK_SECONDS)


def _yield_to_others(nice: int) -> None:
    """Take the configured niceness, or keep a higher one that a service manager gave."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    except OSError as error:
        log.warning("limits.nice: the system does not let this process be nice %d: %s", nice, error)
