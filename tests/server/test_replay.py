"""Releases recomputed from the journal: the same bits, and every kind of tampering found by name."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protocol.messages import Round
from protocol.package import unpack
from protocol.release_coding import adapter_sha256, add_difference
from server.__main__ import main
from server.errors import ServerError
from server.replay import DIFFERENT, PRUNED, SAME, Replay, replay, replay_all, replay_round
from tests.builders import private_key, tiny_package
from tests.server.databases import Database
from tests.server.federation import KEYS, NAMES, Federation, update_of

A, B, C = NAMES
ROUNDS = 3


@pytest.fixture
def federation(tmp_path: Path, database: Database) -> Iterator[Federation]:
    """Three rounds are done: releases 1 to 3 carry over what the ones before them left."""
    federation = Federation(tmp_path / "data", database=database)
    federation.push()
    federation.register()
    federation.coordinator.tick()
    run_rounds(federation)
    yield federation
    federation.close()


def run_rounds(federation: Federation) -> None:
    for number in range(1, ROUNDS + 1):
        current = federation.open_round()
        for index, name in enumerate(NAMES):
            federation.deliver(name, update_of(name, current, 0.11 * (index + number), weight=index + 3))
        assert federation.release().number == number


ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def tamper(federation: Federation, statement: str, *values: object) -> None:
    """Change the database (SQLite) behind the server's back."""
    database = sqlite3.connect(Path(federation.config.data_directory) / "server.sqlite")
    changed = database.execute(statement, values).rowcount
    database.commit()
    database.close()
    assert changed


def replayed(federation: Federation) -> dict[int, Replay]:
    return {result.release: result for result in replay_all(federation.store, "pumps")}


def test_every_release_of_the_journal_comes_out_with_the_same_bits(federation: Federation) -> None:
    results = replayed(federation)
    assert sorted(results) == [0, 1, 2, 3]
    assert {result.verdict for result in results.values()} == {SAME}
    assert all(result.replayed == result.sha256 for result in results.values())
    assert [results[number].updates for number in range(4)] == [0, 3, 3, 3]
    assert len({result.sha256 for result in results.values()}) == 4
    newest = federation.store.newest_release()
    assert newest is not None
    assert np.asarray(newest.residual).any()  # the rounds are not so simple that nothing is carried over


def test_a_replay_does_not_depend_on_the_configuration_of_today(federation: Federation) -> None:
    federation.store.remove_device(A)
    federation.store.remove_device(B)
    federation.store.register_device(B, private_key(77).public, 5.0)
    changed = replace(federation.config.training, clipping_bound=0.01)
    federation.config = replace(federation.config, training=changed, release_step_ratio=9.0)
    federation.restart()
    assert {result.verdict for result in replayed(federation).values()} == {SAME}


def test_a_replay_while_a_round_is_open_sees_the_releases_before_it(federation: Federation) -> None:
    current = federation.open_round()
    federation.deliver(A, update_of(A, current))
    assert {result.verdict for result in replayed(federation).values()} == {SAME}
    federation.deliver(B, update_of(B, current))
    federation.deliver(C, update_of(C, current))
    assert replay(federation.store, 4, "pumps").verdict == SAME


def test_releases_of_an_earlier_package_are_recomputed_with_it(federation: Federation) -> None:
    federation.push(0.5, filler=3)
    federation.coordinator.tick()
    results = replayed(federation)
    assert [results[number].verdict for number in (0, 1, 4)] == [SAME] * 3
    assert results[4].round is None


