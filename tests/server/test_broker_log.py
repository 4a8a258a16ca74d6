"""A broker's log is followed through everything that happens to files, and kept small."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.broker import BrokerConfig
from runtime.link import Link
from server import broker_log, incidents
from server.broker import BrokerSupervisor, find_mosquitto
from server.broker_log import LINE_BYTES, Follower, Place
from server.incidents import Incident, parse
from tests import mutual_tls

PATIENCE_SECONDS = 60


def denied(number: int) -> str:
    return f"{1795731120 + number}: Denied PUBLISH from dev{number} (d0, q1, r0, m7, 't', ... (4 bytes))"


def numbers(found: list[Incident]) -> list[int]:
    return [int(incident.device.removeprefix("dev")) for incident in found]


def everything(follower: Follower) -> list[Incident]:
    found: list[Incident] = []
    while more := follower.read():
        found += more
    return found


def append(path: Path, *lines: int) -> None:
    with path.open("a") as file:
        file.writelines(f"{denied(line)}\n" for line in lines)


LINES = st.one_of(
    st.integers(0, 9).map(lambda number: denied(number).encode()),
    st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"")),
    st.integers(LINE_BYTES - 3, LINE_BYTES + 3).map(lambda size: (b"dev1 1 " + size * b"x")[:size]),
    st.just(b"1: Denied PUBLISH from dev1 (d0, q1, r0, m7, '\xc3\xa4\xff" + 9000 * b"\xc3"),
)


@given(st.lists(LINES, max_size=12), st.data())
def test_however_a_log_is_written_and_read_its_incidents_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "mosquitto.log"
    path.touch()
    whole = b"".join(line + b"\n" for line in lines)
    expected = [
        found for line in lines if (found := parse(line[:LINE_BYTES].decode("utf-8", "replace"), "plant"))
    ]
    found, written = [], 0
    cut_at = data.draw(st.sampled_from([0, 50, 5000]))
    with (
        Follower(path, "plant", largest_bytes=cut_at) as follower,
        patch.object(broker_log, "OVERFLOW", 10**6),  # it keeps up, if not at once
    ):
        while written < len(whole):
            size = data.draw(st.one_of(st.integers(1, 200), st.integers(1, 20_000)))
            with path.open("ab") as file:
                file.write(whole[written : written + size])
            written += size
            limit = data.draw(st.integers(max(1, size // 2), 20_000))
            found += follower.read(limit)
            while follower._read < path.stat().st_size:
                found += follower.read(limit)
        assert found == expected
        assert not cut_at or path.stat().st_size <= cut_at


@given(st.integers(0, 20), st.integers(0, 300))
def test_a_follower_goes_on_where_an_earlier_one_stopped(
    tmp_path_factory: pytest.TempPathFactory, count: int, partial: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "mosquitto.log"
    append(path, *range(count))
    rest = "".join(f"{denied(number)}\n" for number in range(count, 30))
    with path.open("a") as file:
        file.write(rest[:partial])  # in the middle of a line
    with Follower(path, "plant") as follower:
        found = everything(follower)
        place = follower.place
    with path.open("a") as file:
        file.write(rest[partial:])
    with Follower(path, "plant", place) as follower:
        assert follower.place == place
        found += everything(follower)
    assert numbers(found) == list(range(30))


def test_a_place_in_another_file_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mosquitto.log"
    append(path, 1, 2)
    for place in (Place(1, 10), Place(path.stat().st_ino, 10**9)):
        with Follower(path, "plant", place) as follower:
            assert numbers(everything(follower)) == [1, 2]


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mosquitto.log"
    with Follower(path, "plant") as follower:
        assert follower.read() == []
        append(path, 1)
        assert numbers(follower.read()) == [1]
    assert caplog.text == ""


def test_rotation_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "mosquitto.log"
    append(path, 1)
    with Follower(path, "plant") as follower:
        assert numbers(follower.read()) == [1]
        append(path, 2)
        path.rename(tmp_path / "mosquitto.log.1")
        append(tmp_path / "mosquitto.log.1", 3)  # the broker has not noticed yet
        assert numbers(follower.read()) == [2, 3]
        path.touch()  # made by the program that rotates
        append(tmp_path / "mosquitto.log.1", 4)
        assert numbers(follower.read()) == [4]
        append(tmp_path / "mosquitto.log.1", 5)
        append(path, 6)
        assert numbers(follower.read()) == [5, 6]
        append(path, 7)
        assert numbers(follower.read()) == [7]
    assert (tmp_path / "mosquitto.log.1").stat().st_size > 0


def test_what_an_old_log_says_counts_even_if_the_new_one_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "mosquitto.log"
    append(path, 1)
    with Follower(path, "plant") as follower:
        assert numbers(follower.read()) == [1]
        append(path, 2)
        path.rename(tmp_path / "mosquitto.log.1")
        path.symlink_to(tmp_path / "mosquitto.log.1")
        assert numbers(follower.read()) == [2]
        assert follower.read() == []


def test_a_log_that_something_else_truncates_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "mosquitto.log"
    append(path, 1, 2)
    with Follower(path, "plant") as follower:
        assert numbers(follower.read()) == [1, 2]
        with path.open("a") as file:
            file.write("1: Denied PUBL")
        follower.read()
        os.truncate(path, 0)
        append(path, 3)
        assert numbers(follower.read()) == [3]


def test_a_large_log_is_cut_once_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mosquitto.log"
    with path.open("a") as broker, Follower(path, "plant", largest_bytes=500) as follower:
        seen = []
        for number in range(100):
            broker.write(f"{denied(number)}\n")
            broker.flush()
            seen += numbers(follower.read())
            assert path.stat().st_size <= 500
        assert seen == list(range(100))


def test_a_log_that_grows_faster_than_it_is_read_is_cut_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mosquitto.log"
    append(path, *range(100))
    size = path.stat().st_size
    with Follower(path, "plant", largest_bytes=size // 5) as follower:
        found = follower.read(200)
        assert found[-1] == Incident(None, "", incidents.LOG_LOST, f"{size - 200} bytes")
        assert numbers(found[:-1]) == [0, 1]
        assert path.stat().st_size == 0
        append(path, 7)
        assert numbers(follower.read(200)) == [7]


def test_only_so_much_is_read_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "mosquitto.log"
    append(path, *range(50))
    with Follower(path, "plant") as follower:
        assert numbers(follower.read(10 * (len(denied(1)) + 1))) == list(range(10))


def test_a_broker_cannot_have_another_file_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    precious, other = tmp_path / "server.db", tmp_path / "server.key"
    for file in (precious, other):
        append(file, *range(100))
    size = precious.stat().st_size
    link, second, pipe = tmp_path / "a.log", tmp_path / "b.log", tmp_path / "c.log"
    link.symlink_to(precious)
    second.hardlink_to(other)
    os.mkfifo(pipe)
    for path in (link, second, pipe):
        with Follower(path, "plant", largest_bytes=10) as follower:
            follower.read()
            follower.read()
    assert {file.stat().st_size for file in (precious, other)} == {size}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 3  # once each
    assert "more than one name" in warnings[1]
    assert "expected a plain file" in warnings[2]


def test_a_log_that_may_only_be_read_is_followed_and_not_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mosquitto.log"
    append(path, *range(10))
    opened = os.open

    def read_only(name: Path, flags: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError
        return opened(name, flags)

    monkeypatch.setattr(os, "open", read_only)  # root may write everything
    with Follower(path, "plant", largest_bytes=100) as follower:
        assert numbers(follower.read()) == list(range(10))
        append(path, 10)
        assert numbers(follower.read()) == [10]
    assert caplog.text.count("let the server write it, or rotate it") == 1


class Attack:
    """Clients of one real broker, and what its log says of them."""

    def __init__(self, broker: BrokerSupervisor, authority: mutual_tls.Authority) -> None:
        self._broker, self._authority = broker, authority
        self._follower = Follower(broker.log_file, "plant", largest_bytes=2000)
        self._links: list[Link] = []
        self.found: set[tuple[str, str]] = set()

    def link(self, file: Path | None, name: str, topic: str, *, tls: bool = True) -> Link:
        config = BrokerConfig(
            port=self._broker.port,
            tls_ca=str(self._authority.file) if tls else "",
            tls_certificate=str(file or ""),
        )
        link = Link(config, name, [topic])
        self._links.append(link)
        link.start()
        return link

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.found
            self.found |= {(incident.kind, incident.device) for incident in self._follower.read()}
            time.sleep(0.02)

    def seen(self, kind: str, device: str = "") -> None:
        self.until(lambda: (kind, device) in self.found)

    def end(self) -> None:
        while self._links:
            self._links.pop().stop()

    def close(self) -> None:
        self.end()
        self._follower.close()


@pytest.mark.system
@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_the_log_of_a_real_broker_shows_who_attacked_it(tmp_path: Path) -> None:
    authority = mutual_tls.Authority(tmp_path / "authority")
    foreign = mutual_tls.Authority(tmp_path / "foreign", "somebody")
    forger = mutual_tls.Authority(tmp_path / "forger")  # with the name of the real one
    honest, spy = authority.issue("honest"), authority.issue("spy")
    bad = [
        authority.issue("old", days=-1),
        authority.issue("lost", revoked=True),
        foreign.issue("alien"),
        forger.issue("forged"),
    ]
    rules = tmp_path / "acl"
    rules.write_text("pattern write fl/v1/plant/up/%u/+\npattern read fl/v1/plant/dn/%u/+\n", "ascii")
    rules.chmod(0o600)
    settings = {**mutual_tls.settings(authority), "acl_file": str(rules), "log_type": "all"}
    with (
        BrokerSupervisor(tmp_path / "broker", kind="mosquitto", settings=settings) as broker,
        closing(Attack(broker, authority)) as attack,
    ):
        device = attack.link(honest, "honest", "fl/v1/plant/dn/honest/+")
        attack.until(lambda: device.publish("fl/v1/plant/up/honest/state", b"here"))
        # The client id is not what it says: the certificate counts.
        evil = attack.link(spy, "honest", "fl/v1/plant/dn/honest/+")
        attack.seen(incidents.SUBSCRIPTION, "spy")
        attack.until(lambda: evil.publish("fl/v1/plant/up/honest/update", b"evil"))
        attack.seen(incidents.DENIED, "spy")
        attack.link(spy, "spy", "fl/v1/plant/dn/spy/+")
        attack.seen(incidents.TAKEN_OVER, "spy")
        attack.end()
        for file in bad:
            attack.found.clear()
            attack.link(file, "honest", "#")
            attack.seen(incidents.CERTIFICATE_REFUSED)
            assert "honest" not in {name for _, name in attack.found}
            attack.end()
        attack.link(None, "honest", "#")
        attack.seen(incidents.CERTIFICATE_MISSING)
        attack.link(None, "honest", "#", tls=False)
        attack.seen(incidents.HANDSHAKE)
        attack.end()
        attack.until(lambda: broker.log_file.stat().st_size <= 2000)
