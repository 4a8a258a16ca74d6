"""What the device says of itself: its state, and how its gate decided. Figures, never data."""

import resource
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from agent.firmware import Firmware
from agent.participant import State
from agent.store import Store
from agent.voice import Voice
from protocol.messages import DeviceState, Report, sign_message
from runtime import memory

REPEAT_SECONDS = 6 * 3600.0
"""How often state and report are said again: nobody acknowledges them, and a full queue drops them."""


class Reporter:
    """Publishes state and report of one device."""

    def __init__(
        self,
        store: Store,
        voice: Voice,
        *,
        now: Callable[[], float],
        traffic: Callable[[], tuple[int, int]],
        firmware: Callable[[], Firmware] = Firmware,
    ) -> None:
        """Begin a session.

        Args:
            store: holds release, choice, gains and counts of windows; counts the sessions.
            voice: signs and publishes what is said.
            now: Unix seconds.
            traffic: bytes (up, down) of this connection.
            firmware: what the device's image says of itself now.
        """
        self._store = store
        self._voice = voice
        self._now = now
        self._traffic = traffic
        self._firmware = firmware
        self._told = firmware()
        self._session = store.next_session(int(now() * 1000))
        self._said_at = now()
        self.labelled = 0
        """Labelled windows that the device can train on now."""

    def due(self) -> bool:
        """Whether it is time to say everything again."""
        long_ago = not 0 <= self._now() - self._said_at < REPEAT_SECONDS  # clocks go back, too
        return long_ago or self._firmware() != self._told

    def state(self, state: State, waits: str) -> None:
        """Publish what the device runs."""
        self._said_at, self._told = self._now(), self._firmware()
        self._voice.say("state", self._state(state, waits, online=True), retain=True)

    def signed_state(self, state: State, waits: str, *, online: bool) -> tuple[str, bytes]:
        """Topic and message of what the device runs.

        Args:
            state: of the participant.
            waits: why no updates are sent at the moment.
            online: False in the last will.
        """
        topic = self._voice.topic("state")
        return topic, sign_message(self._state(state, waits, online=online), self._voice.key, topic)

    def report(self, problems: tuple[str, ...]) -> None:
        """Publish the gate's verdict on the release that is held, and what taking part has cost so far.

        Args:
            problems: recordings that cannot be read, with the reason.
        """
        store, usage = self._store, resource.getrusage(resource.RUSAGE_SELF)
        message = Report(
            store.state().release,
            store.text("choice"),
            store.number("holdout_windows", 0),
            float(store.text("gain")),
            store.number("labelled_windows", 0),
            store.number("unlabelled_windows", 0),
            usage.ru_utime + usage.ru_stime,
            memory.peak_resident_bytes() or usage.ru_maxrss * 1024,
            *self._traffic(),
            problems,
            float(store.text("personal_gain")),
            float(store.text("ensemble_gain") or 0),  # absent in a store that an earlier version wrote
            float(store.text("release_gain") or 0),
            store.number("compared_with", -1),
            store.number("domain", 0),
            float(store.text("discriminant_gain") or 0),
            float(store.text("combined_gain") or 0),
        )
        envelope = sign_message(message, self._voice.key, self._voice.topic("report"))
        self._voice.seal("report", envelope, message.release)

    def _state(self, state: State, waits: str, *, online: bool) -> DeviceState:
        """A release counts as held only once it was adopted."""
        return DeviceState(
            online,
            self._session,
            self._voice.key.public.raw,
            _agent_version(),
            state.package,
            state.release if state.base else -1,
            self.labelled,
            waits,
            self._told.version,
            self._told.update,
        )


def _agent_version() -> str:
    try:
        return version("graftwork")
    except PackageNotFoundError:
        return "unknown"
