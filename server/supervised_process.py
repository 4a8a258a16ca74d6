"""A child process that is started again when it ends by itself, as systemd would do."""

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

END_SECONDS = 5.0
FAILURES = 5
"""So many in a row, each within a second of its start, and the program is given up."""
FAILURE_SECONDS = 1.0


class SupervisedProcess:
    """Runs a command; `keep` has it started again from then on, until `end`."""

    def __init__(self, command: Sequence[str], output: Path) -> None:
        """Start it.

        Args:
            command: program and arguments.
            output: what it prints is added there.

        Raises:
            OSError: it cannot be started.
        """
        self._command = command
        self._output = output
        self._ending = False
        self._lock = threading.Lock()
        """Held while a process is started or ended, so that none is started after the end."""
        self._thread: threading.Thread | None = None
        self._process = self._start()

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def keep(self) -> None:
        """From now on start it again; before, an end is for the caller to see."""
        self._thread = threading.Thread(target=self._keep, name="supervised-process", daemon=True)
        self._thread.start()

    def end(self, number: signal.Signals) -> None:
        """Send a signal, and start the process no more."""
        with self._lock:
            self._ending = True
            if self.runs:
                self._process.send_signal(number)

    def wait(self) -> None:
        """Wait for the end that `end` asked for; by force if it does not come."""
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._output.open("ab") as out:
            # Its own process group: Ctrl-C reaches the program first, which ends its children in order.
            return subprocess.Popen(  # noqa: S603 - a fixed command with our own configuration
                self._command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def _keep(self) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            status = self._process.wait()
            with self._lock:
                if self._ending:
                    return
                lasted = time.monotonic() - started
                failures = failures + 1 if status and lasted < FAILURE_SECONDS else 0
                if failures == FAILURES:
                    log.error(
                        "%s failed %d times in a row and is not started again; its output is in %s",
                        self._command[0], failures, self._output,
                    )  # fmt: skip
                    return
                log.info("%s ended with status %d and is started again", self._command[0], status)
                self._process = self._start()
