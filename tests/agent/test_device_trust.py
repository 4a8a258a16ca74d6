"""A whole device whose server changes its keys or has them stolen, and packages that are too old."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.device import DeviceAgent
from agent.keyring import Keyring
from agent.store import Store
from protocol.artifacts import describe
from protocol.charter import SendingPolicy
from protocol.identity import CertificateResponse, RenewalRequest, Trust
from protocol.messages import Announcement, Receipt, Release, Report, Update, sign_message, verify_message
from protocol.package import unpack
from protocol.release_coding import adapter_sha256, encode_keyframe
from protocol.rollback import Rollback, sign_rollback
from protocol.sealing import SealingKey, unseal
from protocol.signing import PrivateKey
from tests.agent.test_device import DEVICE_KEY, NAME, PACKAGE, POLICY, SERVER, TOPICS, UP, Device
from tests.builders import (
    PARAMETERS,
    PUBLISHER,
    SEALING,
    Wire,
    identity_of,
    private_key,
    tiny_package,
    two_levels,
    write_recording,
)
from tests.newcomers import Registrar
from tests.roots import NEXT_SERVER, root

FIRST, SECOND = root(), root(2, server=[NEXT_SERVER])
NEXT_SEALING = SealingKey.generate()
THIEF = private_key(66)
DAY = 86_400.0


class RawWire(Wire):
    """Keeps what is published as it is: these tests open it themselves."""

    def __call__(self, topic: str, payload: bytes, retain: bool) -> bool:
        if self.connected:
            self.published.append((topic, payload, retain))
        return self.connected


class Rooted(Device):
    """A device that was given a root, and a broker that keeps what is retained."""

    def __init__(self, folder: Path, publishers: tuple[str, ...] = ()) -> None:
        self.retained: dict[str, bytes] = {}
        self.listened_again = 0
        self.sealing = SEALING
        super().__init__(folder, publishers)

    def start(self) -> None:
        self.wire = RawWire()
        self.store = Store(self.folder / "state" / "agent.sqlite")
        self.agent = DeviceAgent(
            replace(self.config, server_key="", root="root.json"),
            self.store,
            self.wire,
            self.clock,
            identity=identity_of(self.folder / "state", NAME, DEVICE_KEY),
            keyring=Keyring(self.store, "pumps", self.clock, root=FIRST),
            make_engine=lambda *_: self.engine(),
            resources=self.resources,
            listen_again=self._listen_again,
        )
        for topic, payload in self.retained.items():
            self.agent.handle(topic, payload)

    def _listen_again(self) -> None:
        self.listened_again += 1

    def hear_again(self) -> None:
        """What the broker sends after `listen_again`, or a reconnect."""
        for topic, payload in self.retained.items():
            self.agent.handle(topic, payload)

    def tell(self, topic: str, message: Any, key: PrivateKey = SERVER) -> None:
        payload = sign_message(message, key, topic)
        if "/all/" in topic:
            self.retained[topic] = payload
        self.agent.handle(topic, payload)

    def trust(
        self,
        *roots: bytes,
        key: PrivateKey = SERVER,
        sealing: SealingKey = SEALING,
        issued: float | None = None,
    ) -> None:
        now = self.clock() if issued is None else issued
        self.sealing = sealing
        word = Trust(roots, sealing.public.raw, now, now + 90 * DAY)
        self.tell(TOPICS.all("trust"), word, key)

    def opened(self, kind: type, topic: str, keys: tuple[SealingKey, ...] = ()) -> list[Any]:
        """What the device sealed since the last look."""
        return [
            verify_message(
                kind,
                unseal(payload, keys or [self.sealing], UP[topic], limit=1 << 22).plaintext,
                DEVICE_KEY.public,
                UP[topic],
            )
            for payload in self.wire.take(UP[topic])
        ]

    def adopted(self) -> int:
        return self.store.state().release


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Rooted]:
    device = Rooted(tmp_path / "device")
    write_recording(device.spool / "a.csv", two_levels(20))
    device.trust(FIRST)
    yield device
    device.store.close()


@pytest.fixture
def trained(device: Rooted) -> Rooted:
    device.announce()
    device.serve_chunks()
    device.release()
    assert device.adopted() == 0
    return device


def next_release(device: Rooted, number: int, key: PrivateKey, level: float = 0.5) -> None:
    """Publish a release, signed by a key."""
    adapter = np.full(PARAMETERS, level, np.float32)
    package = unpack(PACKAGE, None).sha256
    release = Release(number, package, b"", adapter_sha256(adapter), encode_keyframe(adapter))
    device.tell(TOPICS.all("release"), release, key)


def test_the_servers_key_changes_while_the_device_runs(
    trained: Rooted, caplog: pytest.LogCaptureFixture
) -> None:
    next_release(trained, 1, NEXT_SERVER)  # retained before the word on the new key is there
    assert trained.adopted() == 0
    trained.trust(FIRST, SECOND, key=NEXT_SERVER)
    assert trained.listened_again == 1
    assert "the server signs with another key from now on" in caplog.text
    trained.hear_again()
    assert trained.adopted() == 1
    assert trained.listened_again == 1
    next_release(trained, 2, SERVER)  # whoever has the old key now is nobody
    assert trained.adopted() == 1


def test_the_servers_key_changes_while_the_device_is_off(trained: Rooted) -> None:
    trained.close()
    word = Trust((FIRST, SECOND, root(3, server=[private_key(102)])), SEALING.public.raw, 2000.0, 1e9)
    key = private_key(102)
    trained.retained[TOPICS.all("trust")] = sign_message(word, key, TOPICS.all("trust"))
    trained.clock.now = 2000.0
    trained.start()
    next_release(trained, 1, key)
    assert trained.adopted() == 1
    trained.restart()
    next_release(trained, 2, NEXT_SERVER)
    assert trained.adopted() == 1
    next_release(trained, 2, key)
    assert trained.adopted() == 2


def test_a_thief_of_the_old_key_cannot_bring_it_back(trained: Rooted) -> None:
    old = trained.retained[TOPICS.all("trust")]
    trained.trust(FIRST, SECOND, key=NEXT_SERVER)
    for _ in range(2):
        trained.agent.handle(TOPICS.all("trust"), old)
        trained.tell(TOPICS.all("trust"), Trust((FIRST,), NEXT_SEALING.public.raw, 5000.0, 1e9), SERVER)
        next_release(trained, 9, SERVER)
        assert trained.adopted() == 0
        trained.retained[TOPICS.all("trust")] = old
        trained.restart()
    trained.retained.pop(TOPICS.all("trust"))
    trained.agent.connected()
    assert len(trained.opened(Report, "report")) >= 1  # sealed to the true server's key


def test_what_waits_is_sealed_to_the_new_key(trained: Rooted) -> None:
    release = trained.release(1, level=0.25)
    trained.open_round(1, release)
    [before] = trained.opened(Update, "update")
    trained.clock.advance(1)
    trained.trust(FIRST, sealing=NEXT_SEALING)
    assert trained.listened_again == 0  # it signs with the same key
    [again] = trained.opened(Update, "update", (NEXT_SEALING,))
    assert again == before
    assert len(trained.opened(Report, "report", (NEXT_SEALING, SEALING))) >= 1
    [entry] = trained.store.outbox()
    trained.tell(TOPICS.down(NAME, "receipt"), Receipt(entry.sha256, 1, "counted"))
    assert trained.store.outbox() == []


def test_before_the_server_said_what_to_seal_to_nothing_leaves(tmp_path: Path) -> None:
    device = Rooted(tmp_path / "device")
    write_recording(device.spool / "a.csv", two_levels(20))
    device.announce()
    device.serve_chunks()
    release = device.release()
    device.open_round(1, release)
    assert device.adopted() == 0
    assert device.wire.take(UP["update"]) == device.wire.take(UP["report"]) == []
    assert len(device.store.outbox()) == 1
    device.trust(FIRST)
    assert [update.round for update in device.opened(Update, "update")] == [1]
    assert len(device.opened(Report, "report")) == 1
    device.close()


def test_a_root_that_ends_stops_what_is_new_and_keeps_what_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = Rooted(tmp_path / "device")
    write_recording(device.spool / "a.csv", two_levels(20))
    device.clock.now = 2_000_000_000.0 - DAY  # a day before the root ends
    device.trust(FIRST)
    device.announce()
    device.serve_chunks()
    release = device.release()
    device.clock.advance(2 * DAY)
    next_release(device, 1, SERVER)
    device.open_round(1, release)
    assert "version 1 of the root has expired" in caplog.text
    assert device.adopted() == 0
    assert device.store.text("choice") == "local"  # it goes on with what it has
    assert device.store.outbox() == []
    second = root(2, expires=3e9)
    device.trust(FIRST, second)
    device.hear_again()
    assert device.adopted() == 1
    device.close()


def test_hostile_words_on_keys_harm_nobody(trained: Rooted) -> None:
    topic = TOPICS.all("trust")
    for payload in (b"", b"\xff", b"x" * 5000, sign_message(Trust((b"{}",), b"k", 0.0, 1.0), THIEF, topic)):
        trained.agent.handle(topic, payload)
    forged = root(2, [THIEF], holders=[THIEF], threshold=1, server=[private_key(67)])
    for roots in (
        (forged,),
        (FIRST, forged),
        (b"[" * 9000,),
        (FIRST.replace(b'"version": 1', b'"version": 2.5'),),
    ):
        trained.tell(topic, Trust(roots, NEXT_SEALING.public.raw, 9000.0, 1e9), private_key(67))
    next_release(trained, 1, private_key(67))
    assert trained.adopted() == 0
    trained.retained.clear()
    next_release(trained, 1, SERVER)
    assert trained.adopted() == 1


def test_a_renewed_certificate_is_taken_from_the_server_alone(tmp_path: Path) -> None:
    device = Device(tmp_path / "device")
    registrar = Registrar(tmp_path / "server", device.clock)
    registrar.store.register_device(NAME, DEVICE_KEY.public, device.clock())
    identity = identity_of(device.folder / "state", NAME, DEVICE_KEY)
    first = registrar.enrolment.renew(NAME, RenewalRequest(identity.signing_request()))
    before = identity.adopt(first.certificate)
    device.restart()
    device.clock.now = before.renew_at + 1
    device.agent.tick()
    topic = TOPICS.up(NAME, "renew")
    [payload] = device.wire.take(topic)
    request = verify_message(RenewalRequest, payload, DEVICE_KEY.public, topic)
    answer = registrar.enrolment.renew(NAME, request)
    down = TOPICS.down(NAME, "certificate")
    device.tell(down, answer, THIEF)
    device.tell(down, CertificateResponse("issued", answer.request, b"no certificate"))
    assert identity.validity() == before
    device.tell(down, answer)
    after = identity.validity()
    assert after is not None
    assert after.not_after > before.not_after
    registrar.store.close()
    device.close()


# Packages


class Held(Device):
    """A device that heeds one publisher."""

    def offer(self, version: int, data: bytes, rollback: bytes = b"", expires: float = 0.0) -> None:
        """Announce a package and serve its chunks."""
        announcement = Announcement(
            version, "tiny", describe(data), POLICY, rollback=rollback, expires=expires
        )
        self.tell(TOPICS.all("announcement"), announcement)
        self.serve_chunks(data)

    def holds(self, data: bytes) -> bool:
        return self.store.state().package == unpack(data, None).sha256


FOUR, FIVE, SIX = (tiny_package(filler=version, version=version) for version in (4, 5, 6))


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    held = Held(tmp_path / "device", (PUBLISHER.public.raw.hex(),))
    write_recording(held.spool / "a.csv", two_levels(20))
    held.offer(1, FIVE)
    assert held.holds(FIVE)
    yield held
    held.store.close()


def order(
    data: bytes = FOUR, from_version: int = 5, key: PrivateKey = PUBLISHER, expires: float = 0.0
) -> bytes:
    package = unpack(data, None)
    return sign_rollback(
        Rollback("tiny", from_version, package.manifest.version, package.sha256, expires), key
    )


def test_an_older_package_is_refused_whoever_announces_it(
    held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    held.offer(2, FOUR)
    assert held.holds(FIVE)
    assert "package tiny 4 is older than 5" in caplog.text
    held.restart()
    held.offer(3, FOUR)
    assert held.holds(FIVE)
    held.offer(4, SIX)
    assert held.holds(SIX)


def test_a_publishers_order_takes_the_device_back(held: Held) -> None:
    held.offer(2, FOUR, order())
    assert held.holds(FOUR)
    release = held.release(0, data=FOUR)
    assert held.store.state().release == release.number
    held.restart()
    assert held.holds(FOUR)
    held.offer(3, FIVE)  # and on again, without an order
    assert held.holds(FIVE)


def test_the_order_of_before_is_no_order_now(held: Held) -> None:
    """It went back, and on to 6; replayed with a new announcement, the old order is for another step."""
    held.offer(2, FOUR, order())
    held.offer(3, SIX)
    held.offer(4, FOUR, order())
    assert held.holds(SIX)
    held.offer(5, FOUR, order(from_version=6))
    assert held.holds(FOUR)


@pytest.mark.parametrize("key", [SERVER, THIEF], ids=["the server", "a stranger"])
def test_nobody_but_the_publisher_takes_it_back(held: Held, key: PrivateKey) -> None:
    held.offer(2, FOUR, order(key=key))
    assert held.holds(FIVE)


def test_an_order_that_has_expired_takes_nobody_back(held: Held) -> None:
    held.offer(2, FOUR, order(expires=held.clock() - 1))
    assert held.holds(FIVE)
    held.offer(3, FOUR, order(expires=held.clock() + 1))
    assert held.holds(FOUR)


def test_a_replayed_announcement_is_older_than_what_was_seen(
    held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    held.offer(3, SIX)
    held.offer(2, FOUR, order())
    assert held.holds(SIX)
    assert "version 2 is older than 3, which this device has seen" in caplog.text


def test_a_package_that_has_expired_is_not_begun_with(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    ended = tiny_package(filler=7, version=7, expires=held.clock() - 1)
    held.offer(2, ended)
    assert held.holds(FIVE)
    assert "package tiny 7 has expired" in caplog.text
    lasting = tiny_package(filler=8, version=8, expires=held.clock() + 1)
    held.offer(3, lasting)
    assert held.holds(lasting)
    held.clock.advance(100)  # what is installed goes on
    held.restart()
    release = held.release(0, data=lasting)
    assert held.store.state().release == release.number


def test_an_announcement_that_has_expired_is_not_followed(
    held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    held.offer(2, SIX, expires=held.clock() - 1)
    assert held.holds(FIVE)
    assert "it has expired" in caplog.text
    held.offer(2, SIX, expires=held.clock() + 1)
    assert held.holds(SIX)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_it_installs_a_device_does_not_forget_its_version(
    held: Held, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class Killed(BaseException):
        pass

    install = held.store.install

    def die(*arguments: Any, **keywords: Any) -> None:
        if moment == "after":
            install(*arguments, **keywords)
        raise Killed

    monkeypatch.setattr(held.store, "install", die)
    with pytest.raises(Killed):
        held.offer(2, SIX)
    held.restart()
    held.offer(2, SIX)
    assert held.holds(SIX)
    held.offer(3, FIVE)
    assert held.holds(SIX)


def test_a_rollback_drops_what_was_learned_between(tmp_path: Path) -> None:
    """Release 5 is release 2 once more: what this device learned from release 3 goes with it."""
    device = Device(tmp_path / "device")
    write_recording(device.spool / "a.csv", two_levels(20))
    device.announce(sending=SendingPolicy(minimum_relative_norm=10, maximum_wait_hours=0))
    device.serve_chunks()
    device.release(0)
    good = device.release(2, level=1.0)
    device.release(3, level=3.0)
    withheld = device.store.adapter("withheld")
    assert withheld is not None
    back: Release = replace(good, number=5, withdraws=4, restores=2)
    device.tell(TOPICS.all("release"), back)
    assert device.store.state().release == 5
    kept = device.store.adapter("withheld")
    assert kept is not None
    assert (kept == withheld).all()
    device.close()
