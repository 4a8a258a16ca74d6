"""The tables of the ledger of identities, and the states of a record; ledger.py decides what may change."""

SCHEMA_VERSION = 1
PLANNED, PROVISIONED, ENROLLED, REVOKED, REPLACED = STATUSES = (
    "planned",
    "provisioned",
    "enrolled",
    "revoked",
    "replaced",
)
SCHEMA = f"""
CREATE TABLE identities (
    id INTEGER PRIMARY KEY,
    serial TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN {STATUSES}),
    public_key TEXT UNIQUE,
    image_sha256 TEXT,
    medium TEXT,
    planned_at REAL NOT NULL,
    changed_at REAL NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    replaces INTEGER UNIQUE REFERENCES identities
);
CREATE UNIQUE INDEX one_record_for_a_serial ON identities (serial) WHERE status != '{REPLACED}';
CREATE TABLE media (
    medium TEXT PRIMARY KEY,
    image_sha256 TEXT,
    flashed_at REAL,
    identity INTEGER REFERENCES identities
);
CREATE TABLE history (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    identity INTEGER REFERENCES identities,
    medium TEXT,
    change TEXT NOT NULL
);
PRAGMA user_version = {SCHEMA_VERSION};
"""
"""Made in an empty file; the unique indexes hold even where a rule of ledger.py should be wrong."""
