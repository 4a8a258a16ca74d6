"""Whom the device believes: walked over roots, kept across restarts, and never back behind what was seen."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.keyring import ISSUED_STEP_SECONDS, Keyring
from agent.store import Store
from protocol.artifacts import Artifact
from protocol.charter import TrainingPolicy
from protocol.errors import EncodingError, ProtocolError, SealingError, SignatureError, TrustError
from protocol.identity import Trust
from protocol.messages import Announcement, Receipt, Release, sign_message
from protocol.sealing import HYBRID, SealingKey
from protocol.signing import PrivateKey
from protocol.topics import Topics
from tests.builders import PUBLISHER, SEALING, Clock, private_key
from tests.roots import HOLDERS, NEXT_SERVER, SERVER, changed, root

TOPICS = Topics("pumps")
TRUST, DOWN = TOPICS.all("trust"), TOPICS.down("pump-1", "receipt")
RECEIPT = Receipt(bytes(32), 1, "counted")
DAY = 86_400.0
START = 1_700_000_000.0
FIRST = root()
SECOND = root(2, server=[NEXT_SERVER], publishers=[PUBLISHER.public])
THIRD = root(3, server=[private_key(102)])
OTHER_SEALING = SealingKey.generate()


class Device:
    """A store and a clock; `keyring` starts anew on them, as after a restart."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock = path, Clock(START)
        self.store = Store(path)

    def keyring(self, *, server_key: str = "", root: bytes = b"") -> Keyring:
        self.store.close()
        self.store = Store(self.path)
        return Keyring(self.store, "pumps", self.clock, server_key=server_key, root=root)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path / "agent.sqlite")
    yield device
    device.store.close()


@pytest.fixture
def pinned(device: Device) -> Callable[[], Keyring]:
    return lambda: device.keyring(server_key=SERVER.public.raw.hex())


@pytest.fixture
def rooted(device: Device) -> Callable[[], Keyring]:
    return lambda: device.keyring(root=FIRST)


def trust(
    *roots: bytes,
    key: PrivateKey = SERVER,
    issued: float = START,
    expires: float = START + 90 * DAY,
    sealing: bytes = SEALING.public.raw,
) -> bytes:
    return sign_message(Trust(roots, sealing, issued, expires), key, TRUST)


def believes(keyring: Keyring, key: PrivateKey) -> bool:
    try:
        return keyring.verify(Receipt, sign_message(RECEIPT, key, DOWN), DOWN) == RECEIPT
    except SignatureError:
        return False


def announcement(version: int, **changes: float) -> Announcement:
    return replace(
        Announcement(version, "tiny", Artifact(bytes(32), 5, 4, (bytes(32),) * 2), TrainingPolicy()),
        **changes,
    )


def release(number: int, **changes: float) -> Release:
    return replace(Release(number, bytes(32), b"", bytes(32), b""), **changes)


class TestAPinnedKey:
    def test_is_believed_and_no_other(self, pinned: Callable[[], Keyring]) -> None:
        keyring = pinned()
        assert believes(keyring, SERVER)
        assert not believes(keyring, private_key(66))
        assert (keyring.server_keys, keyring.publishers, keyring.sealing_key) == ((SERVER.public,), (), None)

    def test_holds_for_ever_whatever_roots_come(self, pinned: Callable[[], Keyring]) -> None:
        keyring = pinned()
        assert keyring.take(trust(FIRST, SECOND), TRUST)
        assert (keyring.server_keys, keyring.publishers) == ((SERVER.public,), ())
        with pytest.raises(SignatureError):
            keyring.take(trust(FIRST, SECOND, key=NEXT_SERVER), TRUST)

    def test_another_one_starts_afresh(self, device: Device, pinned: Callable[[], Keyring]) -> None:
        pinned().take(trust(), TRUST)
        keyring = device.keyring(server_key=NEXT_SERVER.public.raw.hex())
        assert (keyring.server_keys, keyring.sealing_key) == ((NEXT_SERVER.public,), None)
        assert not believes(keyring, SERVER)
        assert keyring.take(
            trust(key=NEXT_SERVER, issued=START - DAY), TRUST
        )  # nothing older counts any more

    def test_makes_way_for_a_root(self, device: Device, pinned: Callable[[], Keyring]) -> None:
        pinned().take(trust(), TRUST)
        keyring = device.keyring(root=SECOND)
        assert (keyring.server_keys, keyring.sealing_key) == ((NEXT_SERVER.public,), None)


