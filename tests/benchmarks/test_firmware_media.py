"""The benchmark of media, on images as small as they can be."""

from pathlib import Path

import pytest

from benchmarks.firmware_media import MIB, faults_found, identities_seconds, readback_ratio


def test_faults_are_counted_where_they_were_put(tmp_path: Path) -> None:
    assert faults_found(tmp_path, faults=3, size=4 * MIB)["found"] == 3
    assert list(tmp_path.iterdir()) == []


def test_both_ways_of_making_keys_are_measured(tmp_path: Path) -> None:
    assert set(identities_seconds(tmp_path, count=3)["seconds"]) == {"on_device", "factory_keys"}


def test_reading_back_is_held_against_bmaptool(tmp_path: Path) -> None:
    found = readback_ratio(tmp_path, data=2 * MIB, repeats=1)
    if "skipped" in found:
        pytest.skip(found["skipped"])
    assert found["ratio"] > 0
