"""Withdrawn releases with the evidence, and domains.

Which release another one takes the place of; how many adapters a release holds, and which device went where
when it split the federation. Until then every release held one adapter.
"""

import sqlalchemy as sql
from alembic.operations import Operations


def upgrade(operations: Operations) -> None:
    """Alter the tables of schema version 4."""
    with operations.batch_alter_table("releases") as batch:
        batch.add_column(sql.Column("withdraws", sql.BigInteger, nullable=True))
        batch.add_column(sql.Column("domains", sql.Integer, nullable=False, server_default="1"))
        batch.add_column(sql.Column("placement", sql.JSON))
    operations.create_table(
        "withdrawals",
        sql.Column("release", sql.BigInteger, primary_key=True, autoincrement=False),
        sql.Column("replacement", sql.BigInteger, nullable=False),
        sql.Column("withdrawn_at", sql.Float, nullable=False),
        sql.Column("reason", sql.String(500), nullable=False),
        sql.Column("evidence", sql.JSON, nullable=False),
    )
