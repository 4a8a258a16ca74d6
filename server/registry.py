"""What the server knows of its devices: keys, states, reports, and messages that were refused."""

from dataclasses import asdict
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from protocol.messages import DeviceState, Report
from protocol.signing import PublicKey
from server import tables
from server.database import Database, text
from server.errors import ServerError
from server.identities import session_to_end

MAX_REFUSALS = 10_000
"""Older refusals are forgotten, so that a noisy device cannot fill the disk."""


class Registry:
    """Devices, their reports, and refusals."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register_device(self, device: str, key: PublicKey, now: float) -> None:
        """Register a device.

        Raises:
            ServerError: the name is taken by another key.
        """
        try:
            with self._database.engine.begin() as connection:
                connection.execute(
                    tables.devices.insert().values(id=device, public_key=key.raw, registered_at=now)
                )
        except IntegrityError:
            if self.device_key(device) != key:
                raise ServerError(
                    f"device {device!r} is registered with another key; remove it first"
                ) from None

    def remove_device(self, device: str) -> bool:
        """Forget a device; its later messages are refused. False: it was not known.

        Raises:
            ServerError: it has a certificate that the broker still takes, or a session there.
        """
        certificates, devices = tables.certificates.c, tables.devices.c
        with self._database.only_writer() as connection:
            good = (certificates.device == device) & certificates.revoked_at.is_(None)
            if connection.execute(sql.select(certificates.serial).where(good)).first():
                raise ServerError(f"{device!r} has a certificate: revoke it first (devices revoke)")
            if connection.execute(
                sql.select(devices.id).where(devices.id == device, session_to_end())
            ).first():
                raise ServerError(
                    f"{device!r} has a session that is not ended yet: let the server run, then try again"
                )
            result = connection.execute(tables.devices.delete().where(tables.devices.c.id == device))
        return bool(result.rowcount)

    def device_key(self, device: str) -> PublicKey | None:
        """The key of a registered device."""
        row = self._database.first(
            sql.select(tables.devices.c.public_key).where(tables.devices.c.id == device)
        )
        return PublicKey(row["public_key"]) if row else None

    def set_device_state(self, device: str, state: DeviceState, now: float) -> None:
        """Note what a device says of itself; a state of an earlier session is ignored.

        A last will was written when its session began: what was said since holds, but for being online.
        """
        columns = tables.devices.c
        with self._database.engine.begin() as connection:
            if not state.online:
                left = connection.execute(
                    tables.devices.update()
                    .where(columns.id == device, columns.session == state.session)
                    .values(online=False, last_seen=now)
                )
                if left.rowcount:
                    return
            connection.execute(
                tables.devices.update()
                .where(columns.id == device, columns.session <= state.session)
                .values(
                    online=state.online,
                    session=state.session,
                    last_seen=now,
                    agent_version=text(state.agent_version),
                    package=state.package,
                    release=state.release,
                    labelled_windows=state.labelled_windows,
                    waits=text(state.waits),
                    firmware=text(state.firmware),
                    firmware_update=text(state.firmware_update),
                )
            )

    def devices(self) -> list[dict[str, Any]]:
        """All registered devices, by name."""
        return self._database.all(sql.select(tables.devices).order_by(tables.devices.c.id))

    def add_report(self, device: str, report: Report, now: float) -> None:
        """Keep a device's report on a release; a later one on the same release replaces it."""
        with self._database.engine.begin() as connection:
            connection.execute(
                tables.reports.delete().where(
                    tables.reports.c.device == device, tables.reports.c.release == report.release
                )
            )
            connection.execute(
                tables.reports.insert().values(
                    device=device, release=report.release, received_at=now, figures=asdict(report)
                )
            )

    def reports(self, release: int) -> dict[str, dict[str, Any]]:
        """Reports of all devices on a release, by device."""
        rows = self._database.all(sql.select(tables.reports).where(tables.reports.c.release == release))
        return {row["device"]: row["figures"] for row in rows}

    def add_refusal(self, device: str, reason: str, now: float) -> None:
        """Note a message that was refused."""
        with self._database.engine.begin() as connection:
            result = connection.execute(
                tables.refusals.insert().values(device=device, received_at=now, reason=text(reason)[:500])
            )
            [newest] = result.inserted_primary_key or (0,)
            connection.execute(tables.refusals.delete().where(tables.refusals.c.id <= newest - MAX_REFUSALS))

    def refusals(self) -> list[dict[str, Any]]:
        """Messages that were refused, newest first."""
        return self._database.all(sql.select(tables.refusals).order_by(tables.refusals.c.id.desc()))
