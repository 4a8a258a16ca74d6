"""Key files: made once, readable by their owner alone, refused when damaged."""

import os
import stat
from pathlib import Path

import pytest

from runtime.errors import SetupError
from runtime.keys import load_or_make, make, read
from tests.builders import private_key


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "device.key"
    key = load_or_make(path)
    assert load_or_make(path).raw == key.raw
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["device.key"]  # noqa: PTH208 - names only


def test_every_key_is_another(tmp_path: Path) -> None:
    assert load_or_make(tmp_path / "a.key").raw != load_or_make(tmp_path / "b.key").raw


def test_a_key_file_with_a_line_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    path.write_text(private_key(7).raw.hex() + "\n")
    assert load_or_make(path).raw == private_key(7).raw


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    key = make(path)
    with pytest.raises(SetupError, match="never overwritten"):
        make(path)
    assert read(path).raw == key.raw
    assert os.listdir(tmp_path) == ["device.key"]  # noqa: PTH208 - names only


@pytest.mark.parametrize(
    "content", [b"not hexadecimal", b"zz" * 32, b"\xff" * 64, b"0" * 63, b"", b"00" * 31]
)
def test_a_damaged_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "device.key"
    path.write_bytes(content)
    with pytest.raises(SetupError, match=r"device\.key: expected a key of 64 hexadecimal digits"):
        load_or_make(path)
    assert path.read_bytes() == content


def test_what_a_crash_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / f".device.key.{os.getpid()}").write_text("half a k")
    assert make(tmp_path / "device.key").raw == read(tmp_path / "device.key").raw
    assert os.listdir(tmp_path) == ["device.key"]  # noqa: PTH208 - names only


def test_a_key_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"device\.key: not readable: No such file"):
        read(tmp_path / "device.key")
