"""What the federation did: packages, rounds, the journal of updates, releases."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sql
from numpy.typing import NDArray
from sqlalchemy.exc import IntegrityError

from protocol.release_coding import adapter_sha256
from protocol.signing import PublicKey
from runtime import whole_files
from server import tables, withdrawals
from server.database import Database, next_number
from server.errors import ServerError
from server.evaluation import TOGETHER
from server.ledger_records import (
    JournalledUpdate,
    PackageRecord,
    ReleaseRecord,
    RoundRecord,
    release_record,
    release_row,
    round_record,
)
from server.retention import Pruned, RetentionPolicy, prune


class Ledger:
    """Packages, rounds, updates and releases."""

    def __init__(self, database: Database, packages: Path) -> None:
        """Take a database and the folder of packages."""
        self._database = database
        self._packages = packages
        packages.mkdir(parents=True, exist_ok=True)

    def add_package(
        self,
        data: bytes,
        sha256: bytes,
        name: str,
        initial: NDArray[np.float32],
        now: float,
        *,
        default: str = TOGETHER,
        rollback: bytes | None = None,
    ) -> int:
        """Keep a package and its initial adapter as the newest release; returns the package's version.

        The package that runs already is left as it is: pushing twice does nothing.

        An open round of the package before ends without a release. `default` is what devices use of the
        initial release unless their own held-out windows show otherwise; `rollback` is the signed order to go
        back to the package.
        """
        newest = self.newest_package()
        whole_files.write(self.package_path(sha256), data, whole_files.PUBLIC)
        if newest and newest.sha256 == sha256:
            return newest.version
        with self._database.only_writer() as connection:
            # First, so that the server cannot make a release of the open round in between.
            connection.execute(
                tables.rounds.update()
                .where(tables.rounds.c.closed_at.is_(None))
                .values(closed_at=now, outcome="superseded by a new package")
            )
            version = next_number(connection, tables.packages.c.version, 1)
            number = next_number(connection, tables.releases.c.number, 0)
            connection.execute(
                tables.packages.insert().values(
                    version=version, sha256=sha256, name=name, pushed_at=now, rollback=rollback
                )
            )
            release = ReleaseRecord(
                number,
                version,
                None,
                b"",
                adapter_sha256(initial),
                initial,
                now,
                updates=0,
                weight=0,
                metrics={},
                default_choice=default,
            )
            connection.execute(tables.releases.insert().values(release_row(release)))
        return version

    def skip_numbers(self, count: int, now: float) -> int:
        """Pass over numbers of packages, rounds and releases; returns the number of the newest release.

        For a server whose backup was restored: devices refuse numbers below those that they have seen. The
        package and the release that run are there once more, under the new numbers; an open round ends.

        Raises:
            ServerError: there is no package yet.
        """
        package, release = self.newest_package(), self.newest_release()
        if package is None or release is None:
            raise ServerError("there is no package yet, so there is nothing to go on with")
        again = withdrawals.replacement(release, release, now)
        version, number = package.version + count, release.number + count
        again = replace(again, number=number, package_version=version)
        with self._database.only_writer() as connection:
            connection.execute(
                tables.rounds.update()
                .where(tables.rounds.c.closed_at.is_(None))
                .values(closed_at=now, outcome="numbers were passed over")
            )
            connection.execute(tables.packages.insert().values({**asdict(package), "version": version}))
            connection.execute(tables.releases.insert().values(release_row(again)))
            passed = RoundRecord(
                next_number(connection, tables.rounds.c.number, 1) + count - 1,
                version,
                number,
                (),
                now,
                now,
                closed_at=now,
                outcome="numbers were passed over",
            )
            connection.execute(tables.rounds.insert().values({**asdict(passed), "cohort": []}))
        return number

    def package_path(self, sha256: bytes) -> Path:
        """Where a package lies."""
        return self._packages / f"{sha256.hex()}.zip"

    def newest_package(self) -> PackageRecord | None:
        """The package that the federation runs."""
        row = self._database.first(
            sql.select(tables.packages).order_by(tables.packages.c.version.desc()).limit(1)
        )
        return PackageRecord(**row) if row else None

    def package(self, version: int) -> PackageRecord | None:
        """A package by its version."""
        row = self._database.first(sql.select(tables.packages).where(tables.packages.c.version == version))
        return PackageRecord(**row) if row else None

    def open_round(self, record: RoundRecord) -> bool:
        """Note a new round; False: an operator pushed or went back in between, and there is none."""
        newest = sql.select(sql.func.max(tables.releases.c.number))
        with self._database.only_writer() as connection:
            if connection.execute(newest).scalar() != record.base_release:
                return False
            connection.execute(
                tables.rounds.insert().values({**asdict(record), "cohort": list(record.cohort)})
            )
        return True

    def extend_round(self, number: int, deadline: float) -> None:
        """Note a later deadline."""
        with self._database.engine.begin() as connection:
            connection.execute(
                tables.rounds.update().where(tables.rounds.c.number == number).values(deadline=deadline)
            )

    def open_round_record(self) -> RoundRecord | None:
        """The round that is open."""
        row = self._database.first(sql.select(tables.rounds).where(tables.rounds.c.closed_at.is_(None)))
        return round_record(row) if row else None

    def round_record(self, number: int) -> RoundRecord | None:
        """A round by its number."""
        row = self._database.first(sql.select(tables.rounds).where(tables.rounds.c.number == number))
        return round_record(row) if row else None

    def rounds(self) -> list[dict[str, Any]]:
        """All rounds with the number of updates counted, newest first."""
        counted = sql.func.count(tables.updates.c.device).label("counted")
        return self._database.all(
            sql.select(tables.rounds, counted)
            .outerjoin(tables.updates, tables.updates.c.counted_in == tables.rounds.c.number)
            .group_by(tables.rounds.c.number)
            .order_by(tables.rounds.c.number.desc())
        )

    def next_round_number(self) -> int:
        """Number of the next round to open."""
        with self._database.engine.connect() as connection:
            return next_number(connection, tables.rounds.c.number, 1)

    def rounds_done(self, package_version: int) -> int:
        """Rounds of a package that ended with a release."""
        row = self._database.first(
            sql.select(sql.func.count().label("done"))
            .select_from(tables.releases)
            .where(tables.releases.c.package_version == package_version, tables.releases.c.round.isnot(None))
        )
        return int(row["done"]) if row else 0

    def journal_update(
        self, update: JournalledUpdate, sha256: bytes, *, counted_in: int, now: float
    ) -> bytes:
        """Keep an update, once per device and round.

        Args:
            update: the update.
            sha256: of its envelope.
            counted_in: number of the round that counts it, open now or the next one to open.
            now: Unix seconds.

        Returns:
            Hash of the update that is kept.
        """
        try:
            with self._database.engine.begin() as connection:
                connection.execute(
                    tables.updates.insert().values(
                        device=update.device,
                        round=update.round,
                        sha256=sha256,
                        envelope=update.envelope,
                        public_key=update.key.raw,
                        received_at=now,
                        counted_in=counted_in,
                    )
                )
        except IntegrityError:
            return self.journalled_update(update.device, update.round) or b""
        return sha256

    def journalled_update(self, device: str, number: int) -> bytes | None:
        """Hash of the update that is kept of a device in a round."""
        row = self._database.first(
            sql.select(tables.updates.c.sha256).where(
                tables.updates.c.device == device, tables.updates.c.round == number
            )
        )
        return bytes(row["sha256"]) if row else None

    def journalled_updates(self, number: int) -> Iterator[JournalledUpdate]:
        """Each update that is counted in a round, a few in memory at a time."""
        return self._journal(tables.updates.c.counted_in == number)

    def answers(self, number: int) -> Iterator[JournalledUpdate]:
        """Each update that answers a round, whichever round counts it, a few in memory at a time."""
        return self._journal(tables.updates.c.round == number)

    def _journal(self, chosen: sql.ColumnElement[bool]) -> Iterator[JournalledUpdate]:
        columns = (
            tables.updates.c.device,
            tables.updates.c.round,
            tables.updates.c.envelope,
            tables.updates.c.public_key,
        )
        statement = sql.select(*columns).where(chosen)
        with self._database.engine.connect() as connection:
            for row in connection.execution_options(yield_per=16).execute(statement):
                key = PublicKey(bytes(row.public_key))
                yield JournalledUpdate(row.device, bytes(row.envelope), key, row.round)

    def close_round(self, number: int, release: ReleaseRecord, now: float) -> bool:
        """End a round and keep its release, both or neither; False: a new package ended the round before."""
        with self._database.engine.begin() as connection:
            result = connection.execute(
                tables.rounds.update()
                .where(tables.rounds.c.number == number, tables.rounds.c.closed_at.is_(None))
                .values(closed_at=now, outcome="released")
            )
            if not result.rowcount:
                return False
            connection.execute(tables.releases.insert().values(release_row(release)))
        return True

    def withdraw(self, reason: str, evidence: Mapping[str, Any], release: ReleaseRecord) -> bool:
        """Keep a release that withdraws the newest one; see withdrawals.py."""
        return withdrawals.withdraw(self._database, reason, evidence, release)

    def undone(self, number: int) -> bool:
        """Whether a release was withdrawn, or stood on one that was; see withdrawals.py."""
        return withdrawals.undone(self._database, number)

    def newest_release_number(self) -> int:
        """Number of the release that the federation runs; -1: there is none."""
        row = self._database.first(sql.select(sql.func.max(tables.releases.c.number).label("number")))
        return -1 if row is None or row["number"] is None else int(row["number"])

    def withdrawals(self) -> list[dict[str, Any]]:
        """All withdrawals with their evidence, newest first."""
        return withdrawals.withdrawals(self._database)

    def newest_release(self) -> ReleaseRecord | None:
        """The release that the federation runs."""
        statement = sql.select(tables.releases).order_by(tables.releases.c.number.desc()).limit(1)
        row = self._database.first(statement)
        return release_record(row) if row else None

    def release(self, number: int) -> ReleaseRecord | None:
        """A release by its number.

        Raises:
            ServerError: it is damaged.
        """
        row = self._database.first(sql.select(tables.releases).where(tables.releases.c.number == number))
        return release_record(row) if row else None

    def releases(self) -> list[dict[str, Any]]:
        """All releases without their adapters, differences, residuals and moments, newest first."""
        large = ("adapter", "steps", "body", "residual", "moments", "placement")
        columns = [column for column in tables.releases.c if column.name not in large]
        return self._database.all(sql.select(*columns).order_by(tables.releases.c.number.desc()))

    def placement(self, package_version: int, release: int) -> dict[str, int]:
        """Domain of each device whose updates split the federation up to a release; empty: it was not."""
        row = self._database.first(
            sql.select(tables.releases.c.placement)
            .where(
                tables.releases.c.package_version == package_version,
                tables.releases.c.placement.isnot(None),
                tables.releases.c.number <= release,
            )
            .order_by(tables.releases.c.number.desc())
            .limit(1)
        )
        return dict(row["placement"]) if row else {}

    def prune(self, policy: RetentionPolicy, maximum_staleness: int, now: float) -> Pruned:
        """Forget what is older than the policy says; see retention.py."""
        return prune(self._database, policy, maximum_staleness, now)
