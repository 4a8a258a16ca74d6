"""Sources: a folder as it fills, a replay as time passes, and recordings that cannot be read."""

import logging
from pathlib import Path

import pytest

from agent.config import SourceConfig
from agent.sources import Source
from tests.builders import LENGTH, SCHEMA, Clock, write_recording


def source(directory: Path, clock: Clock | None = None, **changes: object) -> Source:
    return Source(SourceConfig(str(directory), **changes), clock or Clock())  # type: ignore[arg-type]


def names(source: Source) -> list[str]:
    return [listing.path.name for listing in source.list(SCHEMA)]


def test_recordings_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.csv"):
        write_recording(tmp_path / name, [("low", 1.0)])
    spool = source(tmp_path)
    assert names(spool) == ["a.csv", "b.csv", "c.csv"]
    write_recording(tmp_path / "aa.csv", [("low", 1.0)])
    assert names(spool) == ["a.csv", "aa.csv", "b.csv", "c.csv"]


def test_what_is_no_finished_recording_is_ignored(tmp_path: Path) -> None:
    write_recording(tmp_path / "a.csv", [("low", 1.0)])
    write_recording(tmp_path / ".b.csv", [("low", 1.0)])
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.csv").mkdir()
    assert names(source(tmp_path)) == ["a.csv"]


def test_the_key_changes_with_the_file(tmp_path: Path) -> None:
    write_recording(tmp_path / "a.csv", [("low", 1.0)])
    spool = source(tmp_path)
    [before] = spool.list(SCHEMA)
    assert next(iter(spool.list(SCHEMA))) == before
    write_recording(tmp_path / "a.csv", [("low", 1.0), ("high", 2.0)])
    [after] = spool.list(SCHEMA)
    assert after.key != before.key


def test_a_bad_recording_is_reported_once_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "a.csv"
    bad.write_text("x,label\n1.0,low\noops,low\n")
    good = write_recording(tmp_path / "b.csv", [("low", 1.0)])
    spool = source(tmp_path)
    with caplog.at_level(logging.ERROR, "agent.sources"):
        for _ in range(3):
            assert spool.read(bad, SCHEMA) is None
            assert spool.read(good, SCHEMA) is not None
    assert len(caplog.records) == 1
    assert list(spool.problems) == ["a.csv"]
    assert "a.csv: line 3: column 'x': expected a finite number, got 'oops'" in spool.problems["a.csv"]


def test_a_mended_recording_is_no_problem_any_more(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("y\n1\n")
    spool = source(tmp_path)
    assert spool.read(path, SCHEMA) is None
    write_recording(path, [("low", 1.0)])
    assert spool.read(path, SCHEMA) is not None
    assert spool.problems == {}


def test_a_recording_that_vanished_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    spool = source(tmp_path)
    assert spool.read(tmp_path / "gone.csv", SCHEMA) is None
    assert "gone.csv" in spool.problems


def test_a_folder_that_is_away_is_reported_until_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    away = source(folder)
    assert names(away) == []
    assert "there is no folder" in away.problems["source"]
    folder.mkdir()
    write_recording(folder / "a.csv", [("low", 1.0)])
    assert names(away) == ["a.csv"]
    assert not away.problems


def test_a_replay_uncovers_rows_as_time_passes(tmp_path: Path) -> None:
    """Ten rows a second at speed 2: twenty rows of recordings with twelve rows each."""
    for name in ("a.csv", "b.csv", "c.csv"):
        write_recording(tmp_path / name, [("low", 1.0)] * 3)
    clock = Clock()
    replay = source(tmp_path, clock, kind="replay", speed=2.0)
    seen = []
    for _ in range(5):
        seen.append([(listing.path.name, listing.rows) for listing in replay.list(SCHEMA)])
        clock.advance(0.5)
    rows = 3 * LENGTH
    assert seen[0] == []
    assert seen[1] == [("a.csv", 10)]
    assert seen[2] == [("a.csv", 20), ("b.csv", 20 - rows)]
    assert seen[3] == [("a.csv", 30), ("b.csv", 30 - rows), ("c.csv", 30 - 2 * rows)]
    assert seen[4] == [("a.csv", 40), ("b.csv", 40 - rows), ("c.csv", 40 - 2 * rows)]


def test_a_replay_passes_over_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("broken")
    write_recording(tmp_path / "b.csv", [("low", 1.0)])
    clock = Clock()
    replay = source(tmp_path, clock, kind="replay")
    clock.advance(0.1)
    assert [(listing.path.name, listing.rows) for listing in replay.list(SCHEMA)] == [
        ("a.csv", 1),
        ("b.csv", 1),
    ]
