"""The attack table: what is tried, what came of it, and who noticed.

An attack is a function that plays it and an honest control beside it: an attack that fails because nothing
works proves nothing, so a control that fails raises. Success is what the attacker wanted: a forged update
counted, another device's message read, an old release adopted.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Place = TypeVar("Place")
"""Where attacks are played: real processes, or a device in this process."""


@dataclass(frozen=True)
class Trace:
    """An entry in the log of somebody honest."""

    where: str = ""
    """"broker", "server" or "device"; empty: nobody noticed."""
    device: str = ""
    """Whom it names; empty: nobody. A device's own log is that device's."""
    reason: str = ""


NOTHING = Trace()


@dataclass(frozen=True)
class Finding:
    """What came of an attack."""

    succeeded: bool
    control: str
    """What an honest party did at the same time, and that it worked."""
    trace: Trace = NOTHING
    detail: str = ""
    """What the attacker got, or how much was tried."""


@dataclass(frozen=True)
class Attack(Generic[Place]):
    """One line of the table."""

    name: str
    tried: str
    play: Callable[[Place], Finding]
    passive: bool
    """Whether it leaves nothing that anybody honest could see, such as reading at the broker."""
    nameless: bool
    """Whether the attacker shows no name, so that none can be logged."""


@dataclass(frozen=True)
class Result:
    """A line that was played."""

    group: str
    name: str
    tried: str
    finding: Finding
    passive: bool
    nameless: bool

    @property
    def logged(self) -> bool:
        """Whether somebody honest wrote down the reason, and the device where one was shown."""
        trace = self.finding.trace
        return bool(trace.where and trace.reason) and (self.nameless or bool(trace.device))


@dataclass
class Attacks(Generic[Place]):
    """A group of attacks, played in this order."""

    group: str
    entries: list[Attack[Place]] = field(default_factory=list)

    def add(
        self, name: str, tried: str, *, passive: bool = False, nameless: bool = False
    ) -> Callable[[Callable[[Place], Finding]], Callable[[Place], Finding]]:
        """Decorator: enter a function into the table."""

        def enter(play: Callable[[Place], Finding]) -> Callable[[Place], Finding]:
            self.entries.append(Attack(name, tried, play, passive, nameless))
            return play

        return enter

    @property
    def names(self) -> list[str]:
        """In the order in which they are played."""
        return [attack.name for attack in self.entries]

    def play(self, place: Place, note: Callable[[Result], None]) -> None:
        """Play all of them.

        Args:
            place: where.
            note: told each result as it comes.

        Raises:
            AttackError: an honest control failed.
        """
        for attack in self.entries:
            finding = attack.play(place)
            note(Result(self.group, attack.name, attack.tried, finding, attack.passive, attack.nameless))


def summary(results: Iterable[Result]) -> dict[str, Any]:
    """Figures of a table: `logged` and `logged_reason_only` are shares of those that could be noticed."""
    results = list(results)
    visible = [result for result in results if not result.passive]
    reason_only = [result for result in visible if result.finding.trace.where and not result.logged]
    return {
        "attacks": len(results),
        "succeeded": sum(result.finding.succeeded for result in results),
        "logged": round(sum(result.logged for result in visible) / max(1, len(visible)), 3),
        "logged_reason_only": round(len(reason_only) / max(1, len(visible)), 3),
        "passive": len(results) - len(visible),
    }
