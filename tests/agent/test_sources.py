"""Sources: a folder as it fills, a replay as time passes, and recordings that cannot be read."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import AgentConfig, SourceConfig, load
from agent.sources import Source
from protocol.channels import ChannelError
from protocol.input_schema import ColumnSpec, InputSchema
from tests.builders import (
    LENGTH,
    SCHEMA,
    Clock,
    private_key,
    tiny_manifest,
    tiny_members,
    write_recording,
)


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


THERMOMETER = InputSchema(
    "timeseries", ("temperature", "flow rate"), 1.0, ("low", "high"), units=("degC", "")
)


def owned(folder: Path, lines: str) -> AgentConfig:
    """The configuration of an owner who put `lines` into [source]."""
    path = folder / "agent.toml"
    key = private_key(100).public.raw.hex()
    path.write_text(
        f'device = "pump-1"\nfederation = "pumps"\nserver_key = "{key}"\n'
        f'[source]\ndirectory = "spool"\n{lines}\n',
        "utf-8",
    )
    return load(path)


def test_the_reason_for_a_missing_channel_holds_the_line_that_mends_it(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    bad = tmp_path / "spool" / "a.csv"
    bad.write_text("time,flow,temp_sensor,label\n0,7.5,20,low\n")
    lines: list[str] = []
    for channel in ("temperature", '"flow rate"'):
        spool = Source(owned(tmp_path, "\n".join(lines)).source, Clock())
        assert spool.read(bad, THERMOMETER) is None
        advice = spool.problems["a.csv"].partition("add to [source]: ")[2]
        assert advice.startswith(f"channels.{channel} = ")
        lines.append(advice.partition(" }")[0] + " }")
    assert lines[0] == 'channels.temperature = { column = "temp_sensor", unit = "degC" }'
    spool = Source(owned(tmp_path, "\n".join(lines)).source, Clock())
    recording = spool.read(bad, THERMOMETER)
    assert recording is not None
    assert recording.samples.tolist() == [[20, 7.5]]


def test_a_mapping_of_the_owner_is_read_from_tables_too(tmp_path: Path) -> None:
    lines = (
        '[source.channels.temperature]\ncolumn = "t"\nunit = "K"\n[source.channels."flow rate"]\nscale = 2'
    )
    assert owned(tmp_path, lines).source.channels == {
        "temperature": ColumnSpec("t", "K"),
        "flow rate": ColumnSpec(scale=2.0),
    }


def test_other_mistakes_come_without_advice(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("temperature,flow rate\nwarm,1\n")
    spool = source(tmp_path)
    assert spool.read(tmp_path / "a.csv", THERMOMETER) is None
    assert "agent.toml" not in spool.problems["a.csv"]
    assert "add to" not in spool.problems["a.csv"]


def test_a_package_that_contradicts_the_mapping_is_not_accepted(tmp_path: Path) -> None:
    manifest = tiny_manifest(tiny_members())
    celsius = replace(manifest, schema=replace(SCHEMA, units=("degC",)))
    spool = source(tmp_path, channels={"x": ColumnSpec("t", "K")})
    spool.accept(celsius)
    with pytest.raises(ChannelError, match=r"agent\.toml: channels\.x: unit: the package states no unit"):
        spool.accept(manifest)
    with pytest.raises(ChannelError, match=r"channels\.x: expected one of the package's channels, y"):
        spool.accept(replace(manifest, schema=replace(SCHEMA, channels=("y",))))


def test_a_mapping_is_named_by_what_it_says(tmp_path: Path) -> None:
    plain, one = source(tmp_path).mapping, source(tmp_path, channels={"x": ColumnSpec("t")}).mapping
    both = {"y": ColumnSpec(), "x": ColumnSpec("t")}
    assert len({plain, one, source(tmp_path, channels=both).mapping}) == 3
    again = source(tmp_path, channels=dict(reversed(both.items()))).mapping
    assert again == source(tmp_path, channels=both).mapping
