"""What training may take: boards of files in the place of /sys, a CPU clock by hand."""

from pathlib import Path

import pytest

from agent.config import LimitsConfig
from agent.resources import READ_SECONDS, Battery, Resources, read_battery, read_celsius
from tests.builders import Clock


class Board:
    """A /sys of plain files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def zone(self, number: int, temp: str) -> None:
        self._write(f"class/thermal/thermal_zone{number}/temp", temp)

    def supply(self, name: str, **files: str) -> None:
        for file, text in files.items():
            self._write(f"class/power_supply/{name}/{file}", text)

    def _write(self, path: str, text: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


class Device:
    """Resources of a board, looked at whenever asked."""

    def __init__(self, board: Board, **limits: float) -> None:
        self.clock, self.resident = Clock(), 0
        self.cpu = 0.0
        self.resources = Resources(
            LimitsConfig(**limits),  # type: ignore[arg-type]
            self.clock,
            system=board.folder,
            slice_seconds=1.0,
            cpu_seconds=lambda: self.cpu,
            resident_bytes=lambda: self.resident,
        )

    def reason(self) -> str:
        self.clock.advance(READ_SECONDS)
        return self.resources.pause_reason()

    def step(self) -> None:
        self.cpu += 0.3


def test_a_board_without_sensors_is_never_paused(board: Board) -> None:
    assert read_celsius(board.folder) is None
    assert read_battery(board.folder) is None
    assert Device(board).reason() == ""


def test_the_hottest_plausible_zone_counts(board: Board) -> None:
    for number, temp in enumerate(["41000", "67500", "-274000", "none", "3000000"]):
        board.zone(number, temp)
    assert read_celsius(board.folder) == 67.5


def test_a_hot_board_rests_until_it_is_clearly_cooler(board: Board) -> None:
    device = Device(board, maximum_celsius=80.0)
    for temp, resting in [(79, False), (81, True), (78, True), (75, False), (79, False)]:
        board.zone(0, str(temp * 1000))
        assert bool(device.reason()) is resting, temp
    board.zone(0, "91000")
    assert device.reason() == "hot: 91 degrees Celsius, goes on at 75"


def test_a_low_battery_rests_until_it_is_charged(board: Board) -> None:
    device = Device(board, minimum_battery=0.3)
    steps = [
        ("40", "Discharging", False),
        ("29", "Discharging", True),
        ("32", "Discharging", True),
        ("32", "Charging", False),
        ("36", "Discharging", False),
    ]
    for capacity, status, resting in steps:
        board.supply("BAT0", type="Battery", capacity=capacity, status=status)
        assert bool(device.reason()) is resting, (capacity, status)


def test_mains_and_batteries_of_attached_devices_do_not_count(board: Board) -> None:
    board.supply("AC", type="Mains", online="1")
    board.supply("mouse", type="Battery", scope="Device", capacity="3", status="Discharging")
    board.supply("broken", type="Battery", capacity="?", status="Discharging")
    assert read_battery(board.folder) is None
    board.supply("BAT0", type="Battery", capacity="70", status="Discharging")
    board.supply("BAT1", type="Battery", capacity="20", status="Discharging")
    assert read_battery(board.folder) == Battery(0.2, discharging=True)


def test_sensors_are_not_read_at_every_step(board: Board) -> None:
    device = Device(board)
    assert device.reason() == ""
    board.zone(0, "120000")
    assert device.resources.pause_reason() == ""
    device.clock.advance(READ_SECONDS)
    assert device.resources.pause_reason().startswith("hot")


def test_a_slice_ends_after_its_cpu_seconds_and_rests_for_the_others(board: Board) -> None:
    device = Device(board, cpu_share=0.25)
    rest = device.resources.work(device.step, lambda: False)
    assert device.cpu == pytest.approx(1.2)
    assert rest == pytest.approx(3.6)
    whole = Device(board)
    assert whole.resources.work(whole.step, lambda: whole.cpu > 0.5) == 0.0
    assert whole.cpu == pytest.approx(0.6)


def test_above_the_memory_ceiling_training_waits(board: Board) -> None:
    device = Device(board, memory_bytes=80_000_000)
    device.resident = 79_000_000
    assert device.reason() == ""
    device.resident = 95_000_000
    assert device.reason() == "memory: 95 MB resident, the ceiling is 80 MB"


def test_the_ceiling_decides_how_many_windows_are_held(board: Board) -> None:
    device = Device(board, memory_bytes=80_000_000, training_windows=20_000)
    device.resident = 68_000_000
    assert device.resources.most_windows(1000) == 1000
    assert device.resources.most_windows(1) == 20_000
    device.resident = 90_000_000
    assert device.resources.most_windows(1000) == 0
    assert Device(board).resources.most_windows(10**9) == 20_000


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"nice": 20}, "nice: expected 0 to 19"),
        ({"cpu_share": 0.0}, "cpu_share: expected 0.01 to 1"),
        ({"memory_bytes": 1000}, "memory_bytes: expected 0 or at least 32 MiB"),
        ({"maximum_celsius": 400.0}, "maximum_celsius: expected 20 to 150"),
        ({"minimum_battery": 2.0}, "minimum_battery: expected 0 to 0.95"),
        ({"replay_windows": -1}, "replay_windows: expected 0 to 100,000"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LimitsConfig(**limits)  # type: ignore[arg-type]
