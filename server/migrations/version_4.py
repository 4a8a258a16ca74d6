"""Rules and server optimisers: those of each round, and what an optimiser keeps with a release.

Until then every release was the release before plus the weighted mean of its round.
"""

import sqlalchemy as sql
from alembic.operations import Operations

AGGREGATION = {
    "rule": "mean",
    "assumed_attackers": 0.2,
    "clipping_radius": 0.0,
    "iterations": 8,
    "memory_mib": 64,
    "server_optimizer": "average",
    "learning_rate": 0.01,
    "beta1": 0.9,
    "beta2": 0.99,
    "tau": 0.001,
}
"""What held before; an open round goes on with it."""


def upgrade(operations: Operations) -> None:
    """Alter the tables of schema version 3."""
    with operations.batch_alter_table("rounds") as batch:
        batch.add_column(sql.Column("aggregation", sql.JSON, nullable=True))
    rounds = sql.table("rounds", sql.column("aggregation", sql.JSON))
    operations.execute(sql.update(rounds).values(aggregation=AGGREGATION))
    with operations.batch_alter_table("rounds") as batch:
        batch.alter_column("aggregation", existing_type=sql.JSON, nullable=False)
    with operations.batch_alter_table("releases") as batch:
        batch.add_column(sql.Column("moments", sql.LargeBinary))
