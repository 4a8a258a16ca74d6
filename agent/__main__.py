"""graftwork-agent: run the agent, enrol, look at its state, check its configuration, print its key."""

import argparse
import contextlib
import datetime as dt
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agent.config import STORE_FILE, AgentConfig, load
from agent.errors import AgentError
from agent.identity import Identity
from agent.installation import Installation
from agent.sources import Source, recordings_in
from agent.store import Store
from protocol.errors import ProtocolError
from protocol.trust import first_root
from runtime import memory
from runtime.command_line import make_parser
from runtime.errors import SetupError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    try:
        status: int = options.command(options, load(options.config))
    except (AgentError, SetupError, ProtocolError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser, add = make_parser("graftwork-agent", __doc__, "agent.toml")
    add("run", _run, "take part in the federation until stopped")
    status = add("status", _status, "show what the device holds: package, release, gate, outbox")
    status.add_argument("--json", action="store_true", help="print JSON")
    add("check-config", _check_config, "check configuration, keys, source folder and recordings")
    enrol = add("enrol", _enrol, "get a certificate, where there is none that is good; `run` does so, too")
    enrol.add_argument(
        "--new-keys", action="store_true", help="make new keys first; the server needs a token with --replace"
    )
    add("key", _key, "print the device's public key, made on first use, for `graftwork-server devices add`")
    return parser


def _run(_options: argparse.Namespace, config: AgentConfig) -> int:
    memory.use_one_heap()  # before the libraries take theirs
    from agent import daemon  # noqa: PLC0415 - the other commands need no engine

    daemon.run(config)
    return 0


def _enrol(options: argparse.Namespace, config: AgentConfig) -> int:
    if not config.enrolment.port:
        raise AgentError("expected a table [enrolment] with the port of the broker's listener for newcomers")
    from agent import daemon  # noqa: PLC0415

    if options.new_keys:
        Identity(Path(config.identity_directory), config.device).forget()
    if not daemon.enrol(config):
        return 1
    print(f"certificate    {_certificate(config)}")
    return 0


def _certificate(config: AgentConfig) -> str:
    validity = Identity(Path(config.identity_directory), config.device).validity()
    if validity is None:
        return "none yet" if config.enrolment.port else "none"
    until = dt.datetime.fromtimestamp(validity.not_after, dt.timezone.utc)
    return f"good until {until:%Y-%m-%d}"


def _status(options: argparse.Namespace, config: AgentConfig) -> int:
    path = Path(config.state_directory) / STORE_FILE
    if not path.exists():
        raise AgentError(f"{path}: the agent has not run yet")
    with contextlib.closing(Store(path)) as store:
        state, outbox = store.state(), store.outbox()
        facts = {
            "device": config.device,
            "federation": config.federation,
            "package": state.package.hex() or None,
            "package_version": state.version or None,
            "release": state.release if state.release >= 0 else None,
            "uses": store.text("choice") or None,
            "gain": float(store.text("gain") or 0),
            "held_out_windows": store.number("holdout_windows", 0),
            "training_windows": store.number("windows", 0),
            "newest_round_answered": state.answered or None,
            "updates_without_receipt": len(outbox),
            "training_progress": float(store.text("progress") or 0) or None,
            "training_paused": store.text("paused") or None,
            "schedule": store.text("plan") or None,
            "certificate": _certificate(config),
        }
    if options.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(f"{name.replace('_', ' '):26} {'-' if value is None else value}")
    return 0


def _check_config(_options: argparse.Namespace, config: AgentConfig) -> int:
    key = Identity(Path(config.identity_directory), config.device).key()
    directory = Path(config.source.directory)
    if not directory.is_dir():
        raise AgentError(f"source.directory: there is no folder {directory}")
    print(f"configuration  good: device {config.device} of federation {config.federation}")
    print(f"key            {key.public.raw.hex()}")
    print(f"broker         {config.broker.host}:{config.broker.port}")
    if config.root:
        root = first_root(Path(config.root).read_bytes())
        if root.federation != config.federation:
            raise AgentError(f"{config.root}: expected a root of {config.federation}, got {root.federation}")
        print(f"root           version {root.version}, {len(root.server_keys)} key of the server")
    print(f"certificate    {_certificate(config)}")
    return _check_recordings(config)


def _check_recordings(config: AgentConfig) -> int:
    """Read every recording once, when a package that says what they hold is installed."""
    directory, state = Path(config.source.directory), Path(config.state_directory)
    print(f"recordings     {len(recordings_in(directory))} in {directory}")
    package = b""
    if (state / STORE_FILE).exists():
        with contextlib.closing(Store(state / STORE_FILE)) as store:
            package = store.state().package
    if not package:
        print("               not read: no package is installed that says what they hold")
        return 0
    manifest = Installation(state / "packages", tuple).manifest(package)
    schema = manifest.schema
    # A replay uncovers its recordings with time; all of them are checked now.
    source = Source(replace(config.source, kind="spool"), lambda: 0.0)
    source.accept(manifest)
    logging.disable(logging.ERROR)  # each problem is printed once, below
    try:
        listings = list(source.list(schema))
        for listing in listings:
            source.read(listing.path, schema)
    finally:
        logging.disable(logging.NOTSET)
    if schema.of_images:
        print(f"pictures       {len(listings)} in {directory}")
    for problem in source.problems.values():
        print(f"error: {problem}", file=sys.stderr)
    return 1 if source.problems else 0


def _key(_options: argparse.Namespace, config: AgentConfig) -> int:
    print(Identity(Path(config.identity_directory), config.device).key().public.raw.hex())
    return 0


if __name__ == "__main__":
    sys.exit(main())
