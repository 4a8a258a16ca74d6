"""graftwork-server: run the server, push packages, look at devices, rounds and releases."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from protocol.errors import ProtocolError
from runtime.command_line import make_parser
from runtime.errors import SetupError
from server import authority_commands, daemon, device_commands, release_commands, root_commands
from server import replay as replaying
from server.config import ServerConfig, load
from server.database import reason
from server.errors import ServerError
from server.relatedness import drawing
from server.relatedness.from_journal import of_journal
from server.relatedness.groups import suggest
from server.table import open_store, show


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    try:
        # Holders of root keys have no server.
        config = None if getattr(options, "offline", False) else load(options.config)
        status: int = options.command(options, config)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except (ServerError, SetupError, ProtocolError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except SQLAlchemyError as error:
        print(f"error: the database failed: {reason(error)}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser, add = make_parser("graftwork-server", __doc__, "server.toml")
    add("run", _run, "serve the federation until stopped")
    key = add("key", root_commands.run_key, "print the server's public key, or make new keys")
    root_commands.add_key_options(key)
    root_commands.add_root_commands(
        add("root", root_commands.run_root, "make, sign and install roots of trust")
    )
    release_commands.add_commands(add)
    devices = add("devices", device_commands.run, "list devices, let them in, and revoke them")
    rounds = add("rounds", _rounds, "list rounds, newest first")
    releases = add("releases", _releases, "list releases, newest first")
    withdrawn = add("withdrawals", _withdrawals, "list releases that were withdrawn, with the evidence")
    replay = add("replay", _replay, "recompute releases from the journal and compare them")
    replay.add_argument("release", help="number of a release, or: all")
    refusals = add("refusals", _refusals, "list messages that were refused, newest first")
    related = add("relatedness", _relatedness, "show which devices learn alike, as matrix, tree and groups")
    related.add_argument("--rounds", type=int, default=10, help="rounds to look back (default: 10)")
    related.add_argument("--plot", type=Path, metavar="FILE", help="write a picture, PNG by its name")
    authority_commands.add_commands(add)
    for command in (devices, rounds, releases, withdrawn, replay, refusals, related):
        command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    device_commands.add_commands(devices)
    return parser


def _run(_options: argparse.Namespace, config: ServerConfig) -> int:
    daemon.run(config)
    return 0


def _rounds(options: argparse.Namespace, config: ServerConfig) -> int:
    with open_store(config) as store:
        rows = store.rounds()
    for row in rows:
        row["cohort"] = len(row["cohort"])
        row["outcome"] = row["outcome"] or "open"
    show(options, rows, ["number", "base_release", "cohort", "counted", "opened_at", "closed_at", "outcome"])
    return 0


def _releases(options: argparse.Namespace, config: ServerConfig) -> int:
    with open_store(config) as store:
        rows = store.releases()
        withdrawn = {row["release"]: row for row in store.withdrawals()}
    columns = ["number", "round", "package_version", "updates", "weight", "domains", "created_at", "metrics"]
    columns += ["sha256"]
    for row in rows:
        found = withdrawn.get(row["number"])
        row["withdrawn_by"] = found["replacement"] if found else None
        row["reason"] = found["reason"] if found else None
    if options.json:
        columns += ["withdraws", "reason"]
    # Rare: a table without any has no column for them, and the reasons are too long for one.
    show(options, rows, [*columns, "withdrawn_by"] if withdrawn or options.json else columns)
    if not options.json:
        for row in rows:
            if row["reason"]:
                print(f"release {row['number']} was withdrawn: {row['reason']}")
    return 0


def _withdrawals(options: argparse.Namespace, config: ServerConfig) -> int:
    with open_store(config) as store:
        rows = store.withdrawals()
    columns = ["release", "replacement", "withdrawn_at", "reason"]
    show(options, rows, [*columns, "evidence"] if options.json else columns)
    return 0


def _replay(options: argparse.Namespace, config: ServerConfig) -> int:
    if options.release != "all" and not options.release.isdecimal():
        raise ServerError(f"expected the number of a release, or all, got {options.release!r}")
    with open_store(config) as store:
        if options.release == "all":
            replays = list(replaying.replay_all(store, config.federation))
        else:
            replays = [replaying.replay(store, int(options.release), config.federation)]
    columns = ["release", "round", "verdict", "updates", "sha256", "replayed", "reason"]
    show(options, [replaying.as_row(replayed) for replayed in replays], columns)
    # Of all releases, those are judged whose updates are still there; one that is asked for must be there.
    passed = {replaying.SAME, replaying.PRUNED} if options.release == "all" else {replaying.SAME}
    return 0 if all(replayed.verdict in passed for replayed in replays) else 1


def _refusals(options: argparse.Namespace, config: ServerConfig) -> int:
    with open_store(config) as store:
        rows = store.refusals()
    show(options, rows, ["received_at", "device", "reason"])
    return 0


def _relatedness(options: argparse.Namespace, config: ServerConfig) -> int:
    if options.rounds < 1:
        raise ServerError(f"--rounds: expected 1 or more, got {options.rounds}")
    with open_store(config) as store:
        found = of_journal(store, config.federation, options.rounds)
    if not found.devices:
        raise ServerError("the journal holds no round with two updates or more of the package that runs")
    groups = suggest(found)
    if options.plot:
        drawing.plot(options.plot, found, groups)
    if options.json:
        print(json.dumps(drawing.as_mapping(found, groups)))
        return 0
    console = Console()
    rounds = ", ".join(map(str, found.rounds))
    console.print(
        f"cosine of the updates of rounds {rounds}, beyond what all devices have in common", highlight=False
    )
    too_wide = (
        f"the matrix of {len(found.devices)} devices is too wide for this terminal: see --plot or --json"
    )
    console.print(drawing.table_of(found, console.width) or too_wide, highlight=False)
    console.print(drawing.tree_of(found, groups), markup=False, highlight=False)
    console.print(drawing.summary_of(groups), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
