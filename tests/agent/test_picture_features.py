"""The feature cache of pictures: computed once each, few files, never more than the limit."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent import picture_features
from agent.config import SourceConfig
from agent.features import FeatureCache
from agent.inventory import Inventory
from agent.sources import Source
from protocol.input_schema import ONE_PICTURE
from protocol.package import Manifest
from tests.builders import Clock, tiny_manifest, tiny_members
from tests.pictures import SCHEMA, shade

MANIFEST = replace(tiny_manifest(tiny_members()), schema=SCHEMA, window=ONE_PICTURE)


class LightMeter:
    """An engine whose features are the mean and the number of pixels; counts what it sees."""

    batch, feature_size, parameters, classes = 8, 2, 6, 2

    def __init__(self) -> None:
        self.seen = 0

    def features(self, windows: np.ndarray) -> np.ndarray:
        assert windows.shape[1:] == MANIFEST.input_shape
        self.seen += len(windows)
        flat = windows.reshape(len(windows), -1)
        return np.stack([flat.mean(1), np.full(len(flat), flat.shape[1], np.float32)], 1)


class Device:
    def __init__(self, folder: Path) -> None:
        self.spool, self.cache, self.engine, self.clock = (
            folder / "spool",
            folder / "f",
            LightMeter(),
            Clock(),
        )
        self.spool.mkdir()
        self.source = Source(SourceConfig(str(self.spool)), self.clock)
        self.opened: FeatureCache | None = None

    def take(self, name: str, level: int) -> Path:
        return shade(self.spool / name, level)

    def restart(self, manifest: Manifest = MANIFEST, limit: int = 1 << 20) -> None:
        self.opened = FeatureCache(self.cache, manifest, limit_bytes=limit)

    def collect(self, maximum: int = 1000) -> Inventory:
        if self.opened is None:
            self.restart()
        assert self.opened
        self.engine.seen = 0
        return self.opened.collect(self.source, self.engine, maximum)  # type: ignore[arg-type]

    @property
    def blocks(self) -> list[Path]:
        return sorted(self.cache.rglob("*.npy"))


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(picture_features, "BLOCK_ROWS", 4)
    monkeypatch.setattr(picture_features, "PICTURES_AT_ONCE", 3)
    return Device(tmp_path)


def levels(inventory: Inventory) -> list[int]:
    return np.round(inventory.labelled.features[:, 0] * 255).astype(int).tolist()


def test_pictures_are_gathered_in_the_order_of_time_over_all_labels(device: Device) -> None:
    for name, level in (("dark/3.png", 30), ("bright/1.png", 10), ("2.png", 20), ("dark/0.png", 5)):
        device.take(name, level)
    inventory = device.collect()
    assert levels(inventory) == [5, 10, 30]
    assert inventory.labelled.labels.tolist() == [1, 0, 1]
    assert np.all(np.diff(inventory.labelled.start) > 0)
    assert inventory.unlabelled_windows == 1


def test_each_picture_is_computed_once_and_many_share_a_file(device: Device) -> None:
    for index in range(11):
        device.take(f"dark/{index:02d}.png", index)
    first = device.collect()
    assert (device.engine.seen, len(device.blocks)) == (11, 3)
    again = device.collect()
    device.restart()
    after_restart = device.collect()
    assert device.engine.seen == 0
    assert first.fingerprint == again.fingerprint == after_restart.fingerprint
    assert levels(after_restart) == list(range(11))


def test_pictures_that_come_one_by_one_fill_the_last_block(device: Device) -> None:
    for index in range(10):
        device.take(f"dark/{index}.png", index)
        fingerprint = device.collect().fingerprint
        assert device.engine.seen == 1
    assert len(device.blocks) == 3
    assert levels(device.collect()) == list(range(10))
    assert device.collect().fingerprint == fingerprint


def test_a_picture_that_is_labelled_later_counts_from_then_on(device: Device) -> None:
    device.take("unlabelled/1.png", 10)
    device.take("dark/2.png", 20)
    before = device.collect()
    (device.spool / "bright").mkdir()
    (device.spool / "unlabelled" / "1.png").rename(device.spool / "bright" / "1.png")
    after = device.collect()
    assert (before.labelled.labels.tolist(), after.labelled.labels.tolist()) == ([1], [0, 1])
    assert before.fingerprint != after.fingerprint


def test_a_corrected_label_is_not_remembered_as_it_was(device: Device) -> None:
    device.take("bright/1.png", 10)
    device.collect()
    (device.spool / "dark").mkdir()
    (device.spool / "bright" / "1.png").rename(device.spool / "dark" / "1.png")
    assert device.collect().labelled.labels.tolist() == [1]
    assert device.opened
    assert len(device.opened.replay) == 0


def test_pictures_that_left_are_offered_to_the_replay_buffer_and_leave_the_disk(device: Device) -> None:
    for index in range(6):
        device.take(f"dark/{index}.png", index)
    device.take("unlabelled/7.png", 7)
    device.collect()
    shutil.rmtree(device.spool / "dark")
    inventory = device.collect()
    assert (len(inventory.labelled), inventory.unlabelled_windows) == (0, 1)
    assert sum(len(np.load(path)) for path in device.blocks) == 1
    assert device.opened
    assert sorted(np.round(device.opened.replay.features[:, 0] * 255).tolist()) == [0, 1, 2, 3, 4, 5]


def test_two_pictures_of_one_name_under_two_labels_are_two(device: Device) -> None:
    for name, level in (("dark/1.png", 10), ("bright/1.png", 90)):
        os.utime(device.take(name, level), ns=(0, 0))
    assert sorted(levels(device.collect())) == [10, 90]


def test_a_picture_that_changed_is_computed_anew(device: Device) -> None:
    device.take("dark/1.png", 10)
    device.collect()
    os.utime(device.take("dark/1.png", 60), ns=(5, 5))
    assert levels(device.collect()) == [60]


def test_a_full_cache_keeps_the_newest_pictures(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    row = 32 + 8 + 2 * 4
    device.restart(limit=1 << 10)
    for index in range(40):
        device.take(f"dark/{index:02d}.png", index)
    kept = (1 << 10) // row
    assert levels(device.collect()) == list(range(40 - kept, 40))
    assert "older pictures are left out" in caplog.text
    device.take("dark/40.png", 40)
    assert levels(device.collect()) == list(range(41 - kept, 41))
    assert device.engine.seen == 1
    assert sum(len(np.load(path)) for path in device.blocks) == kept


def test_only_the_newest_of_every_class_are_held_in_memory(device: Device) -> None:
    for index in range(8):
        device.take(f"dark/{index}.png", index)
    device.take("bright/0.png", 99)
    assert levels(device.collect(maximum=4)) == [99, 5, 6, 7]


def test_a_bad_picture_is_reported_and_decoded_once_and_the_others_go_on(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.take("dark/1.png", 10)
    (device.spool / "dark" / "2.png").write_bytes(b"broken")
    device.take("drak/3.png", 30)
    read: list[str] = []
    original = device.source.read

    def noted(path: Path, schema: object) -> object:
        read.append(path.name)
        return original(path, schema)  # type: ignore[arg-type]

    monkeypatch.setattr(device.source, "read", noted)
    assert levels(device.collect()) == [10]
    assert levels(device.collect()) == [10]
    assert read == ["1.png", "2.png"]
    assert "expected a readable JPEG or PNG picture" in device.source.problems["dark/2.png"]
    assert any("folder 'drak'" in reason for reason in device.source.problems.values())
    (device.spool / "dark" / "2.png").unlink()
    shutil.rmtree(device.spool / "drak")
    device.collect()
    assert device.source.problems == {}


def test_a_crash_between_writing_and_removing_blocks_loses_and_doubles_nothing(device: Device) -> None:
    for index in range(3):
        device.take(f"dark/{index}.png", index)
    device.collect()
    [old] = device.blocks
    saved = old.read_bytes()
    device.take("dark/3.png", 3)
    device.collect()
    old.write_bytes(saved)  # as if the power had failed before it was removed
    (old.parent / "00000009.partial").write_bytes(b"half")
    device.restart()
    assert levels(device.collect()) == [0, 1, 2, 3]
    assert device.engine.seen == 0
    assert len(device.blocks) == 1
    assert not list(old.parent.glob("*.partial"))


def test_a_torn_block_is_computed_again(device: Device) -> None:
    device.take("dark/1.png", 10)
    device.collect()
    [block] = device.blocks
    block.write_bytes(block.read_bytes()[:20])
    device.restart()
    assert levels(device.collect()) == [10]
    assert device.engine.seen == 1


def test_a_folder_that_is_away_costs_no_features(device: Device) -> None:
    device.take("dark/1.png", 10)
    device.collect()
    device.spool.rename(device.spool.with_name("away"))
    assert len(device.collect().labelled) == 0
    device.spool.with_name("away").rename(device.spool)
    assert levels(device.collect()) == [10]
    assert device.engine.seen == 0


def test_a_replay_shows_pictures_in_the_order_of_their_names_over_all_labels(device: Device) -> None:
    for name, level in (("dark/1.png", 1), ("bright/2.png", 2), ("dark/3.png", 3), ("bright/4.png", 4)):
        device.take(name, level)
    device.source = Source(SourceConfig(str(device.spool), "replay", speed=2.0), device.clock)
    assert levels(device.collect()) == []
    device.clock.advance(1.1)  # two pictures a second at speed 2
    assert levels(device.collect()) == [1, 2]
    device.clock.advance(0.5)
    assert levels(device.collect()) == [1, 2, 3]
    assert device.engine.seen == 1
