"""`graftwork-firmware device`: what runs on a device, by its units or by hand."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from firmware_tools.device import health, installing, updates
from firmware_tools.device.boot_control import boot_control
from firmware_tools.device.system import Device
from firmware_tools.errors import FirmwareError


def add_commands(actions: Any) -> None:
    """Add the actions to those of `device`."""
    gate = actions.add_parser(
        "health", help="check this system and mark its slot good; a trial that fails reboots"
    )
    gate.add_argument("--no-reboot", action="store_true", help="only say what is wrong")
    gate.set_defaults(command=_health)

    engine = actions.add_parser("try-engine", help="load what the agent trains with")
    engine.set_defaults(command=_try_engine)

    update = actions.add_parser("update", help="install a bundle into the other slot and reboot into it")
    update.add_argument("bundle", type=Path, help="file, e.g. on a USB stick")
    update.add_argument("--no-reboot", action="store_true", help="leave the reboot to others")
    update.add_argument("--allow-downgrade", action="store_true", help="take an older version than runs")
    update.set_defaults(command=_update)

    fetch = actions.add_parser("fetch", help="download the newest bundle that an index of releases offers")
    fetch.add_argument(
        "--from", dest="source", metavar="URL|FOLDER", help="of the index (default: as update.toml says)"
    )
    fetch.add_argument("--again", action="store_true", help="also a version that was rolled back here")
    fetch.add_argument("--install", action="store_true", help="install it, and reboot into it")
    fetch.add_argument("--no-reboot", action="store_true", help="leave the reboot to others")
    fetch.add_argument(
        "--unattended", action="store_true", help="install only if update.toml says automatic = true"
    )
    fetch.set_defaults(command=_fetch)

    status = actions.add_parser("status", help="show version, slots and the last update")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(command=_status)


def _health(options: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = Device()
    trial = health.on_trial(device)
    wrong = health.pass_gate(device)
    if wrong and trial and not options.no_reboot:
        device.run(["systemctl", "reboot"])
    if wrong:
        raise FirmwareError(f"not healthy: {wrong}")


def _try_engine(_options: argparse.Namespace) -> None:
    import numpy as np  # noqa: PLC0415 - only this action needs them
    import onnxruntime  # noqa: PLC0415

    print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}")


def _update(options: argparse.Namespace) -> None:
    _install(Device(), options.bundle, options, allow_downgrade=options.allow_downgrade)


def _fetch(options: argparse.Namespace) -> None:
    # What follows an index takes 8 MB of memory: the health gate does without.
    from firmware_tools.device import fetching  # noqa: PLC0415

    device = Device()
    settings = fetching.load_settings(device)
    source = options.source or (settings.index if settings else "")
    if not source:
        names = " or ".join(f"/{name}" for name in fetching.SETTINGS)
        raise FirmwareError(f'expected --from URL|FOLDER, or index = "..." in {names}')
    found = fetching.fetch(device, source, fetching.clock(), again=options.again)
    print(found.text)
    unattended = options.unattended and settings is not None and settings.automatic
    if found.bundle is not None and (options.install or unattended):
        _install(device, found.bundle, options)


def _install(
    device: Device, bundle: Path, options: argparse.Namespace, *, allow_downgrade: bool = False
) -> None:
    state = installing.install(
        device, bundle, lambda path: installing.bundle_version(device, path), allow_downgrade=allow_downgrade
    )
    print(f"installed {state.version} into slot {state.slot}; it counts once it has booted and is healthy")
    if not options.no_reboot:
        device.run(boot_control(device).restart())


def _status(options: argparse.Namespace) -> None:
    device = Device()
    control, last = boot_control(device), updates.load(device.state_file)
    facts = {
        **device.release(),
        "slot": control.slot(),
        **control.facts(),
        "update": last.text if last else None,
        "last_failure": health.last_failure(device) or None,
    }
    if options.json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):14} {'-' if value is None else value}")
