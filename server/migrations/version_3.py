"""Late updates: the round that an update is counted in, and how a round takes those of rounds before.

Until then only updates of the open round were counted. Also: why a device sends nothing at the moment, and
when the updates of a round were pruned.
"""

import sqlalchemy as sql
from alembic.operations import Operations

STALENESS = {"maximum": 0, "exponent": 0.5}
"""What held before; an open round goes on with it."""


def upgrade(operations: Operations) -> None:
    """Alter the tables of schema version 2."""
    with operations.batch_alter_table("devices") as batch:
        batch.add_column(sql.Column("waits", sql.String(64), nullable=False, server_default=""))
    with operations.batch_alter_table("rounds") as batch:
        batch.add_column(sql.Column("staleness", sql.JSON, nullable=True))
        batch.add_column(sql.Column("pruned_at", sql.Float, nullable=True))
    rounds = sql.table("rounds", sql.column("staleness", sql.JSON))
    operations.execute(sql.update(rounds).values(staleness=STALENESS))
    with operations.batch_alter_table("rounds") as batch:
        batch.alter_column("staleness", existing_type=sql.JSON, nullable=False)
    operations.drop_index("updates_of_round", "updates")
    with operations.batch_alter_table("updates") as batch:
        batch.add_column(sql.Column("counted_in", sql.BigInteger, nullable=True))
    updates = sql.table("updates", sql.column("counted_in"), sql.column("round"))
    operations.execute(sql.update(updates).values(counted_in=updates.c.round))
    with operations.batch_alter_table("updates") as batch:
        batch.alter_column("counted_in", existing_type=sql.BigInteger, nullable=False)
    operations.create_index("updates_counted_in", "updates", ["counted_in"])
