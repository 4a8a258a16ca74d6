"""The crash matrix: which processes are killed, after which event, and when they come back. Pure and seeded.

Victims times events are its cells. The seed decides their order and everything within a cell: device, round,
chunk, delays. A point depends on seed and number alone, so that it can be repeated by itself.
"""

import random
from dataclasses import dataclass

DEVICES = ("pump-1", "fan-1", "gearbox-1")
ROUNDS = 3
CHUNKS = 6
"""Of the package, without the last one: when that is here, the package is installed at once."""

EVENTS = (
    "started",
    "chunk",
    "installed",
    "adopted",
    "opened",
    "answered",
    "journalled",
    "receipt",
    "released",
)
"""In the order of a life; see `Event`."""
VICTIMS = {
    "agent": ("agent",),
    "agent twice": ("agent", "agent"),
    "server": ("server",),
    "server twice": ("server", "server"),
    "broker": ("broker",),
    "broker, memory lost": ("broker-",),
    "broker twice": ("broker", "broker-"),
    "agent and server": ("agent+server",),
    "agent and broker": ("agent+broker",),
    "server and broker": ("server+broker-",),
    "all": ("agent+server+broker-",),
}
"""What is killed, blow after blow; `+` joins what dies at once, and "broker-" loses its persisted queue."""
AGAIN_SECONDS = (0.02, 1.5)
"""From a restart to the second blow: while the program starts, connects, catches up."""
DOWN_SECONDS = 0.8
"""Longest time that a process stays away."""


@dataclass(frozen=True)
class Event:
    """Something that happens once in a federation's life, and can be seen from outside."""

    kind: str
    """One of EVENTS. Of all processes: started. Of a device: chunk (it keeps the chunk `number` of the
    package), installed (it put the package to use), adopted (it trained from the release `number`), answered
    (its update of the round `number` is in its outbox), receipt (the server's word on it is here). Of the
    server: opened (the round `number`), journalled (`count` updates of it), released (its release is kept).
    """
    device: str = ""
    number: int = 0
    count: int = 0

    def __str__(self) -> str:
        texts = (
            self.kind,
            self.device,
            str(self.number) if self.kind not in ("started", "installed") else "",
        )
        return " ".join(text for text in (*texts, f"x{self.count}" if self.count else "") if text)


@dataclass(frozen=True)
class Blow:
    """Processes that are killed at the same time and started again one by one."""

    after_seconds: float
    """Since the event; of a second blow, since the last restart."""
    processes: tuple[str, ...]
    """Device names, "server", "broker"; in the order in which they come back."""
    down_seconds: tuple[float, ...]
    """How long each waits before it is started again, after the one before it."""
    forget: bool
    """Whether the broker loses what it persisted."""


@dataclass(frozen=True)
class Point:
    """One run of the matrix."""

    number: int
    seed: int
    victims: str
    event: Event
    blows: tuple[Blow, ...]

    def __str__(self) -> str:
        blows = []
        for blow in self.blows:
            forget = " (memory lost)" if blow.forget else ""
            back = ", ".join(f"{seconds:.3f}" for seconds in blow.down_seconds)
            blows.append(
                f"{blow.after_seconds:.3f} s: {'+'.join(blow.processes)}{forget}, back after {back} s"
            )
        return (
            f"point {self.number} of seed {self.seed}: {self.event}, then after {'; then after '.join(blows)}"
        )


def make_point(seed: int, number: int) -> Point:
    """Make the point `number`, 0 or more; every len(VICTIMS) x len(EVENTS) points visit each cell once."""
    lap, place = divmod(number, len(VICTIMS) * len(EVENTS))
    order = random.Random(f"order {seed} {lap}")  # noqa: S311 - a test plan, no secret
    row, column = divmod(place, len(VICTIMS))
    # A Latin square: a few points in sequence have every victim and every event already.
    victims = order.sample(list(VICTIMS), len(VICTIMS))[column]
    kind = order.sample(EVENTS, len(EVENTS))[(row + column) % len(EVENTS)]
    draw = random.Random(f"point {seed} {number}")  # noqa: S311
    event = _event(kind, draw)
    # Of the agents, mostly the one that the event is about.
    agent = event.device if event.device and draw.random() < 0.7 else draw.choice(DEVICES)
    blows = []
    for index, names in enumerate(VICTIMS[victims]):
        processes = [agent if name == "agent" else name.rstrip("-") for name in names.split("+")]
        draw.shuffle(processes)
        after = draw.uniform(*AGAIN_SECONDS) if index else _delay(kind, draw)
        down = tuple(draw.choice((0.0, draw.uniform(0.0, DOWN_SECONDS))) for _ in processes)
        blows.append(Blow(after, tuple(processes), down, names.endswith("-")))
    return Point(number, seed, victims, event, tuple(blows))


def _event(kind: str, draw: random.Random) -> Event:
    device = draw.choice(DEVICES) if kind in ("chunk", "installed", "adopted", "answered", "receipt") else ""
    count = draw.randint(1, len(DEVICES)) if kind == "journalled" else 0
    first, last = {
        "chunk": (0, CHUNKS - 1),
        "adopted": (0, ROUNDS),
        "started": (0, 0),
        "installed": (0, 0),
    }.get(kind, (1, ROUNDS))
    return Event(kind, device, draw.randint(first, last), count)


def _delay(kind: str, draw: random.Random) -> float:
    """At once, within a few steps of the program, or any time until about the next event."""
    if kind == "started":
        return draw.uniform(0.0, 1.5)
    return draw.choice((0.0, draw.uniform(0.0, 0.03), draw.uniform(0.0, 0.6)))
