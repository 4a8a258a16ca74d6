"""One recording of sensor data, parsed from CSV or Parquet and checked cell by cell.

Decides what a valid recording is; opens no file, cuts no windows. CSV goes through two readers: a fast
one (numpy, block by block, so that memory stays near the size of the result) and an exact one, row by
row, which runs only on a block the fast one refuses. The exact reader is the definition: it either finds
the cell to blame or returns what the fast one could not read (quoted cells). Parquet goes through pyarrow.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from protocol.channels import FLOAT32_LIMIT, ChannelError, Columns, Reading, convert, resolve
from protocol.errors import DataError
from protocol.input_schema import InputSchema

UNLABELLED = -1
NO_COLUMNS: Columns = MappingProxyType({})
"""Of a device whose owner says nothing about its channels."""

_BLOCK_BYTES = 256 * 1024
_LINE_BYTES = 1024 * 1024
_BATCH_ROWS = 65_536
# What numpy.loadtxt takes; float() alone would also take "1_000" and digits of other scripts.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True, eq=False)
class Recording:
    """Rows of one contiguous measurement."""

    name: str
    """Where it came from, for messages; usually a file name."""
    samples: NDArray[np.float32]
    """[rows, channels], finite, columns in the order of the schema's channels; of pictures
    [rows, channels, height, width], one picture per row."""
    labels: NDArray[np.int64]
    """[rows], index into the schema's classes; -1 where unlabelled."""

    def __post_init__(self) -> None:
        if self.samples.ndim not in (2, 4) or self.labels.shape != self.samples.shape[:1]:
            raise ValueError(
                f"{self.name}: expected samples [rows, channels] and labels [rows], "
                f"got {list(self.samples.shape)} and {list(self.labels.shape)}"
            )


def parse(
    stream: BinaryIO,
    name: str,
    schema: InputSchema,
    max_rows: int = 10_000_000,
    columns: Columns = NO_COLUMNS,
) -> Recording:
    """Read one recording; Parquet when `name` ends in ".parquet", otherwise CSV in UTF-8 with a header.

    Columns: one per channel of the schema, in any order, by the names and units that channels.py decides;
    `label` (optional) holds a class name, or nothing where the row is unlabelled; `timestamp` and all other
    columns are ignored.

    Args:
        stream: open binary stream, read to its end; Parquet needs it seekable.
        name: the file's name, for messages.
        schema: the channels and classes to expect.
        max_rows: rows to read at most; bounds the memory a file can claim.
        columns: what the owner of the device says about channels.

    Raises:
        ChannelError: the columns do not give the channels.
        DataError: the data are not such a recording; names the file, the line (1-based, as an editor
            shows it), the column and what was expected.
    """
    read = _read_parquet if name.lower().endswith(".parquet") else _read_csv
    samples, labels = read(stream, name, schema, max_rows, columns)
    return Recording(name, samples, labels)


@dataclass(frozen=True)
class _Layout:
    """Where the wanted columns stand in the file."""

    name: str
    columns: tuple[str, ...]
    channels: tuple[int, ...]
    readings: tuple[Reading, ...]
    label: int | None
    classes: dict[str, int]

    def class_index(self, cell: str) -> int:
        return self.classes[cell.strip()]

    def error(self, line: int, column: int, expected: str, cell: str) -> DataError:
        got = f"got {cell.strip()[:40]!r}" if cell.strip() else "the cell is empty"
        return DataError(
            f"{self.name}: line {line}: column {self.columns[column]!r}: expected {expected}, {got}"
        )


