"""How much one device may send and pull, and when one that sends rubbish is quarantined: table `[limits]`.

Token buckets (a bucket of N refills at N per hour, so an hour's worth may come at once) and a sliding window.
Nothing here knows messages; the caller says who sent how many bytes, and passes the clock, which may go back.

The bounds stand far above what an honest device does: one that was cut off sends up to 256 updates again at
once, and again 20 s later; one that pulls a package of 200 MB on a fast network asks for up to 3,400 chunks
within seconds. They bound what a broken or hostile one costs the others. A message beyond them is dropped
without an answer, and an honest device sends it again.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from protocol.field_checks import check_range

MESSAGES, BYTES, CHUNK_BYTES = "messages_per_minute", "bytes_per_hour", "chunk_bytes_per_hour"
REASONS = (MESSAGES, BYTES, CHUNK_BYTES)
"""What `RateLimiter` answers: the setting that an operator would raise."""
UNKNOWN = ""
"""Stands for every name that is not registered: a hostile client of the broker may invent any number."""

MIB = 1024 * 1024
SWEEP_SECONDS = 60.0
HOUR = 3600.0


@dataclass(frozen=True)
class LimitsPolicy:
    """What one device may cost the server."""

    messages_per_minute: int = 1200
    """From one device, of all kinds, in the long run."""
    messages_burst: int = 6000
    """Messages that may come at once."""
    bytes_per_hour: int = 2048 * MIB
    """From one device: 256 updates of the largest size that is accepted by default fit in at once."""
    chunk_bytes_per_hour: int = 1024 * MIB
    """Of packages and releases, to one device. A request of 100 bytes makes the server send 16 chunks, with
    960 KiB. A larger package than this takes longer than an hour."""
    invalid_before_quarantine: int = 50
    """Messages with the device's own signature that no honest device makes (see refusals.MISBEHAVIOUR);
    0: no device is quarantined for them."""
    invalid_window_hours: float = 24.0
    """The time within which they count."""

    def __post_init__(self) -> None:
        check_range("messages_per_minute", self.messages_per_minute, 1, 1_000_000)
        check_range("messages_burst", self.messages_burst, 1, 1_000_000)
        # Below the largest message, or the largest answer to one request, a bucket would never let it pass.
        check_range("bytes_per_hour", self.bytes_per_hour, 32 * MIB, 1 << 50)
        check_range("chunk_bytes_per_hour", self.chunk_bytes_per_hour, 32 * MIB, 1 << 50)
        check_range("invalid_before_quarantine", self.invalid_before_quarantine, 0, 1000)
        check_range("invalid_window_hours", self.invalid_window_hours, 0.01, 24 * 366)


class _Bucket:
    """Tokens that come back with time."""

    __slots__ = ("_at", "_capacity", "_per_second", "_tokens")

    def __init__(self, capacity: float, per_second: float) -> None:
        self._capacity, self._per_second = capacity, per_second
        self._tokens, self._at = capacity, -math.inf

    def refill(self, now: float) -> None:
        # Where the clock went back, nothing comes for the time that did not pass, and time counts from here.
        passed = now - self._at if now > self._at else 0.0
        self._tokens = min(self._capacity, self._tokens + passed * self._per_second)
        self._at = now

    def holds(self, amount: float) -> bool:
        return amount <= self._tokens

    def take(self, amount: float) -> None:
        self._tokens -= amount

    @property
    def full(self) -> bool:
        return self._tokens >= self._capacity


class _Buckets:
    """Of one device: `messages` and `bytes` for what it sends, `chunks` for what it pulls."""

    __slots__ = ("bytes", "chunks", "messages")

    def __init__(self, policy: LimitsPolicy) -> None:
        self.messages = _Bucket(policy.messages_burst, policy.messages_per_minute / 60)
        self.bytes = _Bucket(policy.bytes_per_hour, policy.bytes_per_hour / HOUR)
        self.chunks = _Bucket(policy.chunk_bytes_per_hour, policy.chunk_bytes_per_hour / HOUR)

    def refill(self, now: float) -> None:
        for bucket in (self.messages, self.bytes, self.chunks):
            bucket.refill(now)

    @property
    def full(self) -> bool:
        return self.messages.full and self.bytes.full and self.chunks.full


class RateLimiter:
    """Counts what every device sends and pulls.

    Memory: some 500 bytes for each registered device that did something within the last hour. All names that
    are not registered share one set of buckets, under `UNKNOWN`; while someone floods under such names, a
    device that registers with its first message (enrolment = "open") has to try again.
    """

    def __init__(self, policy: LimitsPolicy) -> None:
        self._policy = policy
        self._buckets: dict[str, _Buckets] = {}
        self._swept_at = -math.inf

    def take(self, device: str, size: int, now: float) -> str:
        """Count a message that came; '': it may be handled, else the limit that it exceeds, of `REASONS`.

        What is turned away costs nothing: a device that was cut off is back as soon as there are tokens.

        Args:
            device: the REGISTERED device whose name the topic has, else `UNKNOWN`. No signature is checked
                before: that is part of the work that is bounded here. So who may publish on a device's topic
                against the broker's access rules can use up what the device may send, and nothing more.
            size: bytes of topic and payload.
            now: Unix seconds.
        """
        buckets = self._of(device, now)
        if not buckets.messages.holds(1):
            return MESSAGES
        if not buckets.bytes.holds(size):
            return BYTES
        buckets.messages.take(1)
        buckets.bytes.take(size)
        return ""

    def take_chunks(self, device: str, size: int, now: float) -> str:
        """Count chunks of `size` bytes that are about to be sent to a registered device; as `take`."""
        buckets = self._of(device, now)
        if not buckets.chunks.holds(size):
            return CHUNK_BYTES
        buckets.chunks.take(size)
        return ""

    def __len__(self) -> int:
        """Names that buckets are kept for."""
        return len(self._buckets)

    def _of(self, device: str, now: float) -> _Buckets:
        self._sweep(now)
        buckets = self._buckets.get(device)
        if buckets is None:
            buckets = self._buckets[device] = _Buckets(self._policy)
        buckets.refill(now)
        return buckets

    def _sweep(self, now: float) -> None:
        """Forget buckets that are full again: new ones are no different."""
        if 0 <= now - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = now
        for buckets in self._buckets.values():
            buckets.refill(now)
        self._buckets = {device: buckets for device, buckets in self._buckets.items() if not buckets.full}


class Misbehaviour:
    """Counts messages of a device that are signed by it and that no honest device makes.

    ONLY for messages whose signature is the device's own, and whose reason is one of
    `refusals.MISBEHAVIOUR`. Without the signature anyone who can publish on a device's topic could have it
    quarantined with rubbish. With other reasons anyone who has recorded its honest messages could, by playing
    them to the server when they are late.

    Memory: `invalid_before_quarantine` numbers for each device that misbehaved within the window. A restart
    of the server begins to count anew.
    """

    def __init__(self, policy: LimitsPolicy) -> None:
        self._limit = policy.invalid_before_quarantine
        self._window = policy.invalid_window_hours * HOUR
        self._noted: dict[str, deque[float]] = {}
        self._swept_at = -math.inf

    def note(self, device: str, now: float) -> bool:
        """Count such a message; True: quarantine the device now, and its count begins anew.

        Args:
            device: the registered device that signed it.
            now: Unix seconds. Where the clock went back, what was noted counts as of now.
        """
        if not self._limit:
            return False
        self._sweep(now)
        times = self._current(self._noted.pop(device, ()), now)
        times.append(now)
        if len(times) >= self._limit:
            return True
        self._noted[device] = times
        return False

    def __len__(self) -> int:
        """Devices that something is noted of."""
        return len(self._noted)

    def _current(self, times: Iterable[float], now: float) -> deque[float]:
        return deque((min(at, now) for at in times if now - at < self._window), self._limit)

    def _sweep(self, now: float) -> None:
        if 0 <= now - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = now
        current = {device: self._current(times, now) for device, times in self._noted.items()}
        self._noted = {device: times for device, times in current.items() if times}
