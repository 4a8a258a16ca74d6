"""Telling systemd that a service is ready: sd_notify(3), where the service manager asked for it."""

import os
import socket


def ready() -> bool:
    """Say READY=1; False: nobody waits for it, or it cannot be said."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # of the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect(address)
            channel.sendall(b"READY=1")
    except OSError:
        return False
    return True
