"""One server at a time: the second is refused, and the end of the first, however it comes, lets it in."""

import contextlib
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from server.errors import ServerError
from server.store import Store
from tests.server.databases import Database
from tests.server.test_store import INITIAL

HOLD = """
import sys
from pathlib import Path
from server.store import Store
with Store(Path(sys.argv[1]), sys.argv[2]).only_server():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_server_is_refused_until_the_first_is_gone(tmp_path: Path, database: Database) -> None:
    with (
        contextlib.closing(Store(tmp_path, database(tmp_path))) as first,
        contextlib.closing(Store(tmp_path, database(tmp_path))) as second,
    ):
        with first.only_server():
            with (
                pytest.raises(ServerError, match="a server runs on this database already"),
                second.only_server(),
            ):
                pass
            assert second.releases() == []  # operators' commands are none of this
        with second.only_server():
            pass


def test_a_killed_server_leaves_no_lock(tmp_path: Path, database: Database) -> None:
    with contextlib.closing(Store(tmp_path, database(tmp_path))) as store:
        command = [sys.executable, "-c", HOLD, str(tmp_path), database(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(ServerError), store.only_server():
                pass
            process.send_signal(signal.SIGKILL)
        with store.only_server():
            pass


def test_pushes_at_the_same_moment_get_numbers_of_their_own(tmp_path: Path, database: Database) -> None:
    """`graftwork-server push` beside a server that writes as well: each in a process, here a thread."""
    count, start = 6, threading.Barrier(6)
    url = database(tmp_path)
    Store(tmp_path, database(tmp_path)).close()
    versions = []

    def push(index: int) -> None:
        with contextlib.closing(Store(tmp_path, url)) as store:
            start.wait()
            sha256 = bytes([index]) * 32
            versions.append(store.add_package(b"package", sha256, f"package {index}", INITIAL, 1.0))

    threads = [threading.Thread(target=push, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == list(range(1, count + 1))
    with contextlib.closing(Store(tmp_path, database(tmp_path))) as store:
        assert [row["number"] for row in store.releases()] == list(reversed(range(count)))
