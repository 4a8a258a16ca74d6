"""One connection of a guest to a port of this machine's loopback, over standard input and output.

QEMU starts this program for each connection: its own way to forward to a port joins all of a guest's
connections into one.
"""

import os
import socket
import sys
import threading
from collections.abc import Sequence

BLOCK = 65536


def main(arguments: Sequence[str] | None = None) -> int:
    """Relay until one side ends; returns the exit status."""
    [port] = sys.argv[1:] if arguments is None else arguments
    try:
        connection = socket.create_connection(("127.0.0.1", int(port)), timeout=10)
    except OSError:
        return 1
    connection.settimeout(None)
    threading.Thread(target=_to_guest, args=(connection,), daemon=True).start()
    while block := os.read(0, BLOCK):
        connection.sendall(block)
    return 0


def _to_guest(connection: socket.socket) -> None:
    try:
        while block := connection.recv(BLOCK):
            view = memoryview(block)
            while view:
                view = view[os.write(1, view) :]
    finally:
        os._exit(0)  # the other direction waits in a read


if __name__ == "__main__":
    sys.exit(main())
