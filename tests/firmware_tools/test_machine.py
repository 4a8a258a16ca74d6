"""The virtual machine's life as QEMU's process shows it: restarts of the guest, switching off, failures."""

import sys
from pathlib import Path

import pytest

from firmware_tools.errors import FirmwareError
from firmware_tools.machine import OFF, Machine
from firmware_tools.machine_models import MachineModel

QEMU = """\
#!{python}
import pathlib, socket, sys
starts = pathlib.Path({folder!r}) / "starts"
number = len(starts.read_text()) + 1 if starts.exists() else 1
starts.write_text("x" * number)
serial = next(word for word in sys.argv if word.startswith("unix:"))[5:]
with socket.socket(socket.AF_UNIX) as channel:
    channel.connect(serial)
    channel.sendall(f"start {{number}}\\n".encode())
    {rest}
"""


def machine(folder: Path, rest: str) -> Machine:
    program, blank = folder / "qemu", folder / "blank"
    program.write_text(QEMU.format(python=sys.executable, folder=str(folder), rest=rest), "utf-8")
    program.chmod(0o755)
    blank.touch()
    return Machine(folder / "machine", blank, model=MachineModel(str(program), (), blank, blank, "none"))


def test_a_guest_that_restarts_itself_goes_on_in_a_new_process(tmp_path: Path) -> None:
    with machine(tmp_path, "number == 3 and channel.recv(1)") as running:
        running.expect("start 3")
        assert running.running
    assert (tmp_path / "machine" / "serial.log").read_text().split() == [
        "start",
        "1",
        "start",
        "2",
        "start",
        "3",
    ]


def test_what_was_typed_into_a_guest_that_was_just_going_is_lost(tmp_path: Path) -> None:
    with machine(tmp_path, "number == 2 and channel.recv(1)") as running:
        running.expect("start 1")
        running.send("anybody there?")
        running.expect("start 2")


@pytest.mark.parametrize("rest", [f"channel.sendall(b'{OFF}')", "sys.exit(1)"], ids=["off", "failed"])
def test_a_guest_that_is_off_or_a_qemu_that_failed_stays_off(tmp_path: Path, rest: str) -> None:
    with machine(tmp_path, rest) as running:
        with pytest.raises(FirmwareError, match="start 2"):
            running.expect("start 2")
        assert not running.running
    assert (tmp_path / "starts").read_text() == "x"


def test_a_machine_whose_power_is_cut_stays_off_until_it_is_started(tmp_path: Path) -> None:
    with machine(tmp_path, "channel.recv(1)") as running:
        running.expect("start 1")
        running.cut_power()
        assert not running.running
        with pytest.raises(FirmwareError):
            running.expect("start 2", 0.1)
        running.start()
        running.expect("start 2")