@ON_SQLITE
@pytest.mark.parametrize(
    ("statement", "values", "release", "reason"),
    [
        (
            "UPDATE updates SET envelope = zeroblob(99) WHERE device = ? AND round = 2",
            (A,),
            2,
            f"update of {A}",
        ),
        (
            "UPDATE updates SET public_key = ? WHERE device = ? AND round = 2",
            (KEYS[B].public.raw, A),
            2,
            f"update of {A}: the signature does not match",
        ),
        (
            "DELETE FROM updates WHERE device = ? AND round = 2",
            (A,),
            2,
            "updates: expected 3, the journal gives 2",
        ),
        (
            "UPDATE updates SET device = 'pump-9' WHERE device = ? AND round = 2",
            (A,),
            2,
            "update of pump-9",
        ),
        ("UPDATE releases SET adapter = zeroblob(24) WHERE number = 2", (), 2, "does not have the hash"),
        ("UPDATE releases SET adapter = zeroblob(3) WHERE number = 2", (), 2, "release 2 is damaged"),
        (
            "UPDATE releases SET adapter = zeroblob(8) WHERE number = 1",
            (),
            2,
            "release 1: expected 6 parameters",
        ),
        (
            "UPDATE releases SET sha256 = zeroblob(32) WHERE number = 2",
            (),
            2,
            "adapter: expected 0000000000000000",
        ),
        ("UPDATE releases SET residual = NULL WHERE number = 2", (), 2, "residual: not what"),
        ("UPDATE releases SET residual = NULL WHERE number = 1", (), 2, "adapter: expected"),
        ("UPDATE releases SET residual = x'00' WHERE number = 2", (), 2, "release 2 is damaged"),
        ("UPDATE releases SET body = x'00' WHERE number = 2", (), 2, "difference: not the one"),
        ("UPDATE releases SET steps = NULL WHERE number = 2", (), 2, "adapter: expected"),
        (
            "UPDATE releases SET weight = 13 WHERE number = 2",
            (),
            2,
            "weight: expected 13, the journal gives 12",
        ),
        ("UPDATE releases SET parent = zeroblob(32) WHERE number = 2", (), 2, "parent: expected"),
        ("UPDATE rounds SET release_step_ratio = 3.0 WHERE number = 2", (), 2, "difference: not the one"),
        ("UPDATE rounds SET training = '{\"colour\": 1}' WHERE number = 2", (), 2, "colour: unknown key"),
        ("UPDATE rounds SET cohort = '[\"pump-1\"]' WHERE number = 2", (), 2, "not in the cohort"),
        ("UPDATE rounds SET base_release = 0 WHERE number = 2", (), 2, "expected base"),
        ("DELETE FROM rounds WHERE number = 2", (), 2, "round 2 is gone"),
        ("UPDATE releases SET sha256 = zeroblob(32) WHERE number = 0", (), 0, "not the initial adapter"),
    ],
)
def test_what_was_tampered_with_is_named(
    federation: Federation, statement: str, values: tuple[object, ...], release: int, reason: str
) -> None:
    tamper(federation, statement, *values)
    result = replayed(federation)[release]
    assert result.verdict == DIFFERENT
    assert reason in result.reason


@ON_SQLITE
def test_an_update_that_was_signed_anew_changes_the_hash(federation: Federation) -> None:
    """Whoever holds the database and a device's key can forge a row that verifies, but not the release."""
    [current] = [one for one in federation.everything(Round, "round") if one.number == 2]
    forged = update_of(A, current, 0.9, weight=3)
    tamper(
        federation,
        "UPDATE updates SET envelope = ?, sha256 = ? WHERE device = ? AND round = 2",
        *(forged, hashlib.sha256(forged).digest(), A),
    )
    result = replayed(federation)[2]
    assert (result.verdict, result.updates) == (DIFFERENT, 3)
    assert result.replayed != result.sha256
    assert "update of" not in result.reason


@ON_SQLITE
def test_a_pruned_journal_is_no_difference(federation: Federation) -> None:
    tamper(federation, "DELETE FROM updates WHERE round = 1")
    results = replayed(federation)
    assert (results[1].verdict, results[1].replayed) == (PRUNED, b"")
    assert results[1].reason == "the journal holds none of its 3 updates any more"
    assert [results[number].verdict for number in (0, 2, 3)] == [SAME] * 3


