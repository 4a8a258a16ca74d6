"""Migrations of the server's database: one module for each schema version after the first.

The version that a database has stands in its own table `settings`, where every version of the program looks
for it. Alembic does the altering, which differs between databases; its own bookkeeping of revisions would be
a second word on the same thing, and is not used.
"""

from collections.abc import Callable, Mapping

import sqlalchemy as sql
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

from server.migrations import version_2, version_3, version_4, version_5, version_6

STEPS: Mapping[int, Callable[[Operations], None]] = {
    2: version_2.upgrade,
    3: version_3.upgrade,
    4: version_4.upgrade,
    5: version_5.upgrade,
    6: version_6.upgrade,
}
"""By version, what makes it of the version before."""


def migrate(connection: sql.Connection, found: int, wanted: int) -> None:
    """Bring a database from the schema version `found` to `wanted`, within the connection's transaction."""
    with Operations.context(MigrationContext.configure(connection)) as operations:
        for version in range(found + 1, wanted + 1):
            STEPS[version](operations)
    settings = sql.table("settings", sql.column("name"), sql.column("value"))
    connection.execute(
        sql.update(settings).where(settings.c.name == "schema_version").values(value=str(wanted))
    )