def _read_csv(
    stream: BinaryIO, name: str, schema: InputSchema, max_rows: int, owner: Columns
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    samples: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    layout: _Layout | None = None
    rows = 0
    for first_line, block in _blocks(stream, name):
        lines, line = _decode(block, name, first_line), first_line
        if layout is None:
            layout = _read_header(lines[0].removeprefix("\ufeff"), name, schema, owner)
            lines, line = lines[1:], line + 1
        if not lines:
            continue
        rows += len(lines)
        if rows > max_rows:
            raise DataError(f"{name}: expected at most {max_rows:,} rows")
        values = _read_fast(lines, layout)
        if values is None:
            values = _read_exactly(lines, line, layout)
        samples.append(_converted(values[:, : len(layout.channels)], layout.readings, name, "line", line))
        labels.append(
            values[:, -1].astype(np.int64)
            if layout.label is not None
            else np.full(len(lines), UNLABELLED, np.int64)
        )
    if layout is None:
        raise DataError(
            f"{name}: line 1: expected a header with {', '.join(schema.channels)}; the file is empty"
        )
    if not samples:
        raise DataError(f"{name}: line 2: expected at least one row below the header")
    return np.concatenate(samples), np.concatenate(labels)


def _blocks(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines, the last without its line end)."""
    line, rest, more = 1, b"", True
    while more:
        chunk = stream.read(_BLOCK_BYTES)
        more = bool(chunk)
        rest += chunk
        body = rest[: rest.rfind(b"\n") + 1] if more else rest
        # Blank lines wait for what follows: at the end of the file they mean nothing, before it an error.
        body = body.rstrip(b"\r\n")
        if body:
            yield line, body
            line += body.count(b"\n") + 1
            rest = rest[len(body) :].removeprefix(b"\r").removeprefix(b"\n")
        elif len(rest) > _LINE_BYTES:
            raise DataError(f"{name}: line {line}: expected a line of at most {_LINE_BYTES:,} bytes")


def _decode(block: bytes, name: str, first_line: int) -> list[str]:
    try:
        return [line.removesuffix("\r") for line in block.decode("utf-8").split("\n")]
    except UnicodeDecodeError as error:
        line = first_line + block.count(b"\n", 0, error.start)
        raise DataError(
            f"{name}: line {line}: expected text in UTF-8, got byte 0x{block[error.start]:02x}"
        ) from None


def _read_header(line: str, name: str, schema: InputSchema, owner: Columns) -> _Layout:
    columns = tuple(column.strip() for column in _cells(line, 1, name))
    repeated = [column for column in columns if column and columns.count(column) > 1]
    if repeated:
        raise DataError(f"{name}: line 1: column {repeated[0]!r}: expected once, found twice")
    readings = _resolved(schema, columns, owner, f"{name}: line 1")
    return _Layout(
        name,
        columns,
        tuple(columns.index(reading.column) for reading in readings),
        readings,
        columns.index("label") if "label" in columns else None,
        {"": UNLABELLED} | {label: index for index, label in enumerate(schema.classes)},
    )


def _read_fast(lines: list[str], layout: _Layout) -> NDArray[np.float32] | None:
    """Return float32 [rows, channels (+ label)], or None when anything is not plain and right."""
    separators = len(layout.columns) - 1
    if any(line.count(",") != separators or '"' in line for line in lines):
        return None
    wanted = (*layout.channels, layout.label) if layout.label is not None else layout.channels
    try:
        values = np.loadtxt(
            lines,
            np.float32,
            comments=None,
            delimiter=",",
            converters=None if layout.label is None else {layout.label: layout.class_index},
            usecols=wanted,
            ndmin=2,
            encoding="utf-8",
        )
    except (ValueError, KeyError):
        return None
    # loadtxt skips blank lines, which would shift every later row.
    return values if len(values) == len(lines) and np.isfinite(values).all() else None


def _read_exactly(lines: list[str], first_line: int, layout: _Layout) -> NDArray[np.float32]:
    """Return the same as _read_fast, row by row.

    Raises:
        DataError: names the first cell that is wrong.
    """
    values = np.empty((len(lines), len(layout.channels) + (layout.label is not None)), np.float32)
    for row, text in enumerate(lines):
        line = first_line + row
        cells = _cells(text, line, layout.name)
        if len(cells) != len(layout.columns):
            raise DataError(
                f"{layout.name}: line {line}: expected {len(layout.columns)} cells as in the header, "
                f"got {len(cells)}"
            )
        for position, column in enumerate(layout.channels):
            values[row, position] = _number(cells[column], line, column, layout)
        if layout.label is not None:
            if cells[layout.label].strip() not in layout.classes:
                expected = f"a class ({', '.join(name for name in layout.classes if name)}) or nothing"
                raise layout.error(line, layout.label, expected, cells[layout.label])
            values[row, -1] = layout.class_index(cells[layout.label])
    return values


def _number(cell: str, line: int, column: int, layout: _Layout) -> float:
    if not _NUMBER.fullmatch(cell.strip()):
        raise layout.error(line, column, "a finite number", cell)
    value = float(cell)
    if abs(value) >= FLOAT32_LIMIT:
        raise layout.error(line, column, "a number in the range of float32", cell)
    return value


def _cells(line: str, number: int, name: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True), [""])
    except csv.Error as error:
        raise DataError(
            f"{name}: line {number}: expected comma-separated cells on one line: {error}"
        ) from None


def _resolved(schema: InputSchema, columns: Sequence[str], owner: Columns, where: str) -> tuple[Reading, ...]:
    try:
        return resolve(schema, columns, owner)
    except ChannelError as error:
        raise ChannelError(f"{where}: {error}", error.channel, error.columns) from None


def _converted(
    values: NDArray[np.float32], readings: tuple[Reading, ...], name: str, place: str, first: int
) -> NDArray[np.float32]:
    try:
        return convert(values, readings, place, first)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _read_parquet(
    stream: BinaryIO, name: str, schema: InputSchema, max_rows: int, owner: Columns
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    # An optional part of the agent, and a large one: imported only when a Parquet file comes.
    try:
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError:
        raise DataError(
            f'{name}: expected CSV, as Parquet needs pyarrow: pip install "graftwork[agent-parquet]"'
        ) from None
    samples: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    try:
        with pa.parquet.ParquetFile(stream) as file:
            names = file.schema_arrow.names
            readings = _resolved(schema, names, owner, name)
            wanted = _check_columns(file, name, [reading.column for reading in readings])
            if not 1 <= file.metadata.num_rows <= max_rows:
                raise DataError(f"{name}: expected 1 to {max_rows:,} rows, got {file.metadata.num_rows:,}")
            first_row = 1
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                values = [_channel_column(batch, reading.column, first_row, name) for reading in readings]
                samples.append(_converted(np.stack(values, axis=1), readings, name, "row", first_row))
                labels.append(_label_column(batch, schema, first_row, name))
                first_row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: expected a readable Parquet file: {error}") from None
    return np.concatenate(samples), np.concatenate(labels)


def _check_columns(file: Any, name: str, columns: list[str]) -> list[str]:
    import pyarrow as pa  # noqa: PLC0415

    fields = file.schema_arrow
    for column in columns:
        found = fields.get_all_field_indices(column)
        if len(found) > 1:
            raise DataError(f"{name}: column {column!r}: expected once, found twice")
        kind = fields.field(found[0]).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise DataError(f"{name}: column {column!r}: expected numbers, got {kind}")
    labels = fields.get_all_field_indices("label")
    if len(labels) > 1:
        raise DataError(f"{name}: column 'label': expected once, found twice")
    if labels:
        kind = fields.field(labels[0]).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise DataError(f"{name}: column 'label': expected text, got {kind}")
    return [*columns, "label"] if labels else columns


def _channel_column(batch: Any, channel: str, first_row: int, name: str) -> NDArray[np.float32]:
    column = batch.column(channel)
    # Integers with nulls come back as float64 with NaN, so one check finds both.
    with np.errstate(over="ignore"):
        values = np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        row = int(bad[0])
        cell = column[row].as_py()
        got = "the cell is empty" if cell is None else f"got {cell}"
        raise DataError(f"{name}: row {first_row + row}: column {channel!r}: expected a finite number, {got}")
    return values


def _label_column(batch: Any, schema: InputSchema, first_row: int, name: str) -> NDArray[np.int64]:
    labels = np.full(batch.num_rows, UNLABELLED, np.int64)
    if "label" not in batch.schema.names:
        return labels
    known = {None: UNLABELLED, "": UNLABELLED} | {label: index for index, label in enumerate(schema.classes)}
    column = batch.column("label")
    # Text repeats; going over the few distinct values is quicker than over all the rows.
    encoded = column if hasattr(column, "dictionary") else column.dictionary_encode()
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    for index, label in enumerate(encoded.dictionary.to_pylist()):
        rows = np.flatnonzero(indices == index)
        if label not in known:
            if not rows.size:
                continue
            raise DataError(
                f"{name}: row {first_row + int(rows[0])}: column 'label': expected a class "
                f"({', '.join(schema.classes)}) or nothing, got {label[:40]!r}"
            )
        labels[rows] = known[label]
    return labels
