"""A program called mosquitto that does nothing: the server ends brokers by that name and a pid file."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from server.broker_restart import PID_FILE

PROGRAM = """\
#!{python}
import pathlib, signal, sys, time
pid_file = pathlib.Path(sys.argv[1])

def end(*_):
    if {deaf}:
        return
    pid_file.unlink()
    sys.exit()

signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:
    time.sleep(60)
"""


@contextlib.contextmanager
def running_broker(
    directory: Path, name: str = "mosquitto", *, deaf: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run it, with its pid file in `directory`; `deaf`: it does not end when it is told to."""
    program = directory.parent / name
    program.write_text(PROGRAM.format(python=sys.executable, deaf=deaf), "utf-8")
    program.chmod(0o755)
    pid_file = directory / PID_FILE
    with subprocess.Popen([program, pid_file], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            pid_file.write_text(f"{process.pid}\n", "ascii")
            yield process
        finally:
            process.kill()
