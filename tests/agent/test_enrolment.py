"""A new device and the server, together in memory: from a token to a certificate, whatever comes between."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.enrolment import PENDING_SECONDS, REFUSED_SECONDS, REPEAT_SECONDS
from protocol.identity import CertificateResponse, EnrolmentRequest
from protocol.messages import sign_message
from protocol.sealing import SealingKey
from server.identities import REVOKED
from tests.builders import SEALING, Clock, private_key
from tests.newcomers import DAY, NOW, SERVER, TOPICS, Newcomer, Registrar, opened

Make = Callable[..., Newcomer]


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def registrar(tmp_path: Path, clock: Clock) -> Iterator[Registrar]:
    registrar = Registrar(tmp_path / "server", clock)
    yield registrar
    registrar.store.close()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Make]:
    made: list[Newcomer] = []

    def device(name: str = "pump-1", token: str = "", folder: str = "") -> Newcomer:
        made.append(Newcomer(tmp_path / (folder or name), clock, name, token))
        return made[-1]

    yield device
    for newcomer in made:
        newcomer.close()


def certificates(registrar: Registrar, device: str = "pump-1") -> int:
    return len(registrar.store.certificates(device))


def test_a_token_becomes_a_certificate(registrar: Registrar, make: Make) -> None:
    device = make(token=registrar.token())
    assert device.enrol(registrar)
    assert device.program.outcome == ""
    validity = device.identity.validity()
    assert validity is not None
    assert validity.not_after == NOW + 60 * DAY
    found = registrar.store.identity("pump-1")
    assert found is not None
    assert (found.key, found.status, found.certificate_until) == (device.key.public, "active", NOW + 60 * DAY)
    assert device.asked() == []  # there is nothing more to ask


def test_nothing_is_asked_before_the_server_said_what_to_seal_to(registrar: Registrar, make: Make) -> None:
    device = make(token=registrar.token())
    device.program.connected()
    assert device.asked() == []
    device.program.handle(
        TOPICS.all("trust"), sign_message(CertificateResponse("issued", bytes(32)), SERVER, "x")
    )
    assert device.asked() == []
    device.program.handle(TOPICS.all("trust"), registrar.trust())
    assert len(device.asked()) == 1


def test_whoever_listens_on_the_way_learns_neither_token_nor_name(registrar: Registrar, make: Make) -> None:
    token = registrar.token()
    device = make(token=token)
    device.hear(registrar)
    topic, payload = device.request()
    assert topic == TOPICS.enroll(device.program.nonce, "request")
    for secret in (token.encode(), b"pump-1", device.key.public.raw):
        assert secret not in payload
    _, request = opened(topic, payload)
    assert (request.device, request.token, request.public_key) == ("pump-1", token, device.key.public.raw)


def test_what_was_sealed_is_of_no_use_on_another_topic(registrar: Registrar, make: Make) -> None:
    """Whoever copies it to a nonce of his own would get the answer, if it opened there."""
    device = make(token=registrar.token())
    device.hear(registrar)
    _, payload = device.request()
    assert registrar.answer(TOPICS.enroll("thief", "request"), payload) is None
    assert "does not open" in registrar.refusals[-1]


@pytest.mark.parametrize("token", ["", "0" * 40, "x"])
def test_without_the_token_there_is_no_certificate(registrar: Registrar, make: Make, token: str) -> None:
    registrar.token()
    device = make(token=token)
    assert not device.enrol(registrar)
    assert "token" in device.program.outcome
    assert registrar.store.identity("pump-1") is None


def test_the_token_of_another_device_is_refused(registrar: Registrar, make: Make) -> None:
    device = make("pump-2", token=registrar.token("pump-1"))
    assert not device.enrol(registrar)
    assert "not one of this federation for this device" in device.program.outcome
    assert make("pump-1", token=device.token).enrol(registrar)  # it was not used up by that


def test_an_expired_token_is_refused(registrar: Registrar, make: Make, clock: Clock) -> None:
    device = make(token=registrar.token(days=1))
    clock.advance(DAY + 1)
    assert not device.enrol(registrar)
    assert device.program.outcome == "the token has expired"


def test_a_copied_card_is_told_that_it_is_one(registrar: Registrar, make: Make) -> None:
    token = registrar.token()
    assert make(token=token).enrol(registrar)
    copy = make(token=token, folder="copy")
    assert not copy.enrol(registrar)
    assert "is this the copy of another device's card?" in copy.program.outcome
    assert certificates(registrar) == 1


def test_the_same_request_gets_the_same_certificate(registrar: Registrar, make: Make) -> None:
    device = make(token=registrar.token())
    device.hear(registrar)
    topic, payload = device.request()
    answers = {registrar.answer(topic, payload) for _ in range(3)}
    device.program.connected()
    answers.add(registrar.answer(*device.request()))
    assert len(answers) == 1
    assert registrar.issued == ["pump-1"]
    [answer] = answers
    assert answer is not None
    device.told(answer)
    assert device.program.finished


def test_a_device_that_is_killed_before_the_answer_asks_the_same_again(
    registrar: Registrar, make: Make
) -> None:
    device = make(token=registrar.token())
    device.hear(registrar)
    registrar.answer(*device.request())
    nonce, request = device.program.nonce, device.identity.pending_request()
    device.restart()
    assert device.program.nonce != nonce
    assert device.identity.pending_request() == request
    assert device.enrol(registrar)
    assert registrar.issued == ["pump-1"]


class Killed(BaseException):
    """The server ends where it stands."""


def test_a_server_that_is_killed_before_the_commit_has_done_nothing(registrar: Registrar, make: Make) -> None:
    device = make(token=registrar.token())
    device.hear(registrar)

    def fail() -> None:
        raise Killed

    registrar.fail = fail
    with pytest.raises(Killed):
        registrar.answer(*device.request())
    registrar.fail = lambda: None
    registrar.restart()
    assert registrar.store.identity("pump-1") is None
    assert device.enrol(registrar)  # its token is not used up
    assert certificates(registrar) == 1


def test_a_server_that_is_killed_after_the_commit_gives_the_same_certificate(
    registrar: Registrar, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = make(token=registrar.token())
    device.hear(registrar)
    enrol = registrar.store.enrol

    def commit_and_die(*arguments: object, **keywords: object) -> bytes:
        enrol(*arguments, **keywords)  # type: ignore[arg-type]
        raise Killed

    monkeypatch.setattr(registrar.store, "enrol", commit_and_die)
    with pytest.raises(Killed):
        registrar.answer(*device.request())
    registrar.restart()
    assert certificates(registrar) == 1
    assert device.enrol(registrar)
    assert (certificates(registrar), registrar.issued) == (1, ["pump-1"])


def test_who_has_no_token_waits_for_an_operator(tmp_path: Path, make: Make, clock: Clock) -> None:
    registrar = Registrar(tmp_path / "approval", clock, mode="approval")
    device = make()
    assert not device.enrol(registrar)
    assert device.program.outcome == "an operator has to approve"
    clock.advance(PENDING_SECONDS - 1)
    assert device.asked() == []
    [row] = registrar.store.requests()
    assert (row["device"], row["public_key"]) == ("pump-1", device.key.public.raw)
    registrar.store.approve("pump-1", None, clock())
    clock.advance(1)
    answer = registrar.answer(*device.request())
    assert answer is not None
    device.told(answer)
    assert device.program.finished
    assert registrar.store.requests() == []
    registrar.store.close()


def test_an_approval_is_for_the_key_that_asked(tmp_path: Path, make: Make, clock: Clock) -> None:
    registrar = Registrar(tmp_path / "approval", clock, mode="approval")
    device, thief = make(), make(folder="thief")
    device.enrol(registrar)
    thief.enrol(registrar)
    registrar.store.approve("pump-1", device.key.public.raw, clock())
    assert not thief.enrol(registrar)
    assert device.enrol(registrar)
    thief.program.connected()
    assert not thief.enrol(registrar)
    assert "registered with another key" in thief.program.outcome
    registrar.store.close()


def test_a_revoked_key_gets_nothing_any_more(registrar: Registrar, make: Make, clock: Clock) -> None:
    device = make(token=registrar.token())
    assert device.enrol(registrar)
    registrar.store.set_status("pump-1", REVOKED, "stolen", clock())
    thief = make(token=registrar.token(replace=True))  # the same folder: the same key
    assert not thief.enrol(registrar)
    assert "this key was revoked" in thief.program.outcome
    registrar.store.note_session_ended("pump-1", clock())
    assert registrar.store.remove_device("pump-1")
    again = make(token=device.token)
    assert not again.enrol(registrar)
    assert "removed or replaced since" in again.program.outcome


def test_a_repaired_device_comes_with_a_new_key_and_its_name(registrar: Registrar, make: Make) -> None:
    assert make(token=registrar.token()).enrol(registrar)
    repaired = make(token=registrar.token(), folder="repaired")
    assert not repaired.enrol(registrar)
    assert "needs a token with --replace" in repaired.program.outcome
    repaired = make(token=registrar.token(replace=True), folder="repaired")
    assert repaired.enrol(registrar)
    found = registrar.store.identity("pump-1")
    assert found is not None
    assert found.key == repaired.key.public


def test_the_card_that_was_replaced_does_not_come_back_with_its_old_token(
    registrar: Registrar, make: Make
) -> None:
    """Two cards, each of which came with a token made with --replace: the later one stays."""
    first = make(token=registrar.token(replace=True), folder="first")
    assert first.enrol(registrar)
    second = make(token=registrar.token(replace=True), folder="second")
    assert second.enrol(registrar)
    for name in ("identity.pem",):
        (first.folder / name).unlink()
    first.restart()
    assert not first.enrol(registrar)
    assert "removed or replaced since" in first.program.outcome
    found = registrar.store.identity("pump-1")
    assert found is not None
    assert found.key == second.key.public


def test_a_certificate_that_ran_out_is_asked_for_anew_without_a_token(
    registrar: Registrar, make: Make, clock: Clock
) -> None:
    device = make(token=registrar.token())
    assert device.enrol(registrar)
    clock.advance(61 * DAY)
    again = make()
    assert again.enrol(registrar)
    validity = again.identity.validity()
    assert validity is not None
    assert validity.not_after == clock() + 60 * DAY
    assert certificates(registrar) == 2


def test_the_word_of_a_stranger_is_dropped(registrar: Registrar, make: Make) -> None:
    device, stranger = make(token=registrar.token()), private_key(66)
    device.hear(registrar)
    device.request()
    request = hashlib.sha256(device.identity.pending_request()).digest()
    device.told(CertificateResponse("refused", request, reason="go away"), key=stranger)
    device.told(b"")
    device.told(b"\xff" * 100)
    assert device.program.outcome == ""
    device.program.handle(
        TOPICS.all("trust"), sign_message(CertificateResponse("issued", bytes(32)), stranger, "x")
    )
    assert device.keyring.sealing_key == SEALING.public


def test_an_answer_to_another_nonce_or_request_is_dropped(registrar: Registrar, make: Make) -> None:
    device, other = make(token=registrar.token()), make("pump-2", token=registrar.token("pump-2"))
    for newcomer in (device, other):
        newcomer.hear(registrar)
    request = device.request()
    answer = registrar.answer(*request)
    foreign = registrar.answer(*other.request())
    assert answer is not None
    assert foreign is not None
    device.told(foreign)  # moved to this topic: not signed for it
    device.told(foreign, nonce=other.program.nonce)  # a topic that is not the device's
    device.told(CertificateResponse("refused", bytes(32), reason="of another request"))
    assert (device.program.finished, device.program.outcome) == (False, "")
    device.told(answer)
    assert device.program.finished


def test_a_certificate_for_another_key_is_not_taken(
    registrar: Registrar, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    device, other = make(token=registrar.token()), make("pump-2", token=registrar.token("pump-2"))
    assert other.enrol(registrar)
    device.hear(registrar)
    device.request()
    pem = (other.folder / "identity.pem").read_bytes()
    certificate = pem[pem.index(b"-----BEGIN CERTIFICATE") :]
    request = hashlib.sha256(device.identity.pending_request()).digest()
    device.told(CertificateResponse("issued", request, certificate))
    assert not device.program.finished
    assert "for another key than was asked for" in caplog.text


def test_it_asks_again_while_nobody_answers(registrar: Registrar, make: Make, clock: Clock) -> None:
    device = make(token=registrar.token())
    device.hear(registrar)
    first = device.request()
    assert device.asked() == []
    clock.advance(REPEAT_SECONDS - 0.5)
    assert device.asked() == []
    clock.advance(0.5)
    topic, again = device.request()
    assert topic == first[0]
    assert opened(topic, again)[1] == opened(*first)[1]
    device.program.disconnected()
    device.program.connected()
    assert len(device.asked()) == 1


def test_after_a_refusal_it_asks_rarely(registrar: Registrar, make: Make, clock: Clock) -> None:
    device = make(token="0" * 40)
    assert not device.enrol(registrar)
    clock.advance(REFUSED_SECONDS - 1)
    assert device.asked() == []
    clock.advance(1)
    assert len(device.asked()) == 1
    clock.advance(REPEAT_SECONDS)  # and after a question without an answer, soon again
    assert len(device.asked()) == 1


def test_a_clock_that_goes_back_does_not_keep_it_waiting(
    registrar: Registrar, make: Make, clock: Clock
) -> None:
    """The first thing that a board does when it has a link is to set its clock."""
    device = make(token=registrar.token())
    device.hear(registrar)
    device.request()
    clock.advance(-365 * DAY)
    assert len(device.asked()) == 1


def test_a_server_that_changed_its_sealing_key_is_understood_once_it_says_so(
    registrar: Registrar, make: Make, clock: Clock
) -> None:
    device = make(token=registrar.token())
    device.hear(registrar)
    registrar.sealing = [SealingKey.generate()]
    registrar.restart()
    assert registrar.answer(*device.request()) is None
    assert "sealed to this server's key" in registrar.refusals[-1]
    clock.advance(1)
    assert device.enrol(registrar)


def test_a_server_without_an_authority_says_so(tmp_path: Path, make: Make, clock: Clock) -> None:
    registrar = Registrar(tmp_path / "bare", clock, authority=False)
    device = make(token=registrar.token())
    assert not device.enrol(registrar)
    assert "no certificate authority" in device.program.outcome
    registrar.store.close()


def test_a_late_answer_makes_no_new_request(registrar: Registrar, make: Make) -> None:
    device = make(token=registrar.token())
    device.hear(registrar)
    answer = registrar.answer(*device.request())
    assert answer is not None
    device.told(answer)
    device.told(answer)
    assert device.identity.pending_request() == b""


def test_a_request_is_signed_by_the_key_that_it_names(registrar: Registrar, make: Make) -> None:
    """Else whoever knows a token could register the key of another device under its name."""
    device = make(token=registrar.token())
    device.hear(registrar)
    topic, payload = device.request()
    _, request = opened(topic, payload)
    stolen = EnrolmentRequest(
        request.device, private_key(5).public.raw, request.signing_request, request.token, ""
    )
    forged = SEALING.public.seal(sign_message(stolen, private_key(6), topic), topic, 0)
    assert registrar.answer(topic, forged) is None
    assert "signature" in registrar.refusals[-1]
    assert registrar.store.identity("pump-1") is None


def test_the_program_has_no_will_and_hears_two_topics(make: Make) -> None:
    program = make().program
    assert program.will() is None
    assert program.subscriptions == [TOPICS.all("trust"), TOPICS.enroll(program.nonce, "response")]
    assert len(bytes.fromhex(program.nonce)) == 16
