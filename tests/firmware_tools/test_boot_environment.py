"""The boot environment: whatever a power cut leaves, it reads as it was before or as it was to be."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools.device.boot_environment import (
    BLOCK,
    SLOTS,
    STATES,
    BootEnvironment,
    BootState,
    checksum,
    decode_block,
    encode_state,
    encode_tries,
    factory_files,
)
from firmware_tools.errors import FirmwareError

STATE = st.builds(
    BootState,
    sequence=st.integers(1, 2**31 - 1),
    primary=st.sampled_from(SLOTS),
    a_state=st.sampled_from(STATES),
    b_state=st.sampled_from(STATES),
)
NEW = BootState(primary="B", b_state="trial")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return factory(tmp_path / "env")


def factory(folder: Path) -> Path:
    folder.mkdir()
    for name, content in factory_files().items():
        (folder / name).write_bytes(content)
    return folder


class PowerCutError(Exception):
    """The device went off."""


@contextmanager
def power_cut(after: int, torn: int, order: int = 1) -> Iterator[list[int]]:
    """The power goes off in the call of pwrite number `after`, of which `torn` bytes reach the disk.

    `order` -1: the last bytes do, as a disk may write its sectors in any order.
    """
    pwrite, calls = os.pwrite, [0]

    def cut(descriptor: int, content: bytes, offset: int) -> int:
        calls[0] += 1
        if calls[0] <= after:
            return pwrite(descriptor, content, offset)
        start = 0 if order > 0 else len(content) - min(torn, len(content))
        pwrite(descriptor, content[start : start + torn], offset + start)
        raise PowerCutError

    patch = pytest.MonkeyPatch()
    patch.setattr(os, "pwrite", cut)
    try:
        yield calls
    except PowerCutError:
        pass
    finally:
        patch.undo()


def test_a_new_device_boots_slot_a_and_has_both_copies(folder: Path) -> None:
    environment = BootEnvironment(folder)
    assert environment.read() == BootState(sequence=2)
    assert None not in environment.copies()
    assert environment.tries() == {"A": 0, "B": 0}


@given(state=STATE)
def test_a_state_is_read_as_it_was_written(state: BootState) -> None:
    block = encode_state(state)
    assert len(block) == BLOCK
    values = decode_block(block)
    assert BootState(int(values.pop("sequence")), *values.values()) == state


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("after", [0, 1])
def test_a_write_that_is_cut_at_any_byte_leaves_the_old_state_or_the_new_one(
    folder: Path, after: int, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "fsync", lambda _descriptor: None
    )  # thousands of them; their order has its own test
    files = {path: path.read_bytes() for path in folder.iterdir()}
    environment = BootEnvironment(folder)
    old = environment.read()
    edge = BLOCK // 8  # the variables end before it; then there is padding
    for torn in (*range(edge), *range(edge, BLOCK - edge, 16), *range(BLOCK - edge, BLOCK + 1)):
        with power_cut(after, torn, order):
            environment.write(NEW)
        found = environment.read()
        assert (found.primary, found.b_state) in {("A", "bad"), ("B", "trial")}
        if found.sequence == old.sequence:
            assert found == old
        assert {path.name: path.stat().st_size for path in folder.iterdir()} == {
            path.name: len(content) for path, content in files.items()
        }
        assert environment.write(NEW).sequence > old.sequence  # and the next change works
        assert environment.read().primary == "B"
        for path, content in files.items():
            path.write_bytes(content)


def test_a_cut_before_the_checksum_is_on_the_disk_leaves_the_old_state(folder: Path) -> None:
    environment = BootEnvironment(folder)
    with power_cut(1, 0) as calls:
        environment.write(NEW)
    assert calls == [2]
    assert environment.read() == BootState(sequence=2)
    assert environment.copies()[0] is None


def test_each_write_is_on_the_disk_before_the_next_begins(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    pwrite, fsync = os.pwrite, os.fsync

    def writing(descriptor: int, content: bytes, offset: int) -> int:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        return pwrite(descriptor, content, offset)

    def syncing(descriptor: int) -> None:
        order.append("sync")
        fsync(descriptor)

    monkeypatch.setattr(os, "pwrite", writing)
    monkeypatch.setattr(os, "fsync", syncing)
    BootEnvironment(folder).write(NEW)
    assert order == ["state0", "sync", "state0.sum", "sync"]


def test_changes_alternate_between_the_copies(folder: Path) -> None:
    environment = BootEnvironment(folder)
    for number in range(6):
        before = (folder / f"state{1 - number % 2}").read_bytes()
        written = environment.write(NEW)
        assert environment.copies()[number % 2] == written
        assert (folder / f"state{1 - number % 2}").read_bytes() == before


@pytest.mark.parametrize("damaged", [0, 1])
@pytest.mark.parametrize("name", ["state{}", "state{}.sum"])
@pytest.mark.parametrize("how", ["flipped", "empty", "short", "long", "missing", "zero"])
def test_a_damaged_copy_is_not_used_and_the_next_change_mends_it(
    folder: Path, damaged: int, name: str, how: str
) -> None:
    path = folder / name.format(damaged)
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {
                "flipped": content[:40] + bytes([content[40] ^ 1]) + content[41:],
                "empty": b"",
                "short": content[:-1],
                "long": content + b"#",
                "zero": bytes(len(content)),
            }[how]
        )
    environment = BootEnvironment(folder)
    assert environment.copies()[damaged] is None
    assert environment.read().primary == "A"
    written = environment.write(NEW)
    assert environment.copies()[damaged] == written == environment.read()
    assert None not in environment.copies()


def test_without_a_whole_copy_nothing_is_made_up(folder: Path) -> None:
    for number in (0, 1):
        (folder / f"state{number}.sum").unlink()
    with pytest.raises(FirmwareError, match="neither copy"):
        BootEnvironment(folder).read()


def test_a_copy_with_a_right_checksum_and_nonsense_in_it_is_damaged(folder: Path) -> None:
    for text in (
        "sequence=9\nprimary=C\na_state=good\nb_state=bad\n",
        "sequence=0\nprimary=A\n",
        "sequence=x\n",
    ):
        block = (b"# GRUB Environment Block\n" + text.encode()).ljust(BLOCK, b"#")
        (folder / "state1").write_bytes(block)
        (folder / "state1.sum").write_bytes(checksum(1, block))
        assert BootEnvironment(folder).copies() == (BootState(sequence=1), None)


def test_a_write_that_does_not_read_back_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda _descriptor, content, _offset: len(content))
    with pytest.raises(FirmwareError, match="does not read back"):
        BootEnvironment(folder).write(NEW)


@pytest.mark.parametrize("content", [b"", b"\0" * BLOCK, encode_tries({"A": 1, "B": 0})[:-1], b"#" * BLOCK])
def test_counts_that_cannot_be_read_are_none(folder: Path, content: bytes) -> None:
    (folder / "tries").write_bytes(content)
    environment = BootEnvironment(folder)
    assert environment.tries() is None
    environment.set_tries({"A": 0, "B": 1})
    assert environment.tries() == {"A": 0, "B": 1}


def test_a_slot_is_given_up_when_it_is_bad_or_has_used_up_its_tries(folder: Path) -> None:
    environment = BootEnvironment(folder)
    environment.write(BootState(a_state="good", b_state="trial"))
    environment.set_tries({"A": 2, "B": 3})
    assert (environment.given_up("A"), environment.given_up("B")) == (False, True)
    (folder / "tries").write_bytes(b"")
    assert (environment.given_up("A"), environment.given_up("B")) == (False, True)
    environment.write(BootState(a_state="bad", b_state="good"))
    environment.set_tries({"A": 0, "B": 0})
    assert (environment.given_up("A"), environment.given_up("B")) == (True, False)


def test_sha256sum_accepts_what_is_written(folder: Path) -> None:
    BootEnvironment(folder).write(NEW)
    for number in (0, 1):
        done = subprocess.run(
            ["sha256sum", "--check", "--strict", f"state{number}.sum"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        assert done.stdout == f"state{number}: OK\n".encode()


@pytest.mark.skipif(
    shutil.which("grub-editenv") is None, reason="needs grub-editenv: apt install grub-common"
)
def test_grub_reads_what_is_written(folder: Path) -> None:
    BootEnvironment(folder).write(NEW)
    for name, expected in {
        "state0": "sequence=3\nprimary=B\na_state=good\nb_state=trial\n",
        "state1": "sequence=2\nprimary=A\na_state=good\nb_state=bad\n",
        "tries": "counted=1\na_tries=0\nb_tries=0\n",
    }.items():
        done = subprocess.run(
            ["grub-editenv", folder / name, "list"], check=True, capture_output=True, text=True
        )
        assert done.stdout == expected
