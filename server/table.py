"""How operators' commands open the store and print rows: as a table, or as JSON."""

import argparse
import contextlib
import datetime as dt
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from server.config import ServerConfig
from server.store import Store

MOMENTS = ("last_seen", "certificate_until", "not_after")
"""Columns in Unix seconds, beside those that end with _at."""


def open_store(config: ServerConfig) -> contextlib.closing[Store]:
    """The server's store, closed at the end of a `with`."""
    return contextlib.closing(Store(Path(config.data_directory), config.database))


def show(options: argparse.Namespace, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Print columns of rows; JSON where `options.json` says so."""
    if options.json:
        print(json.dumps([{name: _json(row[name]) for name in columns} for row in rows]))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name.replace("_", " "), overflow="fold")  # nothing is cut off
    for row in rows:
        table.add_row(*(_cell(name, row[name]) for name in columns))
    Console().print(table)


def _json(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in ("certificate_until", "not_after"):
        return _moment(value).strftime("%Y-%m-%d")
    if name.endswith("_at") or name in MOMENTS:
        return _moment(value).strftime("%m-%d %H:%M:%SZ")
    if isinstance(value, bytes):
        return value.hex()[:16]
    if isinstance(
        value, dict
    ):  # one figure a line: side by side they would break anywhere in a narrow terminal
        return "\n".join(f"{key.replace('_', ' ')} {number:.3f}" for key, number in value.items())
    return str(value)


def _moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.timezone.utc)