class TestARoot:
    def test_says_whom_to_believe(self, rooted: Callable[[], Keyring]) -> None:
        assert believes(rooted(), SERVER)
        assert not believes(rooted(), HOLDERS[0])  # holders sign roots, and nothing else

    @pytest.mark.parametrize("data", [root(signers=[HOLDERS[0]]), b"{}", b"", root(federation="fans")])
    def test_that_is_none_is_refused_at_once(self, device: Device, data: bytes) -> None:
        with pytest.raises((ProtocolError, ValueError)):
            device.keyring(root=data)

    def test_a_newer_one_changes_the_servers_key(self, rooted: Callable[[], Keyring]) -> None:
        keyring = rooted()
        assert keyring.take(trust(FIRST), TRUST)
        assert keyring.take(trust(FIRST, SECOND, key=NEXT_SERVER), TRUST)
        assert believes(keyring, NEXT_SERVER)
        assert not believes(keyring, SERVER)
        assert keyring.publishers == (PUBLISHER.public,)

    def test_a_device_that_was_away_walks_over_all_of_them(self, rooted: Callable[[], Keyring]) -> None:
        keyring = rooted()
        keyring.take(trust(FIRST, SECOND, THIRD, key=private_key(102)), TRUST)
        assert keyring.server_keys == (private_key(102).public,)

    def test_what_was_learned_survives_a_restart(self, rooted: Callable[[], Keyring]) -> None:
        rooted().take(trust(FIRST, SECOND, key=NEXT_SERVER), TRUST)
        keyring = rooted()
        assert believes(keyring, NEXT_SERVER)
        assert not believes(keyring, SERVER)
        assert keyring.publishers == (PUBLISHER.public,)
        assert keyring.sealing_key == SEALING.public
        assert not keyring.take(trust(FIRST, SECOND, key=NEXT_SERVER), TRUST)

    def test_a_replay_of_the_time_before_is_refused(self, rooted: Callable[[], Keyring]) -> None:
        """Whoever has the key that was replaced can sign, and replay what it signed then."""
        keyring = rooted()
        before = trust(FIRST, issued=START - 5)
        keyring.take(before, TRUST)
        keyring.take(trust(FIRST, SECOND, key=NEXT_SERVER), TRUST)
        for restarted in (False, True):
            keyring = rooted() if restarted else keyring
            for old in (
                before,
                trust(FIRST, issued=START + 5),
                trust(FIRST, SECOND, issued=START + 5),
                trust(),
            ):
                with pytest.raises(SignatureError):
                    keyring.take(old, TRUST)
            assert believes(keyring, NEXT_SERVER)

    def test_two_keys_hold_while_one_follows_the_other(self, device: Device) -> None:
        keyring = device.keyring(root=root(server=[SERVER, NEXT_SERVER]))
        assert believes(keyring, SERVER)
        assert believes(keyring, NEXT_SERVER)
        assert keyring.take(trust(key=NEXT_SERVER), TRUST)
        assert not keyring.take(trust(issued=START + 1), TRUST)

    def test_a_chain_with_a_gap_or_of_others_changes_nothing(self, rooted: Callable[[], Keyring]) -> None:
        keyring = rooted()
        own = private_key(65)
        forged = root(2, [own], holders=[own], threshold=1, server=[private_key(66)])
        for chain in ((FIRST, THIRD), (FIRST, forged), (forged,), (root(2, federation="fans"),), (b"{}",)):
            with pytest.raises(TrustError):
                keyring.take(trust(*chain, key=private_key(66)), TRUST)
            with pytest.raises(TrustError):
                keyring.take(trust(*chain), TRUST)
        assert believes(keyring, SERVER)
        assert keyring.sealing_key is None

    def test_hostile_roots_by_nobody_are_refused(self, rooted: Callable[[], Keyring]) -> None:
        """The roots are read before the signature around them can be checked."""
        keyring = rooted()
        fraction = changed(root(2), lambda tree: tree["signed"].update(more=0.5))
        unlisted = changed(root(2), lambda tree: tree["signed"]["roles"]["snapshot"].update(keyids=["x"]))
        for data in (fraction, unlisted, b"[" * 16_000, b"\xff", b"1e999"):
            with pytest.raises(TrustError):
                keyring.take(trust(FIRST, data, key=private_key(66)), TRUST)

    def test_a_root_that_came_with_a_forged_message_is_not_kept(self, rooted: Callable[[], Keyring]) -> None:
        keyring = rooted()
        with pytest.raises(SignatureError):
            keyring.take(trust(FIRST, SECOND, key=private_key(66)), TRUST)
        assert believes(keyring, SERVER)
        assert believes(rooted(), SERVER)

    def test_that_has_expired_is_not_believed_until_a_new_one_comes(self, device: Device) -> None:
        old = root(expires=START + DAY)
        keyring = device.keyring(root=old)
        assert keyring.take(trust(old), TRUST)
        device.clock.advance(2 * DAY)
        for restarted in (False, True):
            keyring = device.keyring(root=old) if restarted else keyring
            with pytest.raises(TrustError, match="version 1 of the root has expired"):
                keyring.verify(Receipt, sign_message(RECEIPT, SERVER, DOWN), DOWN)
            with pytest.raises(TrustError, match="has expired"):
                keyring.take(trust(old, issued=device.clock()), TRUST)
        assert keyring.take(trust(old, SECOND, key=NEXT_SERVER, issued=device.clock()), TRUST)
        assert believes(keyring, NEXT_SERVER)

    def test_versions_that_have_expired_are_walked_over(self, device: Device) -> None:
        first, second = root(expires=START - 9), root(2, expires=START - 5)
        keyring = device.keyring(root=first)
        assert keyring.take(trust(first, second, root(3)), TRUST)
        assert believes(keyring, SERVER)

    def test_a_root_that_the_owner_replaced_by_hand_starts_there(self, device: Device) -> None:
        device.keyring(root=FIRST).take(trust(FIRST, SECOND, key=NEXT_SERVER), TRUST)
        keyring = device.keyring(root=THIRD)
        assert keyring.server_keys == (private_key(102).public,)
        assert keyring.take(trust(FIRST, SECOND, THIRD, key=private_key(102)), TRUST)


