"""Pictures in a device's folder: which there are, in which order, and which label each has.

    device/3/0001.jpg          of class "3"
    device/unlabelled/0002.png
    device/0003.jpg            unlabelled as well

The order is that of the file names over all folders: names should grow with time. Agent, pre-training and
simulator all look through here, so a picture has the same label everywhere. What a valid picture is
protocol/image.py decides.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.errors import DataError
from protocol.image import SUFFIXES, decode
from protocol.input_schema import UNLABELLED_FOLDER, InputSchema
from protocol.recording import UNLABELLED


@dataclass(frozen=True)
class PictureFile:
    """One picture that is there; nothing is known yet of what is in it."""

    path: Path
    name: str
    """Relative to the device's folder, for messages."""
    label: int
    """Index into the schema's classes; -1 where unlabelled."""


def pictures_in(directory: Path, schema: InputSchema) -> tuple[list[PictureFile], list[DataError]]:
    """List a device's pictures in the order of time; one whose name starts with a full stop is passed over.

    Returns:
        The pictures, and an error for every folder of pictures that is no class.

    Raises:
        OSError: the folder cannot be read.
    """
    labels = {name: index for index, name in enumerate(schema.classes)} | {UNLABELLED_FOLDER: UNLABELLED}
    found = [PictureFile(path, path.name, UNLABELLED) for path in _pictures(directory)]
    errors = []
    for folder in sorted(path for path in directory.iterdir() if path.is_dir() and path.name[0] != "."):
        try:
            pictures = list(_pictures(folder))
        except OSError as error:
            errors.append(DataError(f"folder {folder.name!r}: not readable: {error.strerror}"))
            continue
        if folder.name in labels:
            label = labels[folder.name]
            found += [PictureFile(path, f"{folder.name}/{path.name}", label) for path in pictures]
        elif pictures:
            expected = ", ".join(schema.classes)
            errors.append(
                DataError(
                    f"folder {folder.name!r}: expected the name of a class ({expected}) or "
                    f"{UNLABELLED_FOLDER}; its pictures are left out"
                )
            )
    return sorted(found, key=lambda file: (file.path.name, file.name)), errors


def read_picture(file: PictureFile, schema: InputSchema) -> NDArray[np.float32]:
    """Read one picture, float32 [channels, height, width], 0 to 1.

    Raises:
        DataError: it cannot be read or is no picture; the message begins with its name.
    """
    try:
        with file.path.open("rb") as stream:
            return decode(stream, file.name, schema)
    except OSError as error:
        raise DataError(f"{file.name}: not readable: {error.strerror}") from None


def _pictures(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
