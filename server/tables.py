"""Tables of the server's database."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

SCHEMA_VERSION = 6
metadata = MetaData()

settings = Table(
    "settings",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", String, nullable=False),
)
packages = Table(
    "packages",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("sha256", LargeBinary(32), nullable=False),
    Column("name", String(200), nullable=False),
    Column("pushed_at", Float, nullable=False),
    Column("rollback", LargeBinary),
)
devices = Table(
    "devices",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("public_key", LargeBinary(32), nullable=False),
    Column("registered_at", Float, nullable=False),
    Column("online", Boolean, nullable=False, default=False),
    Column("session", BigInteger, nullable=False, default=0),
    Column("last_seen", Float),
    Column("agent_version", String(64), nullable=False, default=""),
    Column("package", LargeBinary(32), nullable=False, default=b""),
    Column("release", BigInteger, nullable=False, default=-1),
    Column("labelled_windows", BigInteger, nullable=False, default=0),
    Column("waits", String(64), nullable=False, default="", server_default=""),
    Column("firmware", String(64), nullable=False, default="", server_default=""),
    Column("firmware_update", String(200), nullable=False, default="", server_default=""),
    Column("status", String(16), nullable=False, default="active", server_default="active"),
    Column("status_reason", String(500), nullable=False, default="", server_default=""),
    Column("status_at", Float),
    Column("certificate_until", Float),
    Column("session_ended_at", Float),
)
certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(40), primary_key=True),
    Column("device", String(64), nullable=False),
    Column("request", LargeBinary(32), nullable=False),
    Column("issued_at", Float, nullable=False),
    Column("not_after", Float, nullable=False),
    Column("pem", LargeBinary, nullable=False),
    Column("revoked_at", Float),
    Index("certificates_device", "device"),
    Index("certificates_request", "request"),
)
tokens = Table(
    "tokens",
    metadata,
    Column("sha256", LargeBinary(32), primary_key=True),
    Column("device", String(64), nullable=False),
    Column("replace", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
    Column("used_by", LargeBinary(32)),
)
enrolments = Table(
    "enrolments",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("public_key", LargeBinary(32), primary_key=True),
    Column("asked_at", Float, nullable=False),
    Column("agent_version", String(64), nullable=False),
    Column("approved_at", Float),
)
roots = Table(
    "roots",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
    Column("installed_at", Float, nullable=False),
)
rounds = Table(
    "rounds",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("package_version", Integer, ForeignKey("packages.version"), nullable=False),
    Column("base_release", BigInteger, nullable=False),
    Column("cohort", JSON, nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("deadline", Float, nullable=False),
    Column("training", JSON, nullable=False),
    Column("release_step_ratio", Float, nullable=False),
    Column("staleness", JSON, nullable=False),
    Column("aggregation", JSON, nullable=False),
    Column("closed_at", Float),
    Column("outcome", String(32)),
    Column("pruned_at", Float),
)
updates = Table(
    "updates",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("round", BigInteger, primary_key=True),
    Column("sha256", LargeBinary(32), nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("public_key", LargeBinary(32), nullable=False),
    Column("received_at", Float, nullable=False),
    Column("counted_in", BigInteger, nullable=False),
    Index("updates_counted_in", "counted_in"),
)
releases = Table(
    "releases",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("package_version", Integer, ForeignKey("packages.version"), nullable=False),
    Column("round", BigInteger),
    Column("parent", LargeBinary(32), nullable=False),
    Column("sha256", LargeBinary(32), nullable=False),
    Column("adapter", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updates", Integer, nullable=False),
    Column("weight", BigInteger, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("default_choice", String(16), nullable=False),
    Column("steps", LargeBinary),
    Column("body", LargeBinary),
    Column("residual", LargeBinary),
    Column("moments", LargeBinary),
    Column("withdraws", BigInteger),
    Column("restores", BigInteger),
    Column("domains", Integer, nullable=False, default=1, server_default="1"),
    Column("placement", JSON),
)
withdrawals = Table(
    "withdrawals",
    metadata,
    Column("release", BigInteger, primary_key=True, autoincrement=False),
    Column("replacement", BigInteger, nullable=False),
    Column("withdrawn_at", Float, nullable=False),
    Column("reason", String(500), nullable=False),
    Column("evidence", JSON, nullable=False),
)
reports = Table(
    "reports",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("release", BigInteger, primary_key=True),
    Column("received_at", Float, nullable=False),
    Column("figures", JSON, nullable=False),
)
refusals = Table(
    "refusals",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("device", String(64), nullable=False),
    Column("received_at", Float, nullable=False),
    Column("reason", String(500), nullable=False),
)
