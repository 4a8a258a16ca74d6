"""The ledger of identities: which serial has which key, image and medium; nothing of it is ever given twice.

One SQLite file beside the fleet engineer's images. A serial is the device's name in its federation. A record
goes

    planned -> provisioned -> enrolled, and at any time -> revoked or -> replaced (by the record of a repair)

and is never removed. A public key stands in one record for ever. A serial stands in one record that is not
replaced. A medium belongs to one record for ever, but that a repair may take over the medium of its device:
the eMMC on a board outlives the board's keys. Every change is one transaction that is on disk when the
method returns. What holds private keys or tokens never comes here.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from firmware_tools import ledger_rules as rules
from firmware_tools.errors import FirmwareError
from firmware_tools.ledger_schema import (
    ENROLLED,
    PLANNED,
    PROVISIONED,
    REPLACED,
    REVOKED,
    SCHEMA,
    SCHEMA_VERSION,
)
from protocol.errors import SignatureError
from protocol.signing import PublicKey

COLUMNS = ("serial", "status", "public_key", "image_sha256", "medium", "planned_at", "changed_at", "reason")
"""Of a record, as it is listed and exported."""
_AHEAD = {PLANNED: 0, PROVISIONED: 1, ENROLLED: 2}


class Ledger:
    """An open ledger; close it, or use it in a with statement."""

    def __init__(self, path: Path) -> None:
        """Open a ledger; a new one is made where there is none.

        Raises:
            FirmwareError: the file is no ledger, or one of a newer version.
        """
        self._path = path
        self._database = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._database.row_factory = sqlite3.Row
        try:
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self._database.execute(f"PRAGMA {pragma}").close()
            self._make_schema()
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise FirmwareError(f"{path}: expected a ledger of identities: {error}") from error
        except FirmwareError:
            self._database.close()
            raise

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def plan(
        self,
        keys: Mapping[str, PublicKey | None],
        now: float,
        *,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Plan devices: all of them, or none.

        Args:
            keys: by serial the public key, where it was made at the factory.
            now: Unix seconds.
            before_commit: called when nothing is refused any more; if it raises, nothing is planned.

        Raises:
            FirmwareError: a serial or a key has a record already; says which, and since when.
        """
        with self._change():
            for serial, key in keys.items():
                rules.check_new_serial(self._database, serial)
                self._insert(serial, key, now)
            before_commit()

    def record(
        self,
        serial: str,
        now: float,
        *,
        status: str | None = None,
        public_key: PublicKey | None = None,
        image_sha256: str | None = None,
        medium: str | None = None,
    ) -> None:
        """Note what is known of a device; what is None stays as it is.

        Args:
            serial: of a record that is planned, provisioned or enrolled.
            now: Unix seconds.
            status: a later one: "provisioned" or "enrolled".
            public_key: for good; another one needs a repair.
            image_sha256: of the image on its medium, hexadecimal.
            medium: serial of the medium.

        Raises:
            FirmwareError: there is no such record, it is out of use, or key or medium belong to another one.
        """
        with self._change():
            self._record(
                serial, now, status=status, public_key=public_key, image_sha256=image_sha256, medium=medium
            )

    def record_enrolled(self, keys: Mapping[str, PublicKey], now: float) -> int:
        """Note devices that the server knows, with the keys that they made; returns how many are new.

        Names without a record, or whose record is out of use, are passed over: the server may know others.

        Raises:
            FirmwareError: a device enrolled with another key than its record has. Nothing is noted then.
        """
        new = 0
        with self._change():
            for serial, key in keys.items():
                row = rules.current(self._database, serial)
                if row is not None and row["status"] in (PLANNED, PROVISIONED):
                    self._record(serial, now, status=ENROLLED, public_key=key)
                    new += 1
                elif row is not None and row["status"] == ENROLLED:
                    rules.check_key(self._database, key, row)
        return new

    def revoke(self, serial: str, reason: str, now: float) -> None:
        """Put a device out of use for good; its serial can come back by a repair alone.

        Raises:
            FirmwareError: there is no such record, or it is revoked already.
        """
        with self._change():
            row = self._in_use(serial)
            self._update(row["id"], now, "revoked: " + reason, status=REVOKED, reason=reason)

    def rma(
        self,
        serial: str,
        now: float,
        *,
        new_serial: str | None = None,
        key: PublicKey | None = None,
        reason: str = "repair",
        keep_medium: bool = False,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Replace a record by a new one after a repair; the old one stays as history.

        Args:
            serial: of the record in use, or of a revoked one.
            now: Unix seconds.
            new_serial: of the new record; None: the same.
            key: the new public key, where it was made at the factory.
            reason: for the record.
            keep_medium: whether the new record takes over the medium, e.g. memory that is soldered on.
            before_commit: called when nothing is refused any more; if it raises, nothing changes.

        Raises:
            FirmwareError: there is no such record, or the new serial or key has one.
        """
        with self._change():
            row = rules.current(self._database, serial)
            if row is None:
                raise self._unknown(serial)
            name = new_serial or serial
            self._update(row["id"], now, f"replaced by {name}: {reason}", status=REPLACED, reason=reason)
            rules.check_new_serial(self._database, name)
            new = self._insert(name, key, now, replaces=row["id"])
            if keep_medium and row["medium"]:
                self._database.execute(
                    "UPDATE media SET identity = ? WHERE media.medium = ?", (new, row["medium"])
                )
                self._update(new, now, f"takes over medium {row['medium']}", medium=row["medium"])
            before_commit()

    def note_flashed(self, medium: str, image_sha256: str, now: float, serial: str | None = None) -> None:
        """Note that an image was written to a medium and read back.

        Args:
            medium: its serial.
            image_sha256: of the image, hexadecimal.
            now: Unix seconds.
            serial: of the device that it is for, where that is known; its record is provisioned with it.

        Raises:
            FirmwareError: see `check_flash`.
        """
        with self._change():
            self.check_flash(medium, serial)
            self._database.execute(
                "INSERT INTO media (medium, image_sha256, flashed_at) VALUES (?, ?, ?) ON CONFLICT (medium) "
                "DO UPDATE SET image_sha256 = excluded.image_sha256, flashed_at = excluded.flashed_at",
                (medium, image_sha256, now),
            )
            self._note(now, None, medium, f"flashed with {image_sha256}")
            if serial is not None:
                self._record(serial, now, status=PROVISIONED, image_sha256=image_sha256, medium=medium)

    def check_flash(self, medium: str, serial: str | None = None) -> None:
        """Check, before anything is written, that a medium may be flashed.

        Args:
            medium: its serial; empty: it has none.
            serial: of the device that it is for, where that is known.

        Raises:
            FirmwareError: a device in use would be erased, or the medium cannot be given to this one.
        """
        if serial is not None:
            row = self._in_use(serial)
            if medium:
                rules.check_medium(self._database, medium, row)
            if row["status"] == ENROLLED:
                raise FirmwareError(
                    f"{rules.named(row)} has keys that flashing would erase: replace it (rma) first"
                )
            return
        holder = rules.holder(self._database, medium)
        if holder is not None and holder["status"] in (PROVISIONED, ENROLLED):
            raise FirmwareError(
                f"medium {medium} holds {rules.named(holder)}; flashing would erase its keys: revoke it or "
                f"replace it (rma) first. {rules.READERS}"
            )

    def records(self, status: str | None = None) -> list[dict[str, Any]]:
        """All records, oldest first, or those of one status; each with COLUMNS and `replaces`, a serial."""
        statement = (
            "SELECT own.*, old.serial AS replaces_serial FROM identities AS own "
            "LEFT JOIN identities AS old ON old.id = own.replaces "
            "WHERE ?1 IS NULL OR own.status = ?1 ORDER BY own.id"
        )
        rows = self._database.execute(statement, (status,)).fetchall()
        return [{**{name: row[name] for name in COLUMNS}, "replaces": row["replaces_serial"]} for row in rows]

    def history(self, serial: str) -> list[dict[str, Any]]:
        """What happened to a serial, through all its records, oldest first: `at`, `medium`, `change`."""
        rows = self._database.execute(
            "SELECT history.at, history.medium, history.change FROM history JOIN identities "
            "ON identities.id = history.identity WHERE identities.serial = ? ORDER BY history.id",
            (serial,),
        )
        return [dict(row) for row in rows.fetchall()]

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """One transaction: on disk when it ends, undone by any error."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            self._database.execute("ROLLBACK")
            raise

    def _make_schema(self) -> None:
        found = self._database.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            raise FirmwareError(
                f"{self._path}: expected a ledger of version {SCHEMA_VERSION}, got {found}: use a newer "
                "Graftwork"
            )
        if found == 0:
            self._database.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")

    def _in_use(self, serial: str) -> sqlite3.Row:
        row = rules.current(self._database, serial)
        if row is None:
            raise self._unknown(serial)
        if row["status"] == REVOKED:
            raise FirmwareError(
                f"{rules.named(row)}: {row['reason']}; only a repair (rma) brings the serial back"
            )
        return row

    def _unknown(self, serial: str) -> FirmwareError:
        return FirmwareError(
            f"{self._path} has no record of {serial!r}; see: graftwork-firmware provision list"
        )

    def _insert(self, serial: str, key: PublicKey | None, now: float, replaces: int | None = None) -> int:
        if key is not None:
            rules.check_key(self._database, key, None)
        cursor = self._database.execute(
            "INSERT INTO identities (serial, status, public_key, planned_at, changed_at, replaces) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (serial, PLANNED, key.raw.hex() if key else None, now, now, replaces),
        )
        number = int(cursor.lastrowid or 0)
        self._note(now, number, None, "planned" + (" with a key made at the factory" if key else ""))
        return number

    def _record(
        self,
        serial: str,
        now: float,
        *,
        status: str | None = None,
        public_key: PublicKey | None = None,
        image_sha256: str | None = None,
        medium: str | None = None,
    ) -> None:
        row = self._in_use(serial)
        values: dict[str, str] = {}
        if status is not None:
            if _AHEAD.get(status, -1) < max(_AHEAD[row["status"]], 1):
                raise FirmwareError(f"status: expected one after {row['status']}, got {status!r}")
            values["status"] = status
        if public_key is not None:
            rules.check_key(self._database, public_key, row)
            values["public_key"] = public_key.raw.hex()
        if image_sha256 is not None:
            values["image_sha256"] = image_sha256
        if medium is not None:
            rules.check_medium(self._database, medium, row)
            values["medium"] = medium
            self._database.execute(
                "INSERT INTO media (medium, identity) VALUES (?1, ?2) "
                "ON CONFLICT (medium) DO UPDATE SET identity = ?2",
                (medium, row["id"]),
            )
        changed = {name: value for name, value in values.items() if row[name] != value}
        if changed:
            text = ", ".join(f"{name} {value}" for name, value in changed.items())
            self._update(row["id"], now, text, **changed)

    def _update(self, identity: int, now: float, change: str, **values: str) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        self._database.execute(
            f"UPDATE identities SET changed_at = ?, {names} WHERE id = ?",  # noqa: S608 - columns
            (now, *values.values(), identity),
        )
        self._note(now, identity, values.get("medium"), change)

    def _note(self, now: float, identity: int | None, medium: str | None, change: str) -> None:
        self._database.execute(
            "INSERT INTO history (at, identity, medium, change) VALUES (?, ?, ?, ?)",
            (now, identity, medium, change),
        )


def parse_keys(named: Sequence[Mapping[str, Any]]) -> dict[str, PublicKey]:
    """Public keys by device from what `graftwork-server devices --json` prints.

    Raises:
        FirmwareError: it has another form.
    """
    try:
        return {str(row["id"]): PublicKey(bytes.fromhex(row["public_key"])) for row in named}
    except (KeyError, TypeError, ValueError, SignatureError) as error:
        raise FirmwareError(
            f"expected a list with id and public_key, as `graftwork-server devices --json` prints: {error}"
        ) from error
