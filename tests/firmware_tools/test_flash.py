"""Flashing and reading back: every fault is found, and no medium's fault is another's."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from firmware_tools.__main__ import main
from firmware_tools.block_map import for_image, render
from firmware_tools.flash import flash
from firmware_tools.flash_progress import Bars, Lines
from firmware_tools.ledger import Ledger
from firmware_tools.read_back import read_back
from tests.firmware_tools.small_images import MIB, needs, partitioned_image, sparse_image


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return sparse_image(tmp_path / "image.img")


def targets(folder: Path, count: int) -> list[Path]:
    """Files as media, full of an older system."""
    found = [folder / f"card-{number}" for number in range(count)]
    for target in found:
        target.write_bytes(b"\xa5" * (26 * MIB))
    return found


def mapped(image: Path) -> list[tuple[int, int]]:
    block_map = for_image(image)
    return [block_map.extent(one) for one in block_map.ranges]


def test_several_media_are_written_and_read_back(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = targets(tmp_path, 3)
    assert main(["flash", str(image), *map(str, cards), "--file", "--json"]) == 0
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert [result["verdict"] for result in results] == ["good"] * 3
    whole = image.read_bytes()
    size = sum(length for _, length in mapped(image))
    for card, result in zip(cards, results, strict=True):
        content = card.read_bytes()
        for start, length in mapped(image):
            assert content[start : start + length] == whole[start : start + length]
        assert content[6 * MIB : 7 * MIB] == b"\xa5" * MIB  # a hole is not written
        assert result["bytes_written"] == result["bytes_read_back"] == size
    assert f"{cards[0]}: reading back 100 %" in printed.err


def test_one_medium_that_fails_does_not_stop_the_others(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = targets(tmp_path, 3)
    broken = os.stat(cards[1]).st_ino  # noqa: PTH116
    original = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if offset > 3 * MIB and os.fstat(descriptor).st_ino == broken:
            raise OSError(5, "Input/output error")
        return original(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert main(["flash", str(image), *map(str, cards), "--file", "--json"]) == 1
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert [result["verdict"] for result in results] == ["good", "failed", "good"]
    assert "Input/output error; its start is blank" in results[1]["reason"]
    assert "1 of 3 media are not good" in printed.err
    assert not any(cards[1].read_bytes()[:MIB])


def test_a_medium_that_loses_what_it_was_given_is_faulty_and_blank(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [card] = targets(tmp_path, 1)
    original = os.pwrite

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        if offset == 3 * MIB:
            data = bytes(data[:777]) + bytes([data[777] ^ 4]) + bytes(data[778:])
        return original(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    [result] = flash(image, for_image(image), [card], Lines([card], 1, sys.stderr), threading.Event())
    assert result.verdict == "faulty"
    assert [(fault.first_byte, fault.bytes) for fault in result.faults] == [(3 * MIB + 777, 1)]
    assert not any(card.read_bytes()[:MIB])


def test_every_single_byte_fault_in_mapped_blocks_is_found(image: Path, tmp_path: Path) -> None:
    [card] = targets(tmp_path, 1)
    block_map = for_image(image)
    flash(image, block_map, [card], Lines([card], 1, sys.stderr), threading.Event())
    source = random.Random(3)  # noqa: S311
    extents = mapped(image)
    ends = [extents[0][0], extents[-1][0] + extents[-1][1] - 1]
    inside = [start + source.randrange(length) for start, length in source.choices(extents, k=18)]
    for offset in (*ends, *inside):
        with card.open("rb+") as file:
            file.seek(offset)
            [byte] = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ (1 << source.randrange(8))]))
            file.flush()
            found = read_back(image, block_map, card)
            assert [(fault.first_byte, fault.last_byte, fault.bytes) for fault in found.faults] == [
                (offset, offset, 1)
            ]
            file.seek(offset)
            file.write(bytes([byte]))
    assert read_back(image, block_map, card).good


@needs("sfdisk")
def test_a_fault_is_named_by_its_partition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = partitioned_image(tmp_path / "image")
    card = tmp_path / "card"
    card.write_bytes(image.read_bytes())
    assert main(["verify", "device", str(image), str(card)]) == 0
    for offset, where in (
        (3 * MIB + 5, "partition rootfs-a"),
        (600, "partition table or boot loader"),
        (24 * MIB - 500, "backup of the partition table"),
    ):
        card.write_bytes(image.read_bytes())
        with card.open("rb+") as file:
            file.seek(offset)
            [byte] = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 1]))
        assert main(["verify", "device", str(image), str(card)]) == 1
        assert f"1 bytes differ between {offset} and {offset}: {where}" in capsys.readouterr().out


def test_a_medium_that_ends_too_early_is_found(image: Path, tmp_path: Path) -> None:
    card = tmp_path / "card"
    card.write_bytes(image.read_bytes())
    with card.open("rb+") as file:
        file.truncate(11 * MIB)
    found = read_back(image, for_image(image), card)
    assert [fault.first_byte for fault in found.faults] == [11 * MIB, mapped(image)[-1][0]]
    assert found.faults[-1].bytes == mapped(image)[-1][1]


def test_an_image_that_was_changed_after_its_map_was_made_is_not_flashed(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [card] = targets(tmp_path, 1)
    Path(f"{image}.bmap").write_bytes(render(for_image(image)))
    with image.open("rb+") as file:
        file.seek(3 * MIB)
        file.write(b"other")
    assert main(["flash", str(image), str(card), "--file", "--json"]) == 1
    [result] = json.loads(capsys.readouterr().out)
    assert result["verdict"] == "failed"
    assert "are not those of its map: the image was changed, or is broken" in result["reason"]
    assert main(["verify", "device", str(image), str(card)]) == 1
    assert "the image was changed, or is broken" in capsys.readouterr().err


def test_refused_targets_are_in_the_result_and_the_others_are_written(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [card] = targets(tmp_path, 1)
    nothing = tmp_path / "sdz"
    assert main(["flash", str(image), str(nothing), str(card), "--file", "--json"]) == 1
    results = json.loads(capsys.readouterr().out)
    assert [result["verdict"] for result in results] == ["refused", "good"]
    assert "is the medium inserted" in results[0]["reason"]
    assert main(["flash", str(image), str(card)]) == 1
    assert "add --file" in capsys.readouterr().out


def test_the_ledger_knows_what_was_flashed_and_protects_devices_in_use(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = targets(tmp_path, 2)
    ledger = tmp_path / "ledger.sqlite"
    with Ledger(ledger) as opened:
        opened.plan({"edge-1": None, "edge-2": None}, 0)
    command = ["flash", str(image), *map(str, cards), "--file", "--ledger", str(ledger)]
    assert main(command) == 1
    assert "give it one with --medium" in capsys.readouterr().out
    assert main([*command, "--medium", "c1"]) == 1
    assert "--medium: expected one for each of 2 targets, got 1" in capsys.readouterr().err
    assert main([*command, "--medium", "reader", "--medium", "reader"]) == 1
    assert "both go to one medium only. Card readers often" in capsys.readouterr().out
    command += ["--medium", "c1", "--medium", "c2"]
    assert main([*command, "--device", "edge-1", "--device", "edge-2"]) == 0
    with Ledger(ledger) as opened:
        assert [(row["status"], row["medium"]) for row in opened.records()] == [
            ("provisioned", "c1"),
            ("provisioned", "c2"),
        ]
    capsys.readouterr()
    assert main([*command, "--json"]) == 1
    results = json.loads(capsys.readouterr().out)
    assert {result["verdict"] for result in results} == {"refused"}
    assert "flashing would erase its keys" in results[0]["reason"]


def test_stopping_leaves_a_medium_that_nothing_boots_from(image: Path, tmp_path: Path) -> None:
    cards = targets(tmp_path, 2)
    stop = threading.Event()

    class Impatient(Lines):
        def advance(self, number: int, phase: str, more: int) -> None:
            super().advance(number, phase, more)
            if number == 0 and phase == "reading back":
                stop.set()

    results = flash(image, for_image(image), cards, Impatient(cards, MIB, sys.stderr), stop)
    assert results[0].verdict == "interrupted"
    assert "not read back whole; its start is blank" in results[0].reason
    for card, result in zip(cards, results, strict=True):
        if result.verdict == "interrupted":
            assert not any(card.read_bytes()[:MIB])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_program_with_a_clear_state(tmp_path: Path, number: signal.Signals) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.write(b"\x5a" * (64 * MIB))
    [card] = targets(tmp_path, 1)
    command = [sys.executable, "-m", "firmware_tools", "flash", image, card, "--file", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        while card.read_bytes()[0] and program.poll() is None:  # until it has begun
            time.sleep(0.005)
        program.send_signal(number)
        out, err = program.communicate(timeout=60)
    [result] = json.loads(out)
    if result["verdict"] != "good":  # it may have been quicker
        assert result["verdict"] == "interrupted"
        assert "flash it again" in result["reason"]
        assert "1 of 1 media are not good" in err
        assert program.returncode == 1
        assert not any(card.read_bytes()[:MIB])


def test_a_target_that_was_pulled_out_meanwhile_fails(image: Path, tmp_path: Path) -> None:
    card = tmp_path / "gone"
    lines = Lines([card], 1, sys.stderr)
    [result] = flash(image, for_image(image), [card], lines, threading.Event())
    assert (result.verdict, result.bytes_written) == ("failed", 0)
    assert "No such file" in result.reason


def test_stopping_before_the_beginning_leaves_media_as_they_are(image: Path, tmp_path: Path) -> None:
    [card] = targets(tmp_path, 1)
    stop = threading.Event()
    stop.set()
    [result] = flash(image, for_image(image), [card], Lines([card], 1, sys.stderr), stop)
    assert (result.verdict, result.reason) == ("interrupted", "nothing was written to it")
    assert card.read_bytes()[:MIB] == b"\xa5" * MIB


def test_bars_for_a_terminal(image: Path, tmp_path: Path) -> None:
    pytest.importorskip("rich")
    cards = targets(tmp_path, 2)
    with (tmp_path / "terminal").open("w") as file:
        block_map = for_image(image)
        with Bars(cards, block_map.mapped_bytes, file) as bars:
            results = flash(image, block_map, cards, bars, threading.Event())
    assert {result.verdict for result in results} == {"good"}
    assert "card-1 good" in (tmp_path / "terminal").read_text().replace("\n", "")
