"""Identities: what each device may, its certificates, tokens and requests for them, and roots of trust.

Also: the release that another one is once more, orders to go back to an older package, and devices' firmware.
"""

import sqlalchemy as sql
from alembic.operations import Operations


def upgrade(operations: Operations) -> None:
    """Alter the tables of schema version 5."""
    with operations.batch_alter_table("devices") as batch:
        batch.add_column(sql.Column("firmware", sql.String(64), nullable=False, server_default=""))
        batch.add_column(sql.Column("firmware_update", sql.String(200), nullable=False, server_default=""))
        batch.add_column(sql.Column("status", sql.String(16), nullable=False, server_default="active"))
        batch.add_column(sql.Column("status_reason", sql.String(500), nullable=False, server_default=""))
        for name in ("status_at", "certificate_until", "session_ended_at"):
            batch.add_column(sql.Column(name, sql.Float))
    with operations.batch_alter_table("packages") as batch:
        batch.add_column(sql.Column("rollback", sql.LargeBinary))
    with operations.batch_alter_table("releases") as batch:
        batch.add_column(sql.Column("restores", sql.BigInteger))
    _add_tables(operations)


def _add_tables(operations: Operations) -> None:
    operations.create_table(
        "certificates",
        sql.Column("serial", sql.String(40), primary_key=True),
        sql.Column("device", sql.String(64), nullable=False),
        sql.Column("request", sql.LargeBinary(32), nullable=False),
        sql.Column("issued_at", sql.Float, nullable=False),
        sql.Column("not_after", sql.Float, nullable=False),
        sql.Column("pem", sql.LargeBinary, nullable=False),
        sql.Column("revoked_at", sql.Float),
    )
    operations.create_index("certificates_device", "certificates", ["device"])
    operations.create_index("certificates_request", "certificates", ["request"])
    operations.create_table(
        "tokens",
        sql.Column("sha256", sql.LargeBinary(32), primary_key=True),
        sql.Column("device", sql.String(64), nullable=False),
        sql.Column("replace", sql.Boolean, nullable=False),
        sql.Column("created_at", sql.Float, nullable=False),
        sql.Column("expires_at", sql.Float, nullable=False),
        sql.Column("used_at", sql.Float),
        sql.Column("used_by", sql.LargeBinary(32)),
    )
    operations.create_table(
        "enrolments",
        sql.Column("device", sql.String(64), primary_key=True),
        sql.Column("public_key", sql.LargeBinary(32), primary_key=True),
        sql.Column("asked_at", sql.Float, nullable=False),
        sql.Column("agent_version", sql.String(64), nullable=False),
        sql.Column("approved_at", sql.Float),
    )
    operations.create_table(
        "roots",
        sql.Column("version", sql.Integer, primary_key=True, autoincrement=False),
        sql.Column("data", sql.LargeBinary, nullable=False),
        sql.Column("installed_at", sql.Float, nullable=False),
    )
