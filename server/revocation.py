"""Revocation at the broker: the list of revoked certificates, and an end to the sessions of those on it.

The broker takes no new connection of a certificate on the list, but a connection that stands goes on; so the
list is written and read again first, and then the server takes the session over and closes it. Killed in
between, the server goes on with it when it starts: the database knows which sessions were not ended yet.
"""

import logging
import math
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.broker import BrokerConfig
from server.authority import DIRECTORY, Authority
from server.broker_config import write_revocations
from server.config import ServerConfig
from server.errors import ServerError
from server.sessions import end_session
from server.store import Store

log = logging.getLogger(__name__)

PID_FILE = "mosquitto.pid"
"""Beside the broker's configuration, which names it."""
SETTLE_SECONDS = 0.5
"""From the signal to the broker until it has read the list, with room to spare."""
RETRY_SECONDS = 2.0
RELOAD_SECONDS = 20.0


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
        reload_command: Sequence[str] = (),
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
            reload_command: makes the broker read the list; empty: SIGHUP to the process in its pid file.
        """
        self._store = store
        self._authority = authority
        self._broker = broker
        self._now = now
        self._directory = directory
        self._reload_command = tuple(reload_command)
        self._ended = ended
        self._listed: tuple[int, float] | None = None
        """What the broker's list was made of."""
        self._due = -math.inf
        self._complaint = ""

    def tick(self) -> None:
        """Do what can be done now; what fails is tried again."""
        if 0 < self._due - self._now() <= RETRY_SECONDS:  # clocks go back, too
            return
        try:
            waiting = self._store.sessions_to_end()  # first: who comes in between is on no list yet
            revocations = self._store.revocations()
            if revocations != self._listed:
                self.publish()
                self._listed = revocations
                self._due = self._now() + SETTLE_SECONDS
                return
            for device, since in waiting.items():
                end_session(self._broker, device)
                self._ended(self._now() - since)
                self._store.note_session_ended(device, self._now())
                log.warning("device=%s: the session of a key that was revoked was ended", device)
        except ServerError as error:
            level = logging.DEBUG if str(error) == self._complaint else logging.ERROR
            log.log(level, "revocations do not reach the broker, which is tried again: %s", error)
            self._complaint = str(error)
            self._due = self._now() + RETRY_SECONDS
        else:
            self._complaint = ""

    def publish(self) -> None:
        """Write the list and make the broker read it.

        Raises:
            ServerError: it cannot be written, or the broker cannot be told.
        """
        now = self._now()
        write_revocations(self._directory, self._authority, self._store.revoked_serials(now), now)
        self._reload()

    def _reload(self) -> None:
        if self._reload_command:
            try:
                subprocess.run(self._reload_command, check=True, timeout=RELOAD_SECONDS)  # noqa: S603 - the operator's own
            except (OSError, subprocess.SubprocessError) as error:
                raise ServerError(f"trust.reload_command failed: {error}") from error
            return
        path = self._directory / PID_FILE
        try:
            number = path.read_text("ascii").strip()
            if number.isdecimal() and int(number) > 1:  # 0 and -1 would be many processes
                os.kill(int(number), signal.SIGHUP)
        except (FileNotFoundError, ProcessLookupError, ValueError, OverflowError):
            return  # the broker is not running: it reads the list when it starts
        except OSError as error:
            raise ServerError(
                f"the broker ({path}) cannot be told to read the list of revoked certificates: "
                f"{error.strerror}; set trust.reload_command"
            ) from error


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
        reload_command=policy.reload_command,
        ended=ended,
    )


def open_authority(config: ServerConfig) -> Authority | None:
    """The fleet's certificate authority; None: none was made.

    Raises:
        ServerError: its files are damaged.
    """
    directory = Path(config.data_directory) / DIRECTORY
    return Authority.open(directory) if directory.exists() else None
