"""What training may take of the device: its share of the CPU, and none of it when the board is hot or low.

Training is cut into slices between which the agent stays reachable. Temperature and battery are read from
Linux's /sys (thermal zones and power supplies); a board without such files is never paused by them. Once
paused, training waits until things are clearly better, so that it does not flicker around a limit.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.config import LimitsConfig
from runtime import memory

SYSTEM = Path("/sys")
SLICE_SECONDS = 0.2
READ_SECONDS = 5.0
"""How often the sensors are read."""
COOLER_BY = 5.0
"""Degrees below the limit at which training goes on."""
FULLER_BY = 0.05
"""Share of the battery above the limit at which training goes on."""


@dataclass(frozen=True)
class Battery:
    """The device's main battery."""

    charge: float
    """0 (empty) to 1."""
    discharging: bool


class Resources:
    """Decides when training works and when it rests."""

    def __init__(
        self,
        limits: LimitsConfig,
        now: Callable[[], float],
        *,
        system: Path = SYSTEM,
        slice_seconds: float = SLICE_SECONDS,
        cpu_seconds: Callable[[], float] = time.process_time,
        resident_bytes: Callable[[], int] = memory.resident_bytes,
    ) -> None:
        """Take the limits of a device.

        Args:
            limits: what its owner allows.
            now: seconds, to space readings.
            system: where sysfs is mounted.
            slice_seconds: CPU seconds of work between two looks at the world.
            cpu_seconds: used by this process so far.
            resident_bytes: of this process now.
        """
        self._limits = limits
        self._now = now
        self._system = system
        self._slice = slice_seconds
        self._cpu_seconds = cpu_seconds
        self._resident_bytes = resident_bytes
        self._read_at = float("-inf")
        self._reason = ""

    def pause_reason(self) -> str:
        """Why training must wait now; empty when it may go on."""
        now = self._now()
        if not 0 <= now - self._read_at < READ_SECONDS:
            self._read_at = now
            self._reason = self._hot() or self._low() or self._large()
        return self._reason

    def work(self, step: Callable[[], None], finished: Callable[[], bool]) -> float:
        """Take steps until finished or until the slice is used up.

        Returns:
            Seconds to rest, so that training stays within its share of one CPU.
        """
        started = self._cpu_seconds()
        used = 0.0
        while not finished() and used < self._slice:
            step()
            used = self._cpu_seconds() - started
        return used * (1 / self._limits.cpu_share - 1)

    def most_windows(self, feature_size: int) -> int:
        """Labelled windows that training may hold in memory."""
        if not self._limits.memory_bytes:
            return self._limits.training_windows
        free = self._limits.memory_bytes - self._resident_bytes()
        # A window's features stand in memory up to three times: as gathered, as split, beside the replay.
        fitting = free // (3 * 4 * feature_size)
        return int(min(self._limits.training_windows, max(fitting, 0)))

    def _hot(self) -> str:
        celsius, limit = read_celsius(self._system), self._limits.maximum_celsius
        if celsius is None or celsius <= limit - (COOLER_BY if self._reason else 0):
            return ""
        return f"hot: {celsius:.0f} degrees Celsius, goes on at {limit - COOLER_BY:.0f}"

    def _low(self) -> str:
        battery, limit = read_battery(self._system), self._limits.minimum_battery
        if battery is None or not battery.discharging:
            return ""
        if battery.charge >= limit + (FULLER_BY if self._reason else 0):
            return ""
        return f"on battery: {battery.charge:.0%} left, goes on at {limit + FULLER_BY:.0%} or on mains"

    def _large(self) -> str:
        limit = self._limits.memory_bytes
        if not limit or self._resident_bytes() <= limit:
            return ""
        memory.release_start_up()
        resident = self._resident_bytes()
        if resident <= limit:
            return ""
        return f"memory: {resident / 1e6:.0f} MB resident, the ceiling is {limit / 1e6:.0f} MB"


def read_celsius(system: Path) -> float | None:
    """Temperature of the hottest thermal zone; None where there is none.

    Zones that are switched off report nonsense (-274 degrees), so only plausible values count.
    """
    readings = [
        value / 1000
        for zone in _folders(system / "class" / "thermal", "thermal_zone*")
        if (value := _number(zone / "temp")) is not None and -50_000 < value < 200_000
    ]
    return max(readings, default=None)


def read_battery(system: Path) -> Battery | None:
    """The emptiest system battery; None where there is none. Batteries of attached devices do not count."""
    found = []
    for supply in _folders(system / "class" / "power_supply", "*"):
        if _text(supply / "type") != "Battery" or _text(supply / "scope") == "Device":
            continue
        capacity = _number(supply / "capacity")
        if capacity is not None and 0 <= capacity <= 100:
            found.append(Battery(capacity / 100, _text(supply / "status") == "Discharging"))
    return min(found, key=lambda battery: battery.charge, default=None)


def _folders(parent: Path, pattern: str) -> Iterator[Path]:
    return iter(sorted(parent.glob(pattern))) if parent.is_dir() else iter(())


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):  # a sensor may be there and still not answer
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None
