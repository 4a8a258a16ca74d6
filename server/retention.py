"""What the server forgets, so that it runs for years on one disk: old updates, reports and releases."""

import math
from dataclasses import dataclass

import sqlalchemy as sql

from server import tables
from server.database import Database

PRUNE_SECONDS = 3600.0
"""How often the server looks for what may go."""


@dataclass(frozen=True)
class RetentionPolicy:
    """How long things are kept. A release whose updates are gone cannot be recomputed any more."""

    journal_days: float = 90.0
    """Days that the updates of a closed round are kept; 0: for ever."""
    releases: int = 500
    """Releases that are kept with their adapters, and devices' reports on them; 0: all."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.journal_days) and self.journal_days >= 0):
            raise ValueError(f"journal_days: expected 0 or more, got {self.journal_days}")
        if self.releases < 0:
            raise ValueError(f"releases: expected 0 or more, got {self.releases}")


@dataclass(frozen=True)
class Pruned:
    """What was forgotten."""

    updates: int = 0
    releases: int = 0
    reports: int = 0

    def __bool__(self) -> bool:
        return bool(self.updates or self.releases or self.reports)


def prune(database: Database, policy: RetentionPolicy, maximum_staleness: int, now: float) -> Pruned:
    """Forget what is older than the policy says, in one transaction.

    A round whose updates go is marked first: no update of it is accepted ever after, so none can be counted a
    second time. Rounds that may still take late updates, and releases that these start from, stay.

    Args:
        database: the server's.
        policy: what to keep.
        maximum_staleness: releases after which no late update counts.
        now: Unix seconds.
    """
    rounds, updates, releases, reports = tables.rounds, tables.updates, tables.releases, tables.reports
    with database.engine.begin() as connection:
        newest = connection.execute(sql.select(sql.func.max(releases.c.number))).scalar()
        if newest is None:
            return Pruned()
        gone_updates = gone_releases = gone_reports = 0
        if policy.journal_days:
            connection.execute(
                rounds.update()
                .where(
                    rounds.c.pruned_at.is_(None),
                    rounds.c.closed_at < now - 86_400 * policy.journal_days,
                    rounds.c.base_release < newest - maximum_staleness,
                )
                .values(pruned_at=now)
            )
            gone = sql.select(rounds.c.number).where(rounds.c.pruned_at.isnot(None))
            gone_updates = connection.execute(updates.delete().where(updates.c.counted_in.in_(gone))).rowcount
        if policy.releases:
            oldest = newest - max(policy.releases, maximum_staleness + 1)
            gone_releases = connection.execute(releases.delete().where(releases.c.number < oldest)).rowcount
            gone_reports = connection.execute(reports.delete().where(reports.c.release < oldest)).rowcount
    return Pruned(gone_updates, gone_releases, gone_reports)
