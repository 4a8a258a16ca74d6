"""`graftwork-firmware flash` and `verify device`: images onto media, and what is on them."""

import argparse
import contextlib
import hashlib
import json
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from firmware_tools import block_map as maps
from firmware_tools.errors import FirmwareError
from firmware_tools.flash import FAILED, GOOD, REFUSED, Result, flash
from firmware_tools.flash_progress import observe
from firmware_tools.ledger import Ledger
from firmware_tools.ledger_rules import READERS
from firmware_tools.media import check_distinct, check_target, find, list_media
from firmware_tools.read_back import read_back


@dataclass(frozen=True)
class _Job:
    """One medium to be written."""

    target: Path
    medium: str
    """Its serial; empty: it has none."""
    device: str | None
    """That it is for."""


def add_commands(commands: Any) -> None:
    """Add `flash` to the commands of `graftwork-firmware`."""
    text = "write an image to media, several at once, and read each back"
    command = commands.add_parser("flash", help=text, description=text)
    command.add_argument("image", type=Path, help="the image")
    command.add_argument(
        "targets", type=Path, nargs="+", metavar="TARGET", help="block devices, e.g. /dev/sdb"
    )
    command.add_argument("--bmap", type=Path, help="block map (default: IMAGE.bmap, else the image's holes)")
    command.add_argument("--large", action="store_true", help="also media larger than 128 GiB")
    command.add_argument("--internal", action="store_true", help="also disks inside the computer")
    command.add_argument("--file", action="store_true", help="also regular files, which must exist")
    command.add_argument("--ledger", type=Path, help="note media and image in this ledger of identities")
    command.add_argument(
        "--medium", action="append", default=[], metavar="SERIAL", help="of each target, in their order"
    )
    command.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="NAME",
        help="that each target is for, in their order",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=_flash)


def add_verify_commands(commands: Any) -> None:
    """Add `device` to the commands of `graftwork-firmware verify`."""
    text = "read a medium back and compare it with the image"
    command = commands.add_parser("device", help=text, description=text)
    command.add_argument("image", type=Path, help="the image")
    command.add_argument("target", type=Path, help="block device or file")
    command.add_argument("--bmap", type=Path, help="block map (default: IMAGE.bmap, else the image's holes)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=_verify)


def _verify(options: argparse.Namespace) -> None:
    found = read_back(options.image, maps.for_image(options.image, options.bmap), options.target)
    if options.json:
        print(json.dumps(found.as_json()))
    else:
        how = "past the cache" if found.past_cache else "after the cache was dropped"
        print(f"{options.target}: read {found.bytes_read} bytes {how}")
        for fault in found.faults:
            print(
                f"{fault.bytes} bytes differ between {fault.first_byte} and {fault.last_byte}: {fault.where}"
            )
    if not found.good:
        raise FirmwareError(
            f"{options.target} differs from {options.image} in {len(found.faults)} stretches: flash it "
            "again, or take another medium"
        )


def _flash(options: argparse.Namespace) -> None:
    check_distinct(options.targets, options.image)
    for name in ("medium", "device"):
        given = len(getattr(options, name))
        if given not in (0, len(options.targets)):
            raise FirmwareError(
                f"--{name}: expected one for each of {len(options.targets)} targets, got {given}"
            )
    if options.device and not options.ledger:
        raise FirmwareError("--device: expected --ledger with it, which is to know the device")
    block_map = maps.for_image(options.image, options.bmap)
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger(options.ledger)) if options.ledger else None
        jobs, refused = _check(options, block_map.image_bytes, ledger)
        stop = stack.enter_context(_stopping())
        results = _run(options.image, block_map, jobs, stop, ledger)
    results = sorted((*refused, *results), key=lambda result: options.targets.index(Path(result.target)))
    _show(results, options.json)
    bad = [result for result in results if result.verdict != GOOD]
    if bad:
        raise FirmwareError(f"{len(bad)} of {len(results)} media are not good")


def _check(
    options: argparse.Namespace, image_bytes: int, ledger: Ledger | None
) -> tuple[list[_Job], list[Result]]:
    """What is to be written, and what is refused."""
    media = list_media() if any(target.is_block_device() for target in options.targets) else []
    jobs: list[_Job] = []
    refused = []
    for number, target in enumerate(options.targets):
        medium = find(media, target)
        serial = options.medium[number] if options.medium else medium.serial if medium else ""
        job = _Job(target, serial, options.device[number] if options.device else None)
        try:
            check_target(
                target, medium, image_bytes, large=options.large, internal=options.internal, file=options.file
            )
            if ledger is not None:
                _check_ledger(job, jobs, ledger)
        except FirmwareError as error:
            refused.append(Result(str(target), REFUSED, str(error), serial))
        else:
            jobs.append(job)
    return jobs, refused


def _check_ledger(job: _Job, others: Sequence[_Job], ledger: Ledger) -> None:
    if not job.medium:
        raise FirmwareError(f"{job.target}: it has no serial for the ledger: give it one with --medium")
    for other in others:
        if other.medium == job.medium or (job.device and other.device == job.device):
            raise FirmwareError(
                f"{job.target}: has medium {job.medium} for {job.device or 'any device'}, as {other.target} "
                f"has: both go to one medium only. {READERS}"
            )
    ledger.check_flash(job.medium, job.device)


def _run(
    image: Path, block_map: maps.BlockMap, jobs: Sequence[_Job], stop: threading.Event, ledger: Ledger | None
) -> list[Result]:
    if not jobs:
        return []
    sha256 = _sha256(image, stop) if ledger is not None else ""
    targets = [job.target for job in jobs]
    with observe(targets, block_map.mapped_bytes) as observer:
        results = flash(image, block_map, targets, observer, stop)
    results = [replace(result, medium=job.medium) for job, result in zip(jobs, results, strict=True)]
    if ledger is None:
        return results
    return [_noted(ledger, job, result, sha256) for job, result in zip(jobs, results, strict=True)]


def _noted(ledger: Ledger, job: _Job, result: Result, sha256: str) -> Result:
    """The result, when the ledger knows of it."""
    if result.verdict == GOOD:
        try:
            ledger.note_flashed(job.medium, sha256, time.time(), job.device)
        except FirmwareError as error:  # somebody changed the ledger meanwhile
            return replace(result, verdict=FAILED, reason=f"it is good, but not in the ledger: {error}")
    return result


def _sha256(image: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    with image.open("rb") as file:
        while not stop.is_set() and (chunk := file.read(1 << 20)):
            digest.update(chunk)
    return digest.hexdigest()


def _show(results: Sequence[Result], as_json: bool) -> None:
    if as_json:
        print(json.dumps([result.as_json() for result in results]))
        return
    for result in results:
        text = f"{result.target}: {result.verdict}"
        if result.verdict == GOOD:
            text += f", {result.bytes_written / 1e6:.1f} MB written and read back in {result.seconds:.1f} s"
        print(text + (f": {result.reason}" if result.reason else ""))


@contextlib.contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set: media are left in a clear state."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
