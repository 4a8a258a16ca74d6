"""Versions of images: compared as numbers, as devices do."""

from firmware_tools.build.spec import check_version


def numbers(version: str) -> tuple[int, ...]:
    """A version in an order: 1.10.0 comes after 1.9.0.

    Raises:
        FirmwareError: it is none.
    """
    return tuple(map(int, check_version(version).split(".")))


def highest(*versions: str) -> str:
    """The highest of those that are not empty; empty: all are."""
    return max((version for version in versions if version), key=numbers, default="")
