"""Checks that records make of their fields when they are built; each names the field and its range."""

import math


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a value that is not finite or not from `low` to `high`.

    Raises:
        ValueError: names the field and the range.
    """
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name}: expected {low} to {high}, got {value}")


def check_hash(name: str, value: bytes, *, empty: bool = False) -> None:
    """Refuse what is not 32 bytes; `empty` allows none as well.

    Raises:
        ValueError: names the field and the length.
    """
    if len(value) != 32 and not (empty and not value):
        raise ValueError(f"{name}: expected 32 bytes, got {len(value)}")


def check_times(issued: float, expires: float) -> None:
    """Refuse moments that no clock shows, in Unix seconds.

    Raises:
        ValueError: names the field and the range.
    """
    check_range("issued", issued, 0, 1e12)
    check_range("expires", expires, 0, 1e12)
