"""What the ledger refuses: a serial, a key or a medium that another record has, and why."""

import sqlite3
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from firmware_tools.errors import FirmwareError
from firmware_tools.ledger_schema import REPLACED
from protocol.signing import PublicKey
from protocol.topics import check_device

READERS = "Card readers often give their own serial for that of every card: name cards with --medium then"


def current(database: sqlite3.Connection, serial: str) -> sqlite3.Row | None:
    """The record of a serial that is not replaced."""
    statement = "SELECT * FROM identities WHERE serial = ? AND status != ?"
    row: sqlite3.Row | None = database.execute(statement, (serial, REPLACED)).fetchone()
    return row


def check_new_serial(database: sqlite3.Connection, serial: str) -> None:
    """Check that a serial may have a record.

    Raises:
        FirmwareError: no device may have it, or it has one or had one.
    """
    try:
        check_device(serial)
    except ValueError as error:
        raise FirmwareError(f"serial: {error}") from error
    row = current(database, serial)
    if row is not None:
        raise FirmwareError(f"serial {serial} has a record: {named(row)}; a repaired device: provision rma")
    # A serial whose device was replaced by one of another name would come to stand for two devices.
    row = database.execute(
        "SELECT old.*, new.serial AS heir FROM identities AS old JOIN identities AS new "
        "ON new.replaces = old.id WHERE old.serial = ?1 AND new.serial != ?1",
        (serial,),
    ).fetchone()
    if row is not None:
        raise FirmwareError(f"serial {serial} was used: {named(row)}, by {row['heir']}; take another one")


def check_key(
    database: sqlite3.Connection, key: PublicKey, row: Mapping[str, Any] | sqlite3.Row | None
) -> None:
    """Check that a record, None for a new one, may have a key.

    Raises:
        FirmwareError: the record has another key, or the key another record.
    """
    if row is not None and row["public_key"] and row["public_key"] != key.raw.hex():
        raise FirmwareError(
            f"{named(row)} with the key {row['public_key']}, got {key.raw.hex()}: is this the copy of "
            "a card? A repaired device: provision rma"
        )
    statement = "SELECT * FROM identities WHERE public_key = ?"
    other = database.execute(statement, (key.raw.hex(),)).fetchone()
    if other is not None and (row is None or other["id"] != row["id"]):
        raise FirmwareError(
            f"the key {key.raw.hex()} has a record: {named(other)}; a key is never used again: is "
            "this the copy of a card?"
        )


def check_medium(database: sqlite3.Connection, medium: str, row: sqlite3.Row) -> None:
    """Check that a record may have a medium.

    Raises:
        FirmwareError: the record has another medium, or the medium another record.
    """
    if row["medium"] and row["medium"] != medium:
        raise FirmwareError(
            f"{named(row)} on medium {row['medium']}, got {medium}: replace it (rma) to give it another one"
        )
    other = holder(database, medium)
    if other is not None and other["id"] != row["id"]:
        raise FirmwareError(f"medium {medium} has a record: {named(other)}; take another one. {READERS}")


def holder(database: sqlite3.Connection, medium: str) -> sqlite3.Row | None:
    """The record that a medium was given to."""
    statement = (
        "SELECT identities.* FROM media JOIN identities ON identities.id = media.identity "
        "WHERE media.medium = ?"
    )
    row: sqlite3.Row | None = database.execute(statement, (medium,)).fetchone()
    return row


def named(row: Mapping[str, Any] | sqlite3.Row) -> str:
    """A record as errors name it."""
    when = datetime.fromtimestamp(row["changed_at"], timezone.utc)
    return f"{row['serial']} ({row['status']}, {when:%Y-%m-%d %H:%M} UTC)"
