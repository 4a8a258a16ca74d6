"""The participant: messages in any order, repeated and late, and a device that never goes back."""

import hashlib
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent import participant
from agent.participant import AdoptRelease, AnswerRound, ClearOutbox, FetchPackage, State
from protocol.artifacts import Artifact
from protocol.charter import TrainingPolicy
from protocol.messages import Announcement, Receipt, Release, Round

DEVICE = "pump-1"


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def announcement(version: int) -> Announcement:
    artifact = Artifact(digest(f"package {version}"), 1, 1, (digest("chunk"),))
    return Announcement(version, f"package {version}", artifact, TrainingPolicy())


def release(number: int, version: int = 1) -> Release:
    return Release(number, digest(f"package {version}"), b"", digest(f"adapter {number}"), b"")


def open_round(number: int, base: int, version: int = 1, cohort: tuple[str, ...] = (DEVICE,)) -> Round:
    return Round(number, digest(f"package {version}"), digest(f"adapter {base}"), cohort, 0.0)


def installed(version: int = 1) -> State:
    state, _ = participant.on_installed(State(), version, digest(f"package {version}"))
    return state


def adopted(number: int = 0) -> State:
    state, _ = participant.on_adopted(installed(), release(number))
    return state


def test_an_announced_package_is_fetched_once() -> None:
    state, actions = participant.on_announcement(State(), announcement(1))
    assert actions == [FetchPackage(announcement(1))]
    assert participant.on_announcement(state, announcement(1)) == (state, [])
    state, actions = participant.on_announcement(state, announcement(2))
    assert actions == [FetchPackage(announcement(2))]


def test_an_older_package_is_never_fetched() -> None:
    state = installed(3)
    for version in (1, 2, 3):
        assert participant.on_announcement(state, announcement(version)) == (state, [])


def test_a_release_that_comes_before_its_package_waits_for_it() -> None:
    state, actions = participant.on_release(State(), release(5))
    assert actions == []
    state, _ = participant.on_announcement(state, announcement(1))
    state, actions = participant.on_installed(state, 1, digest("package 1"))
    assert actions == [AdoptRelease(release(5))]


def test_of_early_releases_the_newest_waits() -> None:
    state = State()
    for number in (5, 7, 6):
        state, _ = participant.on_release(state, release(number))
    _, actions = participant.on_installed(state, 1, digest("package 1"))
    assert actions == [AdoptRelease(release(7))]


def test_an_early_release_of_another_package_is_not_adopted() -> None:
    state, _ = participant.on_release(State(), release(5, version=2))
    state, actions = participant.on_installed(state, 1, digest("package 1"))
    assert actions == []
    state, actions = participant.on_installed(state, 2, digest("package 2"))
    assert actions == [AdoptRelease(release(5, version=2))]


def test_an_older_or_equal_release_is_dropped() -> None:
    state = adopted(5)
    for number in (4, 5):
        assert participant.on_release(state, release(number)) == (state, [])
    assert participant.on_release(state, release(6))[1] == [AdoptRelease(release(6))]


def test_a_round_before_its_release_waits_for_it() -> None:
    state, actions = participant.on_round(installed(), DEVICE, open_round(1, base=0))
    assert actions == []
    state, actions = participant.on_adopted(state, release(0))
    assert actions == [AnswerRound(open_round(1, base=0))]


def test_a_round_is_answered_once() -> None:
    state, actions = participant.on_round(adopted(), DEVICE, open_round(1, base=0))
    assert actions == [AnswerRound(open_round(1, base=0))]
    state, _ = participant.on_answered(state, 1)
    assert participant.on_round(state, DEVICE, open_round(1, base=0)) == (state, [])
    assert participant.on_round(state, DEVICE, open_round(2, base=0))[1] == [
        AnswerRound(open_round(2, base=0))
    ]


def test_a_round_that_could_not_be_answered_is_asked_again() -> None:
    state, actions = participant.on_round(adopted(), DEVICE, open_round(1, base=0))
    assert participant.on_round(state, DEVICE, open_round(1, base=0)) == (state, actions)


