"""Ends a client's session at the broker: by taking it over for a moment, which only the server may do.

A broker closes the connection of a client whose id another one comes with. With a clean start and a session
that expires at once, queue and subscriptions are forgotten, too. Nothing is said here about whether the
client may come back: its certificate must be on the broker's revocation list before.
"""

import ssl
import threading
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from protocol.topics import check_name
from runtime.broker import BrokerConfig
from server.errors import ServerError


def end_session(broker: BrokerConfig, client_id: str, *, timeout_seconds: float = 3.0) -> None:
    """Have the broker close a client's connection, and forget its session.

    Args:
        broker: the listener for the server, whose client id is free.
        client_id: of the session to end, which need not exist.
        timeout_seconds: for each of connecting and leaving.

    Raises:
        ServerError: not a name, or the broker cannot be reached or refuses; the session may still live.
    """
    where = f"the session of {client_id!r} at {broker.host}:{broker.port}"
    try:
        client = _client(broker, check_name(client_id), timeout_seconds)
    except (OSError, ValueError) as error:
        raise ServerError(f"{where} cannot be ended: {error}") from error
    answered, left = threading.Event(), threading.Event()
    reasons: list[ReasonCode] = []

    def on_connect(_client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        reasons.append(reason)
        answered.set()

    def on_disconnect(_client: Any, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
        left.set()
        answered.set()

    client.on_connect, client.on_disconnect = on_connect, on_disconnect
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = 0
    failure = ""
    try:
        client.connect(broker.host, broker.port, clean_start=True, properties=properties)
    except (OSError, ValueError) as error:
        failure = str(error)  # the error itself would keep the socket open
    if failure:
        raise ServerError(f"{where} cannot be ended: {failure}")
    client.loop_start()
    why: object = "no answer"
    try:
        if answered.wait(timeout_seconds):
            why = reasons[0] if reasons else "the broker closed the connection"
        if reasons and not reasons[0].is_failure:
            client.disconnect()
            left.wait(timeout_seconds)
            return
    finally:
        client.disconnect()
        client.loop_stop()
    raise ServerError(f"{where} cannot be ended: {why}; see [broker] in server.toml and the broker's log")


def _client(broker: BrokerConfig, client_id: str, timeout_seconds: float) -> paho.Client:
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv5, reconnect_on_failure=False
    )
    client.connect_timeout = timeout_seconds  # of the TLS handshake, too
    if broker.username:
        file = broker.password_file
        client.username_pw_set(broker.username, Path(file).read_text("utf-8").strip() if file else None)
    if broker.tls_ca:
        client.tls_set(
            broker.tls_ca,
            broker.tls_certificate or None,
            broker.tls_key or None,
            tls_version=ssl.PROTOCOL_TLS_CLIENT,
        )
    return client
