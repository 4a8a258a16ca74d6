"""Releases as coded differences: what a release left over, and the step that its round codes it with.

Releases from before keep no difference: they were the release before plus the whole mean.
"""

import sqlalchemy as sql
from alembic.operations import Operations

STEP_RATIO = 1.5
"""The default of the version that brought the setting; a round that is open goes on with it."""


def upgrade(operations: Operations) -> None:
    """Alter the tables of schema version 1."""
    with operations.batch_alter_table("rounds") as batch:
        batch.add_column(sql.Column("release_step_ratio", sql.Float, nullable=True))
    rounds = sql.table("rounds", sql.column("release_step_ratio"))
    operations.execute(sql.update(rounds).values(release_step_ratio=STEP_RATIO))
    with operations.batch_alter_table("rounds") as batch:
        batch.alter_column("release_step_ratio", nullable=False)
    with operations.batch_alter_table("releases") as batch:
        for name in ("steps", "body", "residual"):
            batch.add_column(sql.Column(name, sql.LargeBinary))