class TestTheServersWordOnItsKeys:
    def test_brings_what_to_seal_to(self, pinned: Callable[[], Keyring]) -> None:
        keyring = pinned()
        assert keyring.take(trust(), TRUST)
        assert keyring.sealing_key == SEALING.public
        assert not keyring.take(trust(issued=START + 1), TRUST)
        assert keyring.take(trust(issued=START + 2, sealing=OTHER_SEALING.public.raw), TRUST)
        assert keyring.sealing_key == OTHER_SEALING.public
        assert pinned().sealing_key == OTHER_SEALING.public

    def test_may_change_to_another_suite(self, pinned: Callable[[], Keyring]) -> None:
        keyring, hybrid = pinned(), SealingKey.generate(HYBRID)
        keyring.take(trust(sealing=hybrid.public.raw), TRUST)
        assert keyring.sealing_key == hybrid.public
        assert pinned().sealing_key == hybrid.public

    def test_older_than_the_last_one_is_refused_also_after_a_restart(
        self, pinned: Callable[[], Keyring]
    ) -> None:
        old = trust(sealing=OTHER_SEALING.public.raw, issued=START - 1)
        pinned().take(trust(), TRUST)
        with pytest.raises(TrustError, match="older than the last one of its kind"):
            pinned().take(old, TRUST)
        assert pinned().sealing_key == SEALING.public

    def test_that_has_expired_is_refused(self, device: Device, pinned: Callable[[], Keyring]) -> None:
        device.clock.advance(91 * DAY)
        with pytest.raises(TrustError, match="it has expired"):
            pinned().take(trust(), TRUST)

    @pytest.mark.parametrize("sealing", [b"short", bytes(32), bytes(1216), bytes(2048)])
    def test_with_a_key_that_cannot_be_used_leaves_the_one_before(
        self, pinned: Callable[[], Keyring], sealing: bytes
    ) -> None:
        keyring = pinned()
        keyring.take(trust(), TRUST)
        with pytest.raises(SealingError):
            keyring.take(trust(issued=START + 1, sealing=sealing), TRUST)
        assert keyring.sealing_key == SEALING.public
        assert pinned().sealing_key == SEALING.public

    def test_by_another_key_or_from_another_topic_is_refused(self, pinned: Callable[[], Keyring]) -> None:
        moved = sign_message(Trust((), SEALING.public.raw, START, START + DAY), SERVER, TOPICS.all("release"))
        for envelope in (trust(key=private_key(66)), moved):
            with pytest.raises(SignatureError):
                pinned().take(envelope, TRUST)

    @pytest.mark.parametrize("payload", [b"", b"\xff" * 50, bytes(1 << 21)])
    def test_that_is_none_is_refused(self, pinned: Callable[[], Keyring], payload: bytes) -> None:
        with pytest.raises(EncodingError):
            pinned().take(payload, TRUST)


