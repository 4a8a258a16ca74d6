"""Who is let in: one-time tokens, requests that an operator approves, and the enrolment of a device."""

import hashlib
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from protocol.signing import PublicKey
from server import tables
from server.database import Database, text
from server.errors import ServerError
from server.identities import (
    ACTIVE,
    REVOKED,
    SESSION_OF_KEY_BEFORE,
    NewCertificate,
    Refused,
    held_certificate,
    keep,
    registered,
)

MAX_PENDING = 10_000
"""Requests that wait for an operator; the oldest are forgotten, and come again while the device lives."""
TOKEN_BYTES = 20


@dataclass(frozen=True)
class Claim:
    """Who asks for a certificate, and with what."""

    device: str
    key: PublicKey
    token: str
    request: bytes
    """SHA-256 of the signing request."""


class Pending(Exception):  # noqa: N818 - the same
    """An operator has to approve first."""


class Admissions:
    """Tokens and requests, and what comes of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def make_tokens(
        self, devices: Iterable[str], expires_at: float, now: float, *, replace: bool = False
    ) -> dict[str, str]:
        """Make a one-time token for each device; only their hashes are kept.

        Args:
            devices: names that the tokens are good for.
            expires_at: Unix seconds.
            now: Unix seconds.
            replace: whether a device that is registered may come with a new key, as after a repair.
        """
        made = {device: secrets.token_hex(TOKEN_BYTES) for device in devices}
        rows = [
            {
                "sha256": token_sha256(token),
                "device": device,
                "replace": replace,
                "created_at": now,
                "expires_at": expires_at,
            }
            for device, token in made.items()
        ]
        if rows:  # without any, the statement would insert defaults
            with self._database.engine.begin() as connection:
                connection.execute(tables.tokens.insert(), rows)
        return made

    def enrol(
        self,
        claim: Claim,
        now: float,
        issue: Callable[[], NewCertificate],
        *,
        approval: bool,
        agent: str = "",
    ) -> bytes:
        """The certificate of a device that enrols, PEM; the same one for the same request.

        Args:
            claim: who asks.
            now: Unix seconds.
            issue: makes the certificate.
            approval: whether an operator may let devices in that have no token.
            agent: version of the agent, for the operator.

        Raises:
            Refused: it gets none.
            Pending: an operator has to approve.
        """
        with self._database.only_writer() as connection:
            found = registered(connection, claim.device)
            known = found is not None and found["public_key"] == claim.key.raw
            if found and known:
                if found["status"] == REVOKED:
                    raise Refused("this key was revoked; a new key may come with a token made with --replace")
                held = held_certificate(connection, claim.device, claim.request, now)
                if held:
                    return held
            elif claim.token:
                _use_token(connection, claim, now, replaces=found is not None)
            elif found:
                raise Refused(
                    "the name is registered with another key: a token made with --replace is needed"
                )
            elif not approval:
                raise Refused("a one-time token is needed (graftwork-server devices token)")
            if known or claim.token or _approved(connection, claim):
                if not known:
                    _register(connection, claim, now)
                return keep(connection, claim.device, now, issue())
            _note_request(connection, claim, agent, now)
        raise Pending

    def requests(self) -> list[dict[str, Any]]:
        """Devices that wait for an operator's approval, the longest waiting first."""
        columns = tables.enrolments.c
        return self._database.all(
            sql.select(columns.device, columns.public_key, columns.asked_at, columns.agent_version)
            .where(columns.approved_at.is_(None))
            .order_by(columns.asked_at)
        )

    def approve(self, device: str, public_key: bytes | None, now: float) -> bytes:
        """Let a device in that waits; returns its key.

        Args:
            device: its name.
            public_key: which of several requests with this name; None: the only one.
            now: Unix seconds.

        Raises:
            ServerError: no such request, or more than one.
        """
        waiting = [
            bytes(row["public_key"])
            for row in self.requests()
            if row["device"] == device and public_key in (None, bytes(row["public_key"]))
        ]
        if len(waiting) != 1:
            keys = ", ".join(key.hex() for key in waiting)
            raise ServerError(
                f"{device!r} is asked for with several keys: {keys}; name the one that the device shows"
                if waiting
                else f"no device {device!r} waits for approval; see: graftwork-server devices requests"
            )
        columns = tables.enrolments.c
        with self._database.engine.begin() as connection:
            connection.execute(
                tables.enrolments.update()
                .where(columns.device == device, columns.public_key == waiting[0])
                .values(approved_at=now)
            )
        return waiting[0]


def token_sha256(token: str) -> bytes:
    """What is kept of a token: 160 random bits need no slow hash."""
    return hashlib.sha256(token.encode()).digest()


def _use_token(connection: sql.Connection, claim: Claim, now: float, *, replaces: bool) -> None:
    columns, sha256 = tables.tokens.c, token_sha256(claim.token)
    row = connection.execute(sql.select(tables.tokens).where(columns.sha256 == sha256)).mappings().first()
    if row is None or row["device"] != claim.device:
        raise Refused("the token is not one of this federation for this device")
    if row["used_by"] is not None:
        if bytes(row["used_by"]) != claim.key.raw:
            raise Refused(
                "the token was used by another key before: is this the copy of another device's card?"
            )
        # Whoever used it was registered, and was removed or replaced since: no token undoes that.
        raise Refused("the token was used already, and the device was removed or replaced since")
    if now > row["expires_at"]:
        raise Refused("the token has expired")
    if replaces and not row["replace"]:
        raise Refused("the name is registered with another key; it needs a token with --replace")
    connection.execute(
        tables.tokens.update().where(columns.sha256 == sha256).values(used_at=now, used_by=claim.key.raw)
    )


def _approved(connection: sql.Connection, claim: Claim) -> bool:
    columns = tables.enrolments.c
    statement = sql.select(columns.approved_at).where(
        columns.device == claim.device, columns.public_key == claim.key.raw
    )
    return connection.execute(statement).scalar() is not None


def _note_request(connection: sql.Connection, claim: Claim, agent: str, now: float) -> None:
    table, columns = tables.enrolments, tables.enrolments.c
    mine = (columns.device == claim.device) & (columns.public_key == claim.key.raw)
    if connection.execute(table.update().where(mine).values(asked_at=now)).rowcount:
        return
    connection.execute(
        table.insert().values(
            device=claim.device, public_key=claim.key.raw, asked_at=now, agent_version=text(agent)[:64]
        )
    )
    newest = (
        sql.select(columns.asked_at)
        .order_by(columns.asked_at.desc())
        .offset(MAX_PENDING)
        .limit(1)
        .scalar_subquery()
    )
    connection.execute(table.delete().where(columns.approved_at.is_(None), columns.asked_at <= newest))


def _register(connection: sql.Connection, claim: Claim, now: float) -> None:
    """Register the device, or its new key; what the key before had is revoked."""
    devices, certificates = tables.devices, tables.certificates
    fresh = {
        "public_key": claim.key.raw,
        "registered_at": now,
        "status": ACTIVE,
        "status_reason": "",
        "status_at": now,
    }
    # Whoever connected with the key before is still there.
    replaced = {**fresh, "session_ended_at": SESSION_OF_KEY_BEFORE}
    changed = connection.execute(
        devices.update().where(devices.c.id == claim.device).values(replaced)
    ).rowcount
    if not changed:
        connection.execute(devices.insert().values(id=claim.device, **fresh))
    connection.execute(
        certificates.update()
        .where(certificates.c.device == claim.device, certificates.c.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    connection.execute(tables.enrolments.delete().where(tables.enrolments.c.device == claim.device))
