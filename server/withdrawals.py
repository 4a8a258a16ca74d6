"""Withdrawals in the database: the release that takes the place of another, and the evidence for it."""

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sql

from server import tables
from server.database import Database
from server.ledger_records import ReleaseRecord, RoundRecord, release_row

LEAST_REST, LONGEST_REST = 60.0, 24 * 3600.0
"""Seconds between rounds where releases are withdrawn one after another."""
OUTCOME = "its release was withdrawn"
"""Of a round that started from a release that was withdrawn."""


def replacement(withdrawn: ReleaseRecord, restored: ReleaseRecord, now: float) -> ReleaseRecord:
    """The release that withdraws another one: all that the one before it was, under the next number."""
    return ReleaseRecord(
        withdrawn.number + 1,
        withdrawn.package_version,
        None,
        withdrawn.sha256,
        restored.sha256,
        restored.adapter,
        now,
        updates=0,
        weight=0,
        metrics={},
        default_choice=restored.default_choice,
        residual=restored.residual,
        moments=restored.moments,
        withdraws=withdrawn.number,
        restores=restored.number,
        domains=restored.domains,
    )


def rest_until(found: Iterable[Mapping[str, Any]], newest: ReleaseRecord, pause_seconds: float) -> float:
    """When the next round may open after a withdrawal, Unix seconds; 0 where the newest release is none.

    The devices that made a bad release would make it again from the same start: so each withdrawal in a row
    doubles the rest, until their data are others or an operator looks.

    Args:
        found: withdrawals, newest first.
        newest: the newest release.
        pause_seconds: between two rounds.
    """
    if newest.withdraws is None:
        return 0.0
    in_a_row, expected = 0, newest.number
    for row in found:
        if row["replacement"] != expected:
            break
        in_a_row, expected = in_a_row + 1, row["replacement"] - 2  # a round's release lies in between
    if in_a_row <= 1:
        return newest.created_at + pause_seconds
    rest = max(pause_seconds, LEAST_REST) * 2.0 ** min(in_a_row - 1, 20)
    return newest.created_at + min(rest, max(pause_seconds, LONGEST_REST))


def of_withdrawn(record: RoundRecord | None) -> bool:
    """Whether the release that a round started from was withdrawn."""
    return record is not None and record.outcome == OUTCOME


def withdraw(database: Database, reason: str, evidence: Mapping[str, Any], release: ReleaseRecord) -> bool:
    """Keep a release that withdraws the newest one, with the evidence; False: another one is the newest.

    A round that is open started from what is withdrawn: it ends without a release. Late updates that it
    counted started from a release before, and go to the next round.

    Args:
        database: the server's.
        reason: in a sentence, for operators.
        evidence: on the release that is withdrawn, as JSON has it.
        release: what takes its place.
    """
    rounds, updates, releases = tables.rounds, tables.updates, tables.releases
    with database.only_writer() as connection:  # so that no push comes in between
        if connection.execute(sql.select(sql.func.max(releases.c.number))).scalar() != release.withdraws:
            return False
        number = connection.execute(sql.select(rounds.c.number).where(rounds.c.closed_at.is_(None))).scalar()
        if number is not None:
            connection.execute(
                rounds.update()
                .where(rounds.c.number == number)
                .values(closed_at=release.created_at, outcome=OUTCOME)
            )
            connection.execute(
                updates.update()
                .where(updates.c.counted_in == number, updates.c.round != number)
                .values(counted_in=number + 1)
            )
        connection.execute(releases.insert().values(release_row(release)))
        connection.execute(
            tables.withdrawals.insert().values(
                release=release.withdraws,
                replacement=release.number,
                withdrawn_at=release.created_at,
                reason=reason[:500],
                evidence=dict(evidence),
            )
        )
    return True


def undone(database: Database, number: int) -> bool:
    """Whether a release was withdrawn, or lies between one that was and the one that was gone back to.

    What devices learned from such a release mostly takes back what was withdrawn with it.
    """
    columns = tables.releases.c
    restored = sql.func.coalesce(columns.restores, columns.withdraws - 1)
    statement = sql.select(columns.number).where(restored < number, columns.withdraws >= number)
    return database.first(statement) is not None


def withdrawals(database: Database) -> list[dict[str, Any]]:
    """All withdrawals, newest first."""
    return database.all(sql.select(tables.withdrawals).order_by(tables.withdrawals.c.release.desc()))
