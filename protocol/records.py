"""Frozen dataclasses from and to plain mappings, every type checked.

The one door between untyped data (decoded CBOR, parsed TOML) and the typed records of the program.
Two spellings of the same record:

* named: field names as keys, for TOML files; unknown keys are errors, defaults fill what is absent;
* numbered: 1, 2, 3 ... in the order of the fields, for the wire. Fields are only ever appended, so a
  number keeps its meaning for ever; unknown numbers are skipped, so an older reader takes newer messages.

Supported field types: bool, int, float, str, bytes, tuple[X, ...], dict[str, X], X | None, other records.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

from protocol.errors import SchemaError

Record = TypeVar("Record")
_KEY_SHOWN = 80
"""Characters of a table's key in an error's text; a peer's may be megabytes."""


@functools.cache
def _hints(record: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(record)


def from_named(record: type[Record], mapping: Mapping[str, Any], path: str = "") -> Record:
    """Build a record from a mapping with field names as keys.

    Args:
        record: the dataclass to build.
        mapping: parsed TOML or alike.
        path: where the mapping stands in its document, for error messages.

    Raises:
        SchemaError: a key is unknown or missing, or a value has another type than the field.
    """
    fields = {field.name: field for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    unknown = sorted(set(mapping) - set(fields))
    if unknown:
        raise SchemaError(
            f"{_join(path, unknown[0])}: unknown key; expected one of {', '.join(sorted(fields))}"
        )
    return _build(record, {name: mapping[name] for name in mapping}, path, from_named)


def from_numbered(record: type[Record], mapping: Mapping[Any, Any], path: str = "") -> Record:
    """Build a record from a mapping with field numbers (from 1) as keys; unknown numbers are skipped.

    Raises:
        SchemaError: a required field is missing, or a value has another type than the field.
    """
    if not isinstance(mapping, Mapping):
        raise SchemaError(f"{path or record.__name__}: expected a map, got {type(mapping).__name__}")
    names = [field.name for field in dataclasses.fields(record)]  # type: ignore[arg-type]
    values = {
        names[number - 1]: value
        for number, value in mapping.items()
        if type(number) is int and 1 <= number <= len(names)
    }
    return _build(record, values, path or record.__name__, from_numbered)


def to_numbered(record: Any) -> dict[int, Any]:
    """Turn a record into a map with field numbers as keys; fields that are None are left out."""
    return {
        number: _plain(getattr(record, field.name))
        for number, field in enumerate(dataclasses.fields(record), start=1)
        if getattr(record, field.name) is not None
    }


def _build(record: type[Record], values: Mapping[str, Any], path: str, nested: Any) -> Record:
    hints = _hints(typing.cast("Hashable", record))
    arguments = {}
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        where = _join(path, field.name)
        if field.name in values:
            arguments[field.name] = _checked(hints[field.name], values[field.name], where, nested)
        elif types.NoneType in typing.get_args(hints[field.name]):
            if field.default is dataclasses.MISSING:
                arguments[field.name] = None
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SchemaError(f"{where}: missing; expected {_describe(hints[field.name])}")
    try:
        return record(**arguments)
    except SchemaError:
        raise
    except (ValueError, OverflowError) as error:  # __post_init__ of a record names the field and the bound
        raise SchemaError(f"{path or record.__name__}: {error}") from error


def _checked(hint: Any, value: Any, path: str, nested: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        [hint] = [argument for argument in arguments if argument is not types.NoneType]
        return _checked(hint, value, path, nested)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_checked(arguments[0], item, f"{path}[{i}]", nested) for i, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise SchemaError(f"{path}: expected text keys")
        return {
            key: _checked(arguments[1], item, _join(path, key[:_KEY_SHOWN]), nested)
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return nested(hint, value, path)
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise SchemaError(f"{path}: expected a number below 1e308") from None
    if type(value) is not hint:
        raise SchemaError(f"{path}: expected {_describe(hint)}, got {type(value).__name__}")
    return value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_numbered(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return f"a list of {_describe(arguments[0])}"
    if origin is dict:
        return f"a table of {_describe(arguments[1])}"
    if origin in (types.UnionType, typing.Union):
        return _describe(next(a for a in arguments if a is not types.NoneType))
    names = {int: "an integer", float: "a number", str: "text", bytes: "bytes", bool: "true or false"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
