"""Features of windows that are normalised on the device: always those of one set of statistics."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.config import SourceConfig
from agent.features import FeatureCache
from agent.inventory import Inventory
from agent.normalisation import ENOUGH, STATISTICS_FILE
from agent.sources import Source
from protocol.input_schema import DEVICE, DEVICE_MEAN
from tests.builders import SCHEMA, Clock, LogisticEngine, tiny_manifest, tiny_members, write_recording

MANIFEST = replace(
    tiny_manifest(tiny_members()), format_version=2, schema=replace(SCHEMA, normalisation=DEVICE)
)


class BrokenEngine(LogisticEngine):
    """The power goes while features are computed."""

    def features(self, windows: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt(len(windows))


class Device:
    def __init__(self, folder: Path) -> None:
        self.spool, self.features, self.clock = folder / "spool", folder / "features", Clock()
        self.spool.mkdir()
        self.source = Source(SourceConfig(str(self.spool)), self.clock)
        self.engine = LogisticEngine()
        self.start()

    def start(self) -> None:
        self.cache = FeatureCache(self.features, MANIFEST, limit_bytes=1 << 20)

    def record(self, name: str, *levels: float) -> Path:
        return write_recording(
            self.spool / name, [("high" if level > 0 else "low", level) for level in levels]
        )

    def collect(self) -> Inventory:
        return self.cache.collect(self.source, self.engine, 1000)

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.features.rglob("*.*"))


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def expected(*levels: float, by: tuple[float, ...]) -> list[float]:
    """First feature, the mean, of windows at `levels`, normalised by those at `by`."""
    rows = np.array([[level + 0.01 * row for row in range(4)] for level in by], np.float32)
    return [(level + 0.015 - rows.mean(dtype=np.float64)) / rows.std(dtype=np.float64) for level in levels]


def means(inventory: Inventory) -> list[float]:
    return inventory.labelled.features[:, 0].tolist()


def test_features_are_those_of_normalised_windows(device: Device) -> None:
    device.record("a.csv", 105.0, -95.0, 5.0)
    assert means(device.collect()) == pytest.approx(expected(105, -95, 5, by=(105, -95, 5)), abs=1e-5)


def test_by_the_mean_alone_levels_keep_their_distance(device: Device) -> None:
    device.record("a.csv", 105.0, -95.0, 5.0)
    manifest = replace(MANIFEST, schema=replace(SCHEMA, normalisation=DEVICE_MEAN))
    for _ in range(2):
        cache = FeatureCache(device.features, manifest, limit_bytes=1 << 20)
        assert means(cache.collect(device.source, device.engine, 10)) == pytest.approx(
            [100, -100, 0], abs=1e-4
        )
    assert device.engine.windows_seen == 3


def test_statistics_are_taken_anew_when_there_are_twice_as_many_windows(device: Device) -> None:
    first = (1.0, -3.0, 2.0, -2.0)
    device.record("a.csv", *first)
    before = device.collect()
    device.record("b.csv", 50.0, 60.0, 70.0)
    same = device.collect()
    assert means(same) == pytest.approx(expected(*first, 50, 60, 70, by=first), abs=1e-4)
    assert means(same)[:4] == means(before)
    device.record("c.csv", 80.0)
    after = device.collect()
    everything = (*first, 50.0, 60.0, 70.0, 80.0)
    assert means(after) == pytest.approx(expected(*everything, by=everything), abs=1e-4)
    assert len({before.fingerprint, same.fingerprint, after.fingerprint}) == 3
    assert len([name for name in device.files if name.endswith(".npy")]) == 6


def test_enough_windows_fix_the_statistics_for_good(device: Device) -> None:
    device.record("a.csv", *[1.0, -1.0] * (ENOUGH // 2))
    before = means(device.collect())
    device.record("b.csv", *[500.0] * (2 * ENOUGH))
    assert means(device.collect())[:ENOUGH] == before
    device.start()
    assert means(device.collect())[:ENOUGH] == before


def test_a_restart_computes_nothing_anew(device: Device) -> None:
    device.record("a.csv", 1.0, -1.0)
    before = device.collect()
    device.start()
    device.engine.windows_seen = 0
    after = device.collect()
    assert (after.fingerprint, means(after), device.engine.windows_seen) == (
        before.fingerprint,
        means(before),
        0,
    )


def test_a_power_cut_between_statistics_and_features_mixes_nothing(device: Device) -> None:
    device.record("a.csv", 1.0, -1.0)
    device.collect()
    device.record("b.csv", 40.0, 60.0)
    device.engine = BrokenEngine()
    with pytest.raises(KeyboardInterrupt):
        device.collect()
    device.engine = LogisticEngine()
    device.start()
    levels = (1.0, -1.0, 40.0, 60.0)
    assert means(device.collect()) == pytest.approx(expected(*levels, by=levels), abs=1e-4)


def test_what_left_under_other_statistics_is_not_replayed(device: Device) -> None:
    gone = device.record("a.csv", 1.0)
    device.record("b.csv", -1.0)
    device.collect()
    gone.unlink()
    device.collect()
    assert len(device.cache.replay) == 1
    other = device.record("c.csv", 3.0, 5.0)
    device.record("d.csv", 7.0)
    other_features = means(device.collect())[1:3]
    assert len(device.cache.replay) == 0
    other.unlink()
    device.record("e.csv", 9.0)
    device.collect()
    assert device.cache.replay.features[:, 0].tolist() == other_features
    assert [name for name in device.files if name.startswith("replay")] == [
        f"replay-{device.cache._statistics.name}.npz"  # type: ignore[union-attr]
    ]


def test_damaged_statistics_are_taken_anew(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    device.record("a.csv", 1.0, -1.0)
    before = device.collect()
    [file] = device.features.rglob(STATISTICS_FILE)
    for damage in ("", "{", '{"windows": 3, "mean": [1.0], "deviation": [0.0]}', "[]", "5", '{"windows": 2}',
                   '{"windows": 3, "mean": [1.0]}',
                   '{"windows": 3, "mean": [1.0, 1.0], "deviation": [1.0, 1.0]}'):  # fmt: skip
        caplog.clear()
        file.write_text(damage)
        device.start()
        after = device.collect()
        assert "statistics are damaged" in caplog.text
        assert (after.fingerprint, means(after)) == (before.fingerprint, means(before))


def test_an_empty_spool_has_no_statistics(device: Device) -> None:
    (device.spool / "a.csv").write_text("x\n1.0\n2.0\n")
    inventory = device.collect()
    assert (len(inventory.labelled), inventory.unlabelled_windows) == (0, 0)
    with pytest.raises(ValueError, match="after the first `collect`"):
        device.cache.prepared(np.zeros((1, 1, 4), np.float32))
    device.record("b.csv", 1.0, -1.0)
    assert means(device.collect()) == pytest.approx(expected(1, -1, by=(1, -1)), abs=1e-5)


def test_a_replay_takes_no_statistics_from_the_future(device: Device) -> None:
    device.record("a.csv", 1.0, -1.0, 900.0, 900.0)
    device.source = Source(SourceConfig(str(device.spool), "replay"), device.clock)
    device.clock.advance(0.3)
    assert len(device.collect().labelled) == 0
    device.clock.advance(0.6)  # nine rows: two windows of four
    assert means(device.collect()) == pytest.approx(expected(1, -1, by=(1, -1)), abs=1e-4)


def test_a_package_without_normalisation_takes_windows_as_they_are(device: Device) -> None:
    plain = FeatureCache(device.features, tiny_manifest(tiny_members()), limit_bytes=1 << 20)
    device.record("a.csv", 105.0)
    assert means(plain.collect(device.source, device.engine, 10)) == pytest.approx([105.015])
    assert not any(name.startswith("statistics") for name in device.files)
