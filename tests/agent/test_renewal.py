"""The next certificate: asked for in good time, once an hour, and adopted whatever fails on the way."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import identity as identities
from agent.identity import Validity
from agent.renewal import REPEAT_SECONDS, Renewal
from agent.voice import Voice
from protocol.identity import CertificateResponse, RenewalRequest
from protocol.messages import verify_message
from server.identities import REVOKED
from tests.builders import Clock
from tests.newcomers import DAY, NOW, TOPICS, Newcomer, Registrar

TOPIC = TOPICS.up("pump-1", "renew")


class Device:
    """An enrolled device, and the server that renews."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock(NOW)
        self.registrar = Registrar(folder / "server", self.clock)
        self.newcomer = Newcomer(folder / "device", self.clock, token=self.registrar.token())
        assert self.newcomer.enrol(self.registrar)
        self.said: list[bytes] = []
        self.connected = True
        self.start()

    def start(self) -> None:
        identity = self.newcomer.identity
        voice = Voice("pump-1", TOPICS, identity.key(), self._publish, self.newcomer.keyring)
        self.renewal = Renewal(identity, voice, self.clock)

    def close(self) -> None:
        self.newcomer.close()
        self.registrar.store.close()

    def _publish(self, topic: str, payload: bytes, retain: bool) -> bool:
        assert (topic, retain) == (TOPIC, False)
        if self.connected:
            self.said.append(payload)
        return self.connected

    def asked(self) -> list[RenewalRequest]:
        """What it asks at the next tick."""
        self.renewal.tick()
        said, self.said = self.said, []
        return [verify_message(RenewalRequest, payload, self.newcomer.key.public, TOPIC) for payload in said]

    def answer(self, request: RenewalRequest) -> CertificateResponse:
        return self.registrar.enrolment.renew("pump-1", request)

    def validity(self) -> Validity:
        found = self.newcomer.identity.validity()
        assert found is not None
        return found


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path)
    yield device
    device.close()


def test_after_two_thirds_of_its_time_the_next_one_is_asked_for(device: Device) -> None:
    first = device.validity()
    device.clock.now = first.renew_at - 1
    assert device.asked() == []
    device.clock.now = first.renew_at
    [request] = device.asked()
    response = device.answer(request)
    assert response.status == "issued"
    device.renewal.receive(response)
    assert device.validity().not_after == int(device.clock() + 60 * DAY)
    assert device.asked() == []
    device.clock.now = device.validity().renew_at
    assert len(device.asked()) == 1


def test_it_asks_once_an_hour_with_the_same_bytes(device: Device) -> None:
    device.clock.now = device.validity().renew_at
    [first] = device.asked()
    device.clock.advance(REPEAT_SECONDS - 1)
    assert device.asked() == []
    device.clock.advance(1)
    assert device.asked() == [first]
    device.start()  # after a restart, too
    assert device.asked() == [first]
    certificates = {device.answer(first).certificate for _ in range(3)}
    assert len(certificates) == 1


def test_a_clock_that_goes_back_does_not_keep_it_waiting(device: Device) -> None:
    device.clock.now = device.validity().renew_at + DAY
    [request] = device.asked()
    device.clock.advance(-DAY / 2)
    assert device.asked() == [request]


def test_while_there_is_no_link_it_waits_for_the_next_hour(device: Device) -> None:
    device.clock.now = device.validity().renew_at
    device.connected = False
    assert device.asked() == []
    device.connected = True
    device.clock.advance(REPEAT_SECONDS)
    assert len(device.asked()) == 1


def test_a_device_without_a_certificate_asks_for_nothing(tmp_path: Path) -> None:
    clock = Clock(NOW)
    newcomer = Newcomer(tmp_path / "bare", clock)
    said: list[bytes] = []

    def publish(_topic: str, payload: bytes, _retain: bool) -> bool:
        said.append(payload)
        return True

    renewal = Renewal(
        newcomer.identity, Voice("pump-1", TOPICS, newcomer.key, publish, newcomer.keyring), clock
    )
    renewal.tick()
    renewal.receive(CertificateResponse("issued", bytes(32), b"unasked"))
    assert (said, newcomer.identity.validity(), newcomer.identity.pending_request()) == ([], None, b"")
    newcomer.close()


def test_an_answer_that_comes_twice_is_taken_once_and_makes_no_new_key(device: Device) -> None:
    device.clock.now = device.validity().renew_at
    [request] = device.asked()
    response = device.answer(request)
    device.renewal.receive(response)
    before = (device.newcomer.folder / "identity.pem").read_bytes()
    device.renewal.receive(response)
    assert (device.newcomer.folder / "identity.pem").read_bytes() == before
    assert device.newcomer.identity.pending_request() == b""


def test_an_answer_to_another_request_changes_nothing(device: Device) -> None:
    device.clock.now = device.validity().renew_at
    [request] = device.asked()
    before = device.validity()
    certificate = device.answer(request).certificate
    device.renewal.receive(CertificateResponse("issued", bytes(32), certificate))
    assert device.validity() == before


@pytest.mark.parametrize("what", ["no certificate", "of another key"])
def test_a_certificate_that_cannot_be_used_leaves_the_present_one(
    device: Device, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    device.clock.now = device.validity().renew_at
    before = (device.newcomer.folder / "identity.pem").read_bytes()
    [request] = device.asked()
    wrong = before[before.index(b"-----BEGIN CERT") :] if what == "of another key" else b"x"
    sha256 = hashlib.sha256(request.signing_request).digest()
    device.renewal.receive(CertificateResponse("issued", sha256, wrong))
    assert (device.newcomer.folder / "identity.pem").read_bytes() == before
    assert "the certificate is not renewed" in caplog.text
    device.renewal.receive(device.answer(request))
    assert device.validity().not_after == int(device.clock() + 60 * DAY)


def test_a_revoked_device_is_told_so_and_stays_as_it_is(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.clock.now = device.validity().renew_at
    device.registrar.store.set_status("pump-1", REVOKED, "stolen", device.clock())
    [request] = device.asked()
    before = device.validity()
    device.renewal.receive(device.answer(request))
    assert device.validity() == before
    assert "the certificate is not renewed: the device is revoked" in caplog.text


def test_a_full_disk_does_not_end_the_agent(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device.clock.now = device.validity().renew_at

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(identities, "write", full)
        assert device.asked() == []
        assert "cannot be renewed now" in caplog.text
    device.clock.advance(REPEAT_SECONDS)
    [request] = device.asked()
    with monkeypatch.context() as patch:
        patch.setattr(identities, "write", full)
        device.renewal.receive(device.answer(request))
        assert "No space left on device" in caplog.text
    device.renewal.receive(device.answer(request))
    assert device.validity().not_after == int(device.clock() - REPEAT_SECONDS + 60 * DAY + REPEAT_SECONDS)


def test_a_certificate_file_that_cannot_be_read_while_an_answer_comes_is_no_crash(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.clock.now = device.validity().renew_at
    [request] = device.asked()
    response = device.answer(request)
    path = device.newcomer.folder / "next.key"
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    device.renewal.receive(response)
    assert "the certificate is not renewed" in caplog.text
    path.rmdir()
    path.write_bytes(content)
    device.renewal.receive(response)
    assert device.validity().not_after == int(device.clock() + 60 * DAY)
