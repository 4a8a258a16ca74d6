"""Who the devices are: what each may, and its certificates.

A certificate is issued in one transaction with all that it rests on (see admission.py), so a server that is
killed anywhere has done all of it or nothing, and the device's next request gives the same certificate again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from protocol.signing import PublicKey
from server import tables
from server.database import Database, text

ACTIVE, QUARANTINED, REVOKED = "active", "quarantined", "revoked"
STATUSES = (ACTIVE, QUARANTINED, REVOKED)
SESSION_OF_KEY_BEFORE = 0.0
"""In the place of the moment at which a session was ended: that of the key before is to be ended."""


@dataclass(frozen=True)
class Identity:
    """What the server knows of a device before it reads anything that it says."""

    key: PublicKey
    status: str
    """One of STATUSES."""
    certificate_until: float | None
    """Unix seconds; None: it has no certificate of this server."""


@dataclass(frozen=True)
class NewCertificate:
    """A certificate to keep."""

    serial: int
    request: bytes
    """SHA-256 of the signing request that it answers."""
    not_after: float
    pem: bytes


class Refused(Exception):  # noqa: N818 - it is an answer, not an accident
    """A device gets no certificate; the text says why, and goes to the device."""


class Identities:
    """Statuses and certificates of devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def identity(self, device: str) -> Identity | None:
        """A registered device."""
        columns = tables.devices.c
        row = self._database.first(
            sql.select(columns.public_key, columns.status, columns.certificate_until).where(
                columns.id == device
            )
        )
        return (
            Identity(PublicKey(row["public_key"]), row["status"], row["certificate_until"]) if row else None
        )

    def set_status(self, device: str, status: str, reason: str, now: float) -> bool:
        """Note what a device may from now on; False: it is not registered, or it has that status.

        Revoking a device revokes its certificates. A device that was revoked stays so: it enrols anew.
        """
        devices, certificates = tables.devices, tables.certificates
        with self._database.only_writer() as connection:
            changed = connection.execute(
                devices.update()
                .where(devices.c.id == device, devices.c.status.notin_([status, REVOKED]))
                .values(
                    status=status,
                    status_reason=text(reason)[:500],
                    status_at=now,
                    **({"session_ended_at": None} if status == REVOKED else {}),
                )
            ).rowcount
            if changed and status == REVOKED:
                connection.execute(
                    certificates.update()
                    .where(certificates.c.device == device, certificates.c.revoked_at.is_(None))
                    .values(revoked_at=now)
                )
        return bool(changed)

    def sessions_to_end(self) -> dict[str, float]:
        """Devices that were revoked or came with another key, while the session before stands; since when."""
        devices = tables.devices.c
        statement = sql.select(devices.id, devices.status_at).where(session_to_end()).order_by(devices.id)
        return {row["id"]: row["status_at"] or 0.0 for row in self._database.all(statement)}

    def barred(self) -> frozenset[str]:
        """Devices that are quarantined or revoked."""
        devices = tables.devices.c
        rows = self._database.all(sql.select(devices.id).where(devices.status != ACTIVE))
        return frozenset(row["id"] for row in rows)

    def note_session_ended(self, device: str, now: float) -> None:
        """Note that the broker ended a device's session; if it comes back, it says so."""
        with self._database.engine.begin() as connection:
            connection.execute(
                tables.devices.update()
                .where(tables.devices.c.id == device)
                .values(session_ended_at=now, online=False)
            )

    def revocations(self) -> tuple[int, float]:
        """(how many certificates are revoked, when the last one was): changes with each revocation."""
        columns = tables.certificates.c
        statement: Any = sql.select(
            sql.func.count(columns.revoked_at).label("count"), sql.func.max(columns.revoked_at).label("last")
        )
        row = self._database.first(statement)
        return (row["count"], row["last"] or 0.0) if row else (0, 0.0)

    def revoked_serials(self, now: float) -> list[tuple[int, float]]:
        """(serial, when it was revoked) of every certificate that would otherwise still be good."""
        columns = tables.certificates.c
        rows = self._database.all(
            sql.select(columns.serial, columns.revoked_at)
            .where(columns.revoked_at.isnot(None), columns.not_after > now)
            .order_by(columns.serial)
        )
        return [(int(row["serial"], 16), row["revoked_at"]) for row in rows]

    def renew(self, device: str, request: bytes, now: float, issue: Callable[[], NewCertificate]) -> bytes:
        """The next certificate of a registered device, PEM; the same one for the same request.

        Raises:
            Refused: the device is not registered or revoked.
        """
        with self._database.only_writer() as connection:
            found = registered(connection, device)
            if found is None or found["status"] == REVOKED:
                raise Refused("the device is revoked" if found else "the device is not registered")
            return held_certificate(connection, device, request, now) or keep(
                connection, device, now, issue()
            )

    def certificates(self, device: str) -> list[dict[str, Any]]:
        """Certificates of a device, newest first."""
        columns = tables.certificates.c
        return self._database.all(
            sql.select(columns.serial, columns.issued_at, columns.not_after, columns.revoked_at)
            .where(columns.device == device)
            .order_by(columns.issued_at.desc())
        )


def session_to_end() -> sql.ColumnElement[bool]:
    """Whether a device's session at the broker has to be ended."""
    devices = tables.devices.c
    revoked = sql.and_(devices.status == REVOKED, devices.session_ended_at.is_(None))
    return sql.or_(revoked, devices.session_ended_at == SESSION_OF_KEY_BEFORE)


def registered(connection: sql.Connection, device: str) -> dict[str, Any] | None:
    """Key and status of a device, within a transaction."""
    columns = tables.devices.c
    statement = sql.select(columns.public_key, columns.status).where(columns.id == device)
    row = connection.execute(statement).mappings().first()
    return {"public_key": bytes(row["public_key"]), "status": row["status"]} if row else None


def held_certificate(connection: sql.Connection, device: str, request: bytes, now: float) -> bytes | None:
    """The certificate that answered a request before, while it is good."""
    columns = tables.certificates.c
    found = connection.execute(
        sql.select(columns.pem).where(
            columns.device == device,
            columns.request == request,
            columns.revoked_at.is_(None),
            columns.not_after > now,
        )
    ).scalar()
    return bytes(found) if found else None


def keep(connection: sql.Connection, device: str, now: float, issued: NewCertificate) -> bytes:
    """Keep a new certificate of a registered device; returns its PEM."""
    connection.execute(
        tables.certificates.insert().values(
            serial=f"{issued.serial:040x}",
            device=device,
            request=issued.request,
            issued_at=now,
            not_after=issued.not_after,
            pem=issued.pem,
        )
    )
    connection.execute(
        tables.devices.update()
        .where(tables.devices.c.id == device)
        .values(certificate_until=issued.not_after)
    )
    return issued.pem
