"""Pictures of an image fleet on disk: read from a fleet directory, copied onto a simulated device.

Files are copied as they are: what a device decodes is what the fleet directory holds.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import DataError
from protocol.fleet import Device, FleetDescription
from protocol.image import SUFFIXES
from protocol.input_schema import UNLABELLED_FOLDER, InputSchema
from runtime.pictures import PictureFile, pictures_in, read_picture


@dataclass(frozen=True)
class DevicePictures:
    """What a device's folder held."""

    device: Device
    pictures: tuple[PictureFile, ...]
    """The good ones, in the order of time."""
    errors: tuple[DataError, ...]
    """One for every bad picture or folder, and one for the device when it has no good picture."""


def read_device_pictures(path: Path, fleet: FleetDescription, device: Device) -> DevicePictures:
    """List the pictures of one device of the fleet directory `path`; each is decoded once, to find bad ones.

    Raises nothing for bad data: every error is in the result, beside the pictures that are good.
    """
    folder = path / device.id
    good: list[PictureFile] = []
    errors: list[DataError] = []
    found: list[PictureFile] = []
    if folder.is_dir():
        found, folders = pictures_in(folder, fleet.schema)
        errors += folders
    for file in found:
        try:
            read_picture(file, fleet.schema)
            good.append(file)
        except DataError as error:
            errors.append(error)
    if not good:
        reason = (
            "none of them good" if found else "found none" if folder.is_dir() else "the folder is missing"
        )
        errors.append(DataError(f"expected pictures ({', '.join(SUFFIXES)}) in {folder}, {reason}"))
    named = tuple(DataError(f"device {device.id!r}: {error}") for error in errors)
    return DevicePictures(device, tuple(good), named)


def copy_pictures(pictures: Sequence[PictureFile], spool: Path, schema: InputSchema) -> None:
    """Copy pictures into the folders of their labels.

    Two pictures of one name that come into one folder keep their order: the second is renamed.
    """
    taken: set[str] = set()
    for file in pictures:
        folder = UNLABELLED_FOLDER if file.label < 0 else schema.classes[file.label]
        stem, suffix, name, number = file.path.stem, file.path.suffix, file.path.name, 1
        while f"{folder}/{name}" in taken:
            number += 1
            name = f"{stem}.{number}{suffix}"
        taken.add(f"{folder}/{name}")
        (spool / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy2(file.path, spool / folder / name)
