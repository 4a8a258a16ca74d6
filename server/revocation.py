"""Revocation at the broker: the list of revoked certificates, and an end to the sessions of those on it.

The broker reads the list when it starts, so the list is written and the broker started anew first; then the
server takes each session over and closes it, with what was queued for it. Killed in between, the server goes
on with it when it starts: the database knows which sessions were not ended yet, and a note beside the list
whether the broker has read it.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from runtime.broker import BrokerConfig
from server import broker_restart
from server.authority import DIRECTORY, Authority
from server.broker_config import note_revocations_read, revocations_read, write_revocations
from server.config import ServerConfig
from server.errors import ServerError
from server.sessions import end_session
from server.store import Store

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.5
"""Between two tries while the broker starts."""
START_SECONDS = 15.0
"""A broker that is not back by then needs somebody's hand."""
RETRY_SECONDS = 2.0


class Revocations:
    """Brings revocations to the broker; `tick` moves it on."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        broker: BrokerConfig,
        now: Callable[[], float],
        *,
        directory: Path,
        restart_command: Sequence[str] = (),
        ended: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        """Take what is needed.

        Args:
            store: knows who is revoked.
            authority: signs the list.
            broker: the listener for services.
            now: Unix seconds.
            directory: what `broker-config` wrote.
            ended: takes the seconds from a revocation to the end of the session.
            restart_command: has the broker started anew; empty: SIGTERM to the process in its pid file,
                which its supervisor starts again.
        """
        self._store = store
        self._authority = authority
        self._broker = broker
        self._now = now
        self._directory = directory
        self._restart_command = tuple(restart_command)
        self._ended = ended
        self._listed: tuple[int, float] | None = None
        """What the list was made of that the broker has read."""
        self._unseen = False
        """Whether no broker was there when the list was written."""
        self._restarted_at = -math.inf
        self._due, self._pause = -math.inf, 0.0
        self._complaint = ""

    def tick(self) -> None:
        """Do what can be done now; what fails is tried again."""
        if 0 < self._due - self._now() <= self._pause:  # clocks go back, too
            return
        try:
            waiting = self._store.sessions_to_end()  # first: who comes in between is on no list yet
            revocations = self._store.revocations()
            if revocations != self._listed:
                if not self._is_read(self._store.revoked_serials(self._now())):
                    self._publish()
                    return
                self._listed = revocations
            for device, since in waiting.items():
                self._end(device, since)
        except ServerError as error:
            self._complain(error)
        else:
            self._complaint = ""

    def _is_read(self, entries: Iterable[tuple[int, float]]) -> bool:
        """Whether the broker has read all of that: before the server started, or by another process' hand."""
        wanted = {serial for serial, _ in entries}
        return not wanted or wanted <= revocations_read(self._directory, self._authority)

    def _publish(self) -> None:
        """Write the list and have the broker read it, unless another process is at it; the next tick looks.

        Raises:
            ServerError: it cannot be written, or the broker cannot be started anew.
        """
        self._wait(SETTLE_SECONDS)
        with broker_restart.alone(self._directory) as alone:
            if not alone:
                return
            now = self._now()
            crl = write_revocations(self._directory, self._authority, self._store.revoked_serials(now), now)
            self._unseen = not broker_restart.restart(self._directory, self._restart_command)
            note_revocations_read(self._directory, crl)
        if not self._unseen:
            self._restarted_at = self._now()
            log.info("the broker was ended, so that it reads the list of revoked certificates")
        self._wait(SETTLE_SECONDS)

    def _end(self, device: str, since: float) -> None:
        end_session(self._broker, device)
        self._ended(self._now() - since)
        self._store.note_session_ended(device, self._now())
        log.warning("device=%s: the session of a key that was revoked was ended", device)
        if self._unseen and broker_restart.find(self._directory) is None:
            note_revocations_read(self._directory, b"")
            self._unseen = False
            raise ServerError(
                f"a broker answers, but {self._directory / broker_restart.PID_FILE} names none that is here: "
                "it may not have read the list; start it anew, and set trust.restart_command"
            )

    def _complain(self, error: ServerError) -> None:
        """Once at ERROR; a broker that is just starting may take its time."""
        starting = 0 <= self._now() - self._restarted_at < START_SECONDS
        self._wait(SETTLE_SECONDS if starting else RETRY_SECONDS)
        level = logging.DEBUG if starting or str(error) == self._complaint else logging.ERROR
        gone = not self._restart_command and broker_restart.find(self._directory) is None
        hint = "; it does not run: what supervises it must start it again whenever it ends" if gone else ""
        log.log(level, "revocations do not reach the broker, which is tried again: %s%s", error, hint)
        if not starting:
            self._complaint = str(error)

    def _wait(self, seconds: float) -> None:
        self._due, self._pause = self._now() + seconds, seconds


def open_revocations(
    config: ServerConfig,
    store: Store,
    now: Callable[[], float],
    ended: Callable[[float], None] = lambda _seconds: None,
) -> Revocations | None:
    """Revocation as the server is configured for it; None: no authority, or no directory of the broker.

    Raises:
        ServerError: the authority's files are damaged.
    """
    authority, policy = open_authority(config), config.trust
    if authority is None or not policy.broker_directory:
        return None
    return Revocations(
        store,
        authority,
        config.broker,
        now,
        directory=Path(policy.broker_directory),
        restart_command=policy.restart_command,
        ended=ended,
    )


def open_authority(config: ServerConfig) -> Authority | None:
    """The fleet's certificate authority; None: none was made.

    Raises:
        ServerError: its files are damaged.
    """
    directory = Path(config.data_directory) / DIRECTORY
    return Authority.open(directory) if directory.exists() else None
