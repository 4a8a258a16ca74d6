"""Readiness: said to whoever started the service and asked for it, and to nobody else."""

import secrets
import socket
from pathlib import Path

import pytest

from runtime import notify


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_service_manager_that_waits_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"\0graftwork-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        assert notify.ready()
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", [None, "", "/no/such/socket", "@no-such-socket", "x" * 200])
def test_where_nobody_waits_nothing_is_said(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify.ready()
