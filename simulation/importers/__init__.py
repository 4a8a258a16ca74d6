"""Real data sets turned into fleet directories: one file per data set.

An importer knows what a device, a domain and a recording are in its data set; values stay as they are.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path

from protocol.errors import DataError
from simulation.importers import (
    fsdd_audio,
    gearbox_vibration,
    hydraulic_rig,
    meter_digits,
    skab_valve,
    smellnet_gas,
    sp_sw_har,
)

IMPORTERS: dict[str, Callable[[Path, Path], None]] = {
    "fsdd_audio": fsdd_audio.import_fleet,
    "gearbox_vibration": gearbox_vibration.import_fleet,
    "hydraulic_rig": hydraulic_rig.import_fleet,
    "meter_digits": meter_digits.import_fleet,
    "skab_valve": skab_valve.import_fleet,
    "smellnet_gas": smellnet_gas.import_fleet,
    "sp_sw_har": sp_sw_har.import_fleet,
}


def import_dataset(name: str, source: Path, target: Path) -> None:
    """Write the fleet directory of a data set.

    Args:
        name: a key of IMPORTERS.
        source: the data set's folder, or the folder that holds it under its name.
        target: the fleet directory; made where missing, and must be empty.

    Raises:
        DataError: the name is unknown, the data are missing or not as expected, or the target is in use.
    """
    if name not in IMPORTERS:
        raise DataError(f"data set {name!r}: expected one of {', '.join(sorted(IMPORTERS))}")
    folder = source / name if (source / name).is_dir() else source
    if not folder.is_dir():
        raise DataError(f"data set {name!r}: expected its folder at {source}, found none")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: expected a folder that is empty or does not exist")
    try:
        IMPORTERS[name](folder, target)
    except FileNotFoundError as error:
        raise DataError(f"data set {name!r}: expected the file {error.filename}, found none") from None
    except (KeyError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise DataError(f"data set {name!r}: {folder} does not hold the expected data: {error}") from error