class TestAge:
    @pytest.mark.parametrize("make", [announcement, release], ids=["announcement", "release"])
    def test_nothing_older_than_what_was_seen_also_after_a_restart(
        self, pinned: Callable[[], Keyring], make: Callable[..., Announcement]
    ) -> None:
        keyring = pinned()
        keyring.check_age(make(5))
        for restarted in (False, True):
            keyring = pinned() if restarted else keyring
            keyring.check_age(make(5))
            with pytest.raises(TrustError, match="4 is older than 5, which this device has seen"):
                keyring.check_age(make(4))
        keyring.check_age(make(6))
        with pytest.raises(TrustError, match="older than 6"):
            pinned().check_age(make(5))

    def test_announcements_and_releases_count_apart(self, pinned: Callable[[], Keyring]) -> None:
        keyring = pinned()
        keyring.check_age(announcement(5))
        keyring.check_age(release(0))
        keyring.check_age(release(1))

    def test_what_has_expired_is_refused_and_not_noted_as_seen(
        self, device: Device, pinned: Callable[[], Keyring]
    ) -> None:
        keyring = pinned()
        with pytest.raises(TrustError, match="it has expired"):
            keyring.check_age(release(7, expires=START - 1))
        keyring.check_age(release(3, expires=START))
        device.clock.advance(1)
        with pytest.raises(TrustError, match="it has expired"):
            keyring.check_age(release(3, expires=START))
        keyring.check_age(release(3, expires=START + DAY))  # signed anew

    def test_what_never_expires_does_not(self, device: Device, pinned: Callable[[], Keyring]) -> None:
        device.clock.advance(1e9)
        pinned().check_age(release(0))

    def test_a_clock_that_was_set_back_makes_nothing_good_again(
        self, device: Device, pinned: Callable[[], Keyring]
    ) -> None:
        keyring = pinned()
        device.clock.advance(100 * DAY)
        keyring.check_age(release(5, issued=device.clock(), expires=device.clock() + 90 * DAY))
        for clock in (START, 0.0):
            device.clock.now = clock
            for restarted in (False, True):
                keyring = pinned() if restarted else keyring
                assert keyring.now == START + 100 * DAY
                with pytest.raises(TrustError, match="it has expired"):
                    keyring.check_age(release(6, issued=START, expires=START + 90 * DAY))
                with pytest.raises(TrustError, match="it has expired"):
                    keyring.take(trust(), TRUST)
        keyring.check_age(release(6, issued=START + 101 * DAY, expires=START + 191 * DAY))

    def test_a_root_that_has_expired_stays_so_when_the_clock_is_set_back(self, device: Device) -> None:
        data = root(expires=START + 50 * DAY)
        keyring = device.keyring(root=data)
        device.clock.advance(49 * DAY)
        keyring.check_age(release(5, issued=START + 60 * DAY))  # by the server's clock
        device.clock.now = 0.0
        with pytest.raises(TrustError, match="root has expired"):
            device.keyring(root=data).verify(Receipt, sign_message(RECEIPT, SERVER, DOWN), DOWN)

    def test_the_newest_moment_is_not_written_with_every_message(
        self, device: Device, pinned: Callable[[], Keyring], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Flash wears out: a release of each minute must not be a commit of its own for this."""
        keyring, written = pinned(), []
        note = device.store.note_blob

        def watch(name: str, value: bytes) -> None:
            written.append(name)
            note(name, value)

        monkeypatch.setattr(device.store, "note_blob", watch)
        for minute in range(120):
            keyring.check_age(release(5, issued=START + 60.0 * minute))
        assert written.count("latest_issued") == 1 + int(119 * 60 / (ISSUED_STEP_SECONDS + 60))
        assert written.count("seen_release") == 1

    def test_a_board_without_a_clock_goes_on_from_what_the_server_signed(
        self, device: Device, pinned: Callable[[], Keyring]
    ) -> None:
        device.clock.now = 0.0
        keyring = pinned()
        keyring.check_age(release(1, issued=START, expires=START + DAY))
        assert keyring.now == START
        device.clock.now = 10.0
        assert pinned().now == START