def test_a_package_that_is_gone_or_changed_is_named(federation: Federation) -> None:
    [path] = (Path(federation.config.data_directory) / "packages").glob("*.zip")
    path.write_bytes(tiny_package(filler=5))
    assert "changed on disk" in replay(federation.store, 1, "pumps").reason
    path.unlink()
    assert "cannot be read" in replay(federation.store, 1, "pumps").reason


def test_updates_of_another_federation_do_not_verify(federation: Federation) -> None:
    assert "update of pump-1" in replay(federation.store, 1, "fans").reason


def test_an_unknown_release_is_an_error(federation: Federation) -> None:
    with pytest.raises(ServerError, match="there is no release 9"):
        replay(federation.store, 9, "pumps")


def test_a_release_from_before_differences_is_the_base_and_the_whole_mean(federation: Federation) -> None:
    """As servers of schema version 1 made them."""
    store = federation.store
    base, made, record = store.release(0), store.release(1), store.round_record(1)
    assert base is not None
    assert made is not None
    assert record is not None
    assert made.difference is not None
    manifest = unpack(tiny_package(), None).manifest
    # Without a residual before it, difference and residual of the release together are the mean.
    mean = (
        np.rint((made.adapter.astype(np.float64) - base.adapter) * 2.0**30).astype(np.int64) + made.residual
    )
    adapter = add_difference(base.adapter, mean)
    old = replace(made, adapter=adapter, sha256=adapter_sha256(adapter), difference=None, residual=0)
    result = replay_round(
        old, base, record, store.journalled_updates(1), lambda _: None, manifest=manifest, federation="pumps"
    )
    assert (result.verdict, result.reason) == (SAME, "")


Type = Callable[..., tuple[int, str]]


@pytest.fixture
def command(federation: Federation, capsys: pytest.CaptureFixture[str]) -> Type:
    """Types `graftwork-server replay ...` while the server runs."""
    tmp_path = Path(federation.config.data_directory).parent
    text = f'federation = "pumps"\ndata_directory = "data"\ndatabase = "{federation.config.database}"\n'
    (tmp_path / "server.toml").write_text(text, "utf-8")

    def run(*arguments: str) -> tuple[int, str]:
        status = main(["--config", str(tmp_path / "server.toml"), "replay", *arguments])
        out, errors = capsys.readouterr()
        return status, out + errors

    return run


def test_the_command_says_same_and_ends_well(federation: Federation, command: Type) -> None:
    status, out = command("2", "--json")
    [row] = json.loads(out)
    newest = federation.store.release(2)
    assert newest is not None
    assert (status, row["verdict"], row["replayed"]) == (0, "same", newest.sha256.hex())
    federation.close()  # and while it does not run
    assert command("all")[0] == 0


@ON_SQLITE
def test_the_command_ends_badly_where_anything_differs(federation: Federation, command: Type) -> None:
    tamper(federation, "UPDATE updates SET envelope = zeroblob(9) WHERE device = ? AND round = 2", B)
    status, out = command("all", "--json")
    rows = {row["release"]: row for row in json.loads(out)}
    assert (status, rows[2]["verdict"], rows[3]["verdict"]) == (1, "different", "same")
    assert "update of pump-2" in rows[2]["reason"]
    assert command("2")[0] == 1
    assert command("3")[0] == 0


@ON_SQLITE
def test_a_pruned_release_passes_among_all_and_fails_alone(federation: Federation, command: Type) -> None:
    tamper(federation, "DELETE FROM updates WHERE round = 1")
    status, out = command("all")
    assert (status, "pruned" in out) == (0, True)
    status, out = command("1")
    assert (status, "pruned" in out) == (1, True)


def test_a_wrong_release_is_one_line(command: Type) -> None:
    assert command("9") == (1, "error: there is no release 9\n")
    assert command("newest") == (1, "error: expected the number of a release, or all, got 'newest'\n")
