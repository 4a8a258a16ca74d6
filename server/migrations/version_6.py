"""Domains: adapters that a release holds, and which device went where when the federation was split.

Until then every release held one adapter.
"""

import sqlalchemy as sql
from alembic.operations import Operations


def upgrade(operations: Operations) -> None:
    """Alter the tables of schema version 5."""
    with operations.batch_alter_table("releases") as batch:
        batch.add_column(sql.Column("domains", sql.Integer, nullable=False, server_default="1"))
        batch.add_column(sql.Column("placement", sql.JSON))
