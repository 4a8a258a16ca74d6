"""The feature cache: each window is run through the backbone once, and the disk is never filled."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.config import SourceConfig
from agent.features import FeatureCache
from agent.inventory import Inventory
from agent.replay import ReplayBuffer
from agent.sources import Source
from protocol.input_schema import ColumnSpec
from protocol.package import Manifest
from tests.builders import Clock, LogisticEngine, tiny_manifest, tiny_members, two_levels, write_recording

MANIFEST = tiny_manifest(tiny_members())


class Device:
    """A spool folder, a cache folder and an engine that counts its windows."""

    def __init__(self, folder: Path) -> None:
        self.spool, self.cache, self.engine = folder / "spool", folder / "features", LogisticEngine()
        self.spool.mkdir()
        self.clock = Clock()
        self.source = Source(SourceConfig(str(self.spool)), self.clock)

    def record(self, name: str, windows: list[tuple[str, float]]) -> Path:
        return write_recording(self.spool / name, windows)

    def collect(self, manifest: Manifest = MANIFEST, limit: int = 1 << 20, maximum: int = 1000) -> Inventory:
        self.engine.windows_seen = 0
        return FeatureCache(self.cache, manifest, limit_bytes=limit).collect(
            self.source, self.engine, maximum
        )


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_labelled_windows_are_gathered_in_order(device: Device) -> None:
    device.record("a.csv", [("low", -1.0), ("", 0.0), ("high", 2.0)])
    device.record("b.csv", [("high", 1.0)])
    inventory = device.collect()
    labelled = inventory.labelled
    assert (labelled.labels.tolist(), inventory.unlabelled_windows) == ([0, 1, 1], 1)
    assert (labelled.recording.tolist(), labelled.start.tolist()) == ([0, 0, 1], [0, 8, 0])
    assert labelled.features[:, 0].tolist() == pytest.approx([-0.985, 2.015, 1.015], abs=1e-5)
    assert device.engine.windows_seen == 4


def test_a_window_is_run_through_the_backbone_once(device: Device) -> None:
    device.record("a.csv", two_levels(5))
    first = device.collect()
    again = device.collect()
    assert device.engine.windows_seen == 0
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.labelled.features, first.labelled.features)
    device.record("b.csv", two_levels(1))
    assert device.collect().fingerprint != first.fingerprint
    assert device.engine.windows_seen == 2


def test_a_recording_that_changed_is_computed_anew(device: Device) -> None:
    path = device.record("a.csv", two_levels(2))
    first = device.collect()
    path = device.record("a.csv", two_levels(3))
    second = device.collect()
    assert device.engine.windows_seen == 6
    assert len(second.labelled) == 6
    assert second.fingerprint != first.fingerprint
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    device.collect()
    assert device.engine.windows_seen == 6
    assert len(list(device.cache.rglob("*.npy"))) == 2


def test_the_first_windows_of_each_recording_need_no_label(device: Device) -> None:
    device.record("a.csv", [("", -1.0), ("low", 0.0), ("high", 2.0)])
    device.record("b.csv", [("high", 1.0)])
    device.record("c.csv", [("", 3.0), ("", 4.0), ("", 5.0)])
    cache = FeatureCache(device.cache, MANIFEST, limit_bytes=1 << 20)
    found = cache.first_windows(device.source, device.engine, 2, 1000)
    levels = [pytest.approx(windows[:, 0].tolist(), abs=1e-5) for windows in found]
    assert levels == [[-0.985, 0.015], [1.015], [3.015, 4.015]]
    device.engine.windows_seen = 0
    newest = cache.first_windows(device.source, device.engine, 2, 2)
    assert [windows.tolist() for windows in newest] == [found[2].tolist()]
    assert device.engine.windows_seen == 0
    [path, *_] = sorted(device.spool.iterdir())
    path.unlink()
    assert len(cache.first_windows(device.source, device.engine, 2, 1000)) == 2


def test_another_backbone_throws_the_cache_away(device: Device) -> None:
    device.record("a.csv", two_levels(2))
    device.collect()
    members = tiny_members(filler=1)
    device.collect(tiny_manifest(members))
    assert device.engine.windows_seen == 4
    assert len(list(device.cache.iterdir())) == 1
    device.collect()
    assert device.engine.windows_seen == 4


def test_a_new_adapter_on_the_same_backbone_keeps_the_cache(device: Device) -> None:
    device.record("a.csv", two_levels(2))
    device.collect()
    device.collect(replace(MANIFEST, name="other", version=9))
    assert device.engine.windows_seen == 0


def test_other_windows_of_the_same_backbone_are_computed_anew(device: Device) -> None:
    device.record("a.csv", two_levels(2))
    device.collect()
    device.collect(replace(MANIFEST, window=replace(MANIFEST.window, stride=2)))
    assert device.engine.windows_seen == 4  # those with two labels are not even computed


def test_another_mapping_of_channels_computes_everything_anew(device: Device) -> None:
    """A unit that was wrong must leave nothing behind: neither features nor windows to replay."""
    (device.spool / "a.csv").write_text("t,label\n" + "212,high\n" * 4)
    gone = device.spool / "b.csv"
    gone.write_text("t,label\n" + "-40,low\n" * 4)
    celsius = replace(MANIFEST, schema=replace(MANIFEST.schema, units=("degC",)))

    def collect(unit: str) -> Inventory:
        device.source = Source(
            SourceConfig(str(device.spool), channels={"x": ColumnSpec("t", unit)}), device.clock
        )
        cache = FeatureCache(device.cache, celsius, limit_bytes=1 << 20, mapping=device.source.mapping)
        inventory = cache.collect(device.source, device.engine, 1000)
        replayed.append(len(cache.replay))
        return inventory

    replayed: list[int] = []
    first = collect("degC")
    assert first.labelled.features[:, 0].tolist() == [212, -40]
    gone.unlink()
    collect("degC")
    second = collect("degF")
    assert second.labelled.features[:, 0].tolist() == [100]
    assert replayed == [0, 1, 0]


def test_a_full_cache_drops_the_oldest_recordings(device: Device) -> None:
    for name in ("a.csv", "b.csv", "c.csv"):
        device.record(name, two_levels(20))
    one = 128 + 40 * 2 * 4
    inventory = device.collect(limit=2 * one + 10)
    assert len(inventory.labelled) == 80
    again = device.collect(limit=2 * one + 10)
    assert device.engine.windows_seen == 0  # what was dropped is not computed again
    assert again.fingerprint == inventory.fingerprint
    device.record("d.csv", two_levels(20))
    assert len(device.collect(limit=2 * one + 10).labelled) == 80
    assert device.engine.windows_seen == 40


def test_the_newest_recording_stays_however_small_the_limit(device: Device) -> None:
    device.record("a.csv", two_levels(2))
    device.record("b.csv", two_levels(3))
    assert len(device.collect(limit=1).labelled) == 6


def test_only_the_newest_windows_are_held_in_memory(device: Device) -> None:
    device.record("a.csv", two_levels(4))
    device.record("b.csv", two_levels(4))
    labelled = device.collect(maximum=10).labelled
    assert len(labelled) == 10
    assert labelled.recording.tolist() == [0, 0] + [1] * 8
    assert labelled.start.tolist()[:2] == [24, 28]


def test_a_recording_that_left_takes_its_features_along(device: Device) -> None:
    path = device.record("a.csv", two_levels(2))
    device.record("b.csv", two_levels(2))
    device.collect()
    path.unlink()
    assert len(device.collect().labelled) == 4
    assert len(list(device.cache.rglob("*.npy"))) == 2


def test_a_bad_recording_is_left_out(device: Device) -> None:
    (device.spool / "a.csv").write_text("broken")
    device.record("b.csv", two_levels(1))
    assert len(device.collect().labelled) == 2
    assert list(device.source.problems) == ["a.csv"]


def test_a_recording_shorter_than_a_window_has_none(device: Device) -> None:
    (device.spool / "a.csv").write_text("x\n1.0\n2.0\n")
    assert len(device.collect().labelled) == 0
    assert device.collect().unlabelled_windows == 0


def test_an_empty_spool_has_nothing(device: Device) -> None:
    inventory = device.collect()
    assert (len(inventory.labelled), inventory.unlabelled_windows, inventory.fingerprint) == (0, 0, "")
    assert inventory.labelled.features.shape == (0, 2)


def test_what_a_crash_left_half_written_is_computed_again(device: Device) -> None:
    device.record("a.csv", two_levels(2))
    device.collect()
    [table] = device.cache.rglob("*.table.npy")
    table.unlink()
    (table.parent / "left.partial.npy").write_bytes(b"half")
    assert len(device.collect().labelled) == 4
    assert device.engine.windows_seen == 4
    assert not (table.parent / "left.partial.npy").exists()


@pytest.mark.parametrize("victim", [".table.npy", ".npy"])
@pytest.mark.parametrize("left", ["nothing", "half", "garbage"])
def test_features_that_a_power_cut_damaged_are_computed_anew(device: Device, victim: str, left: str) -> None:
    device.record("a.csv", two_levels(3))
    before = device.collect().labelled
    [table] = device.cache.rglob("*.table.npy")
    path = table if victim == ".table.npy" else table.with_name(table.name.replace(".table", ""))
    content = path.read_bytes()
    path.write_bytes({"nothing": b"", "half": content[: len(content) // 2], "garbage": b"x" * 200}[left])
    after = device.collect().labelled
    assert device.engine.windows_seen == len(after)
    np.testing.assert_array_equal(after.features, before.features)
    np.testing.assert_array_equal(after.labels, before.labels)


def test_a_replay_shows_only_windows_that_are_complete(device: Device) -> None:
    device.record("a.csv", two_levels(3))
    device.source = Source(SourceConfig(str(device.spool), "replay"), device.clock)
    device.clock.advance(0.95)  # nine rows: two windows of four
    assert device.collect().labelled.start.tolist() == [0, 4]
    device.clock.advance(0.3)
    assert device.collect().labelled.start.tolist() == [0, 4, 8]
    assert device.engine.windows_seen == 0


def replay(device: Device, limit: int = 1 << 20) -> ReplayBuffer:
    return FeatureCache(device.cache, MANIFEST, limit_bytes=limit).replay


def test_a_recording_that_leaves_the_spool_stays_in_the_replay_buffer(device: Device) -> None:
    gone = device.record("a.csv", [("high", 3.0), ("", 9.0), ("low", -2.0)])
    device.record("b.csv", two_levels(3))
    before = device.collect()
    assert len(replay(device)) == 0
    gone.unlink()
    after = device.collect()
    kept = replay(device)
    assert len(after.labelled) == len(before.labelled) - 2
    assert kept.labels.tolist() == [0, 1]
    assert kept.features[:, 0].tolist() == pytest.approx([-1.985, 3.015], abs=1e-5)
    device.collect()
    assert len(replay(device)) == 2


def test_a_recording_that_grows_is_not_the_past(device: Device) -> None:
    device.record("a.csv", two_levels(3))
    device.collect()
    device.record("a.csv", two_levels(5))
    assert len(device.collect().labelled) == 10
    assert len(replay(device)) == 0


def test_recordings_that_leave_the_full_cache_are_replayed_once(device: Device) -> None:
    first = device.record("a.csv", two_levels(6000))
    for name in ("b.csv", "c.csv"):
        device.record(name, [("high", 1.0)] * 12_000)
    size = 12_000 * 8 + 128
    device.collect(limit=2 * size + 10)
    kept = replay(device)
    assert np.bincount(kept.labels).tolist() == [64, 64]
    first.unlink()
    device.collect(limit=2 * size + 10)
    assert replay(device).features.tobytes() == kept.features.tobytes()


def test_another_backbone_starts_the_buffer_anew(device: Device) -> None:
    device.record("a.csv", two_levels(3)).unlink()
    device.record("b.csv", two_levels(3))
    device.collect()
    (device.spool / "b.csv").unlink()
    device.collect()
    assert len(replay(device)) == 6
    other = replace(MANIFEST, name="other", window=replace(MANIFEST.window, stride=1))
    assert len(FeatureCache(device.cache, other, limit_bytes=1 << 20).replay) == 0


def test_when_there_is_no_room_for_all_a_rare_class_is_held(device: Device) -> None:
    device.record("a.csv", [("high", 2.0)] * 2)
    device.record("b.csv", [("low", -2.0)] * 30)
    assert np.bincount(device.collect(maximum=10).labelled.labels).tolist() == [8, 2]
