"""A copy of a SQLite database before its schema is changed."""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path


def keep_copy(database: Path, version: int) -> Path:
    """Copy a database, also one in use, to a file beside it; returns its path.

    The copy has its name only once it is whole and on disk. A copy of the same version is replaced: as long
    as the database has that version, it is no older.
    """
    copy = database.with_name(f"{database.name}.version-{version}")
    partial = copy.with_name(f"{copy.name}.partial")
    partial.unlink(missing_ok=True)
    with (
        contextlib.closing(sqlite3.connect(database)) as source,
        contextlib.closing(sqlite3.connect(partial)) as target,
    ):
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
    shutil.copymode(database, partial)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(copy)
    return copy
