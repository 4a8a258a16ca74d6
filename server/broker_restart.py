"""Has the fleet's broker started anew, which is how it reads its list of revoked certificates.

The server ends the broker, and what supervises it (systemd) starts it again. mosquitto 2.0 could also be told
by SIGHUP, but then uses memory that it has freed, if a device is away whose session it keeps. Devices come
back by themselves, spread over two seconds.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from server.errors import ServerError

PID_FILE = "mosquitto.pid"
"""Beside the broker's configuration, which names it."""
PROGRAM = "mosquitto"
END_SECONDS = 10.0
"""From the signal until the broker has written its state and is gone."""
COMMAND_SECONDS = 60.0
POLL_SECONDS = 0.02


class Process(NamedTuple):
    """A process that no later one with the same number is taken for."""

    number: int
    started: int
    """Clock ticks since the machine started."""


def find(directory: Path) -> Process | None:
    """The broker that runs with the configuration in a directory; None: none does, as far as can be seen.

    A pid file outlives a power cut, and then may name any process: only one called mosquitto is taken.
    """
    try:
        number = (directory / PID_FILE).read_text("ascii").strip()
        if not number.isdecimal() or int(number) <= 1:  # as signals go, 0 and -1 would be many processes
            return None
        text = Path(f"/proc/{int(number)}/stat").read_text("utf-8", "replace")
    except (OSError, ValueError):
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()  # proc(5): from the third on, state; the 22nd is the start
    if name != PROGRAM or fields[0] == "Z":
        return None
    return Process(int(number), int(fields[19]))


def restart(directory: Path, command: Sequence[str] = ()) -> bool:
    """End the broker, and return when nothing runs that has read an older list.

    Args:
        directory: what `broker-config` wrote.
        command: does it instead, and returns when it is done; for a broker on another machine.

    Returns:
        Whether a broker was there. If not, it reads the list when it starts.

    Raises:
        ServerError: it cannot be ended, or the command fails.
    """
    if command:
        try:
            subprocess.run(command, check=True, timeout=COMMAND_SECONDS)  # noqa: S603 - the operator's own
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerError(f"trust.restart_command failed: {error}") from error
        return True
    process = find(directory)
    if process is None:
        return False
    try:
        os.kill(process.number, signal.SIGTERM)
    except ProcessLookupError:
        return True
    except OSError as error:
        raise ServerError(
            f"the broker (process {process.number}) cannot be ended, so that it reads the list of revoked "
            f"certificates when it starts again: {error.strerror}; run it as the server's user, or set "
            "trust.restart_command"
        ) from error
    deadline = time.monotonic() + END_SECONDS
    while find(directory) == process:
        if time.monotonic() > deadline:
            raise ServerError(f"the broker (process {process.number}) did not end within {END_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
    return True


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[bool]:
    """Whether no other process is bringing a list to this broker; none can begin to meanwhile.

    The server and an operator's command both see a revocation, and once is enough.

    Raises:
        ServerError: the directory is not there.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ServerError(f"{directory}: {error.strerror}; run `graftwork-server broker-config`") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