def test_a_round_of_others_is_nothing() -> None:
    state = adopted()
    assert participant.on_round(state, DEVICE, open_round(1, base=0, cohort=("pump-2",))) == (state, [])


def test_a_new_package_forgets_the_base_and_keeps_the_release_number() -> None:
    state, _ = participant.on_installed(adopted(4), 2, digest("package 2"))
    assert (state.version, state.release, state.base) == (2, 4, b"")


def test_an_older_installation_changes_nothing() -> None:
    state = installed(3)
    assert participant.on_installed(state, 2, digest("package 2")) == (state, [])


def test_every_receipt_reaches_the_outbox() -> None:
    receipt = Receipt(digest("update"), 1, "counted")
    assert participant.on_receipt(State(), receipt) == (State(), [ClearOutbox(receipt)])


class ParticipantMachine(RuleBasedStateMachine):
    """A server's whole history, delivered to a device in any order, any number of times, with restarts.

    Package v has the releases 3v-3, 3v-2 and 3v-1; round n starts from release n-1.
    """

    versions = st.integers(1, 3)
    numbers = st.integers(0, 8)

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.before = State()
        self.answered: list[int] = []
        self.fetching: list[Announcement] = []

    @rule(version=versions)
    def an_announcement_comes(self, version: int) -> None:
        self.step(participant.on_announcement(self.state, announcement(version)))

    @rule(number=numbers)
    def a_release_comes(self, number: int) -> None:
        self.step(participant.on_release(self.state, release(number, number // 3 + 1)))

    @rule(base=numbers, member=st.booleans())
    def a_round_comes(self, base: int, member: bool) -> None:
        cohort = (DEVICE,) if member else ("pump-2",)
        self.step(participant.on_round(self.state, DEVICE, open_round(base + 1, base, base // 3 + 1, cohort)))

    @rule()
    def a_download_ends(self) -> None:
        if self.fetching:
            ended = self.fetching.pop()
            self.step(participant.on_installed(self.state, ended.version, ended.package.sha256))

    @rule()
    def the_device_restarts(self) -> None:
        self.state = replace(self.state, fetching=0, early_release=None, early_round=None)
        self.fetching.clear()

    def step(self, step: participant.Step) -> None:
        self.state, actions = step
        for action in actions:
            if isinstance(action, FetchPackage):
                assert action.announcement.version > self.state.version
                self.fetching = [action.announcement]
            elif isinstance(action, AdoptRelease):
                assert action.release.package == self.state.package
                assert action.release.number > self.state.release
                self.step(participant.on_adopted(self.state, action.release))
            elif isinstance(action, AnswerRound):
                assert DEVICE in action.round.cohort
                assert (action.round.package, action.round.base) == (self.state.package, self.state.base)
                assert action.round.number not in self.answered
                self.answered.append(action.round.number)
                self.step(participant.on_answered(self.state, action.round.number))

    @invariant()
    def nothing_goes_back(self) -> None:
        assert self.state.version >= self.before.version
        assert self.state.release >= self.before.release
        assert self.state.answered >= self.before.answered
        assert self.answered == sorted(set(self.answered))
        self.before = self.state

    @invariant()
    def the_release_held_is_of_the_package(self) -> None:
        if self.state.base:
            assert self.state.base == digest(f"adapter {self.state.release}")
            assert self.state.package == digest(f"package {self.state.release // 3 + 1}")

    def teardown(self) -> None:
        """Whatever came before: with the newest retained messages and a download, the device catches up."""
        self.step(participant.on_announcement(self.state, announcement(3)))
        self.step(participant.on_release(self.state, release(8, 3)))
        self.a_download_ends()
        self.step(participant.on_round(self.state, DEVICE, open_round(9, 8, 3)))
        assert self.state.version == 3
        assert (self.state.release, self.state.answered) == (8, 9)


ParticipantMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestParticipantMachine = ParticipantMachine.TestCase
