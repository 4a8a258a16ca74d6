"""Whole files: what bears a name is on disk, in the order in which a power cut may come in between.

A power cut itself is played in tests/boot; here the order of what the system is asked for is looked at.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import whole_files


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Syncs and renames, in their order."""
    asked: list[str] = []
    sync, rename = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        asked.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        sync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        asked.append(f"rename {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    return asked


def test_a_file_is_on_disk_before_its_name(tmp_path: Path, asked: list[str]) -> None:
    partial, target = tmp_path / "partial", tmp_path / "target"
    partial.write_bytes(b"new")
    target.write_bytes(b"old")
    whole_files.rename(partial, target)
    assert asked == ["sync partial", "rename target", f"sync {tmp_path.name}"]
    assert (target.read_bytes(), partial.exists()) == (b"new", False)


def test_every_file_of_a_folder_is_on_disk_before_its_name(tmp_path: Path, asked: list[str]) -> None:
    partial = tmp_path / "partial"
    partial.mkdir()
    for name in ("a", "b"):
        (partial / name).write_bytes(b"content")
    whole_files.rename_folder(partial, tmp_path / "target")
    assert sorted(asked[:2]) == ["sync a", "sync b"]
    assert asked[2:] == ["sync partial", "rename target", f"sync {tmp_path.name}"]
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == ["a", "b"]


@pytest.mark.parametrize("rename", [whole_files.rename, whole_files.rename_folder])
def test_where_nothing_was_written_nothing_is_replaced(
    tmp_path: Path, rename: Callable[[Path, Path], None]
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    with pytest.raises(FileNotFoundError):
        rename(tmp_path / "partial", target)
    assert target.read_bytes() == b"old"


def test_what_cannot_be_written_whole_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    whole_files.write(target, b"old", whole_files.SECRET)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            whole_files.write(target, b"new", whole_files.PUBLIC)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"old", 0o600)
