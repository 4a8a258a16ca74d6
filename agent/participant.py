"""What a device does next: a state machine without I/O.

Messages come in any order and more than once: a device sees a release before it has the package, a round
before it has the release. The machine holds what is too early and drops what is too old:

    announcement, newer than installed  -> FetchPackage   (KeepPackage when it is the same one)
    release, newer, of the package      -> AdoptRelease   (train, gate, report)
    round, of the release held          -> AnswerRound    (send the update), once per round
    receipt                             -> ClearOutbox

Package version, release and round only ever grow. Training, storage and transport are not handled here.
"""

from dataclasses import dataclass, replace

from protocol.messages import Announcement, Receipt, Release, Round


@dataclass(frozen=True)
class State:
    """Where a device stands; the first four fields outlive a restart."""

    version: int = 0
    """Of the installed package's announcement; 0: none."""
    package: bytes = b""
    """SHA-256 of the installed package."""
    release: int = -1
    """Number of the release held."""
    base: bytes = b""
    """SHA-256 of its adapter."""
    answered: int = 0
    """Newest round that was answered."""
    fetching: int = 0
    """Version that is being fetched; 0: none."""
    early_release: Release | None = None
    """Held until its package is installed."""
    early_round: Round | None = None
    """Held until its release is adopted."""


@dataclass(frozen=True)
class FetchPackage:
    """Pull and install the announced package; then call `installed`."""

    announcement: Announcement


@dataclass(frozen=True)
class KeepPackage:
    """Note that the installed package has a new version."""

    announcement: Announcement


@dataclass(frozen=True)
class AdoptRelease:
    """Train from the release and let the gate decide; then call `adopted`."""

    release: Release


@dataclass(frozen=True)
class AnswerRound:
    """Put the update of the round into the outbox; then call `answered`."""

    round: Round


@dataclass(frozen=True)
class ClearOutbox:
    """Drop the update that the receipt names."""

    receipt: Receipt


Action = FetchPackage | KeepPackage | AdoptRelease | AnswerRound | ClearOutbox
Step = tuple[State, list[Action]]


def on_announcement(state: State, announcement: Announcement) -> Step:
    """A package is announced."""
    if announcement.version <= max(state.version, state.fetching):
        return state, []
    if announcement.package.sha256 == state.package:
        # Pushed again: what is installed is what is announced.
        return replace(state, version=announcement.version, fetching=0), [KeepPackage(announcement)]
    return replace(state, fetching=announcement.version), [FetchPackage(announcement)]


def on_installed(state: State, version: int, package: bytes) -> Step:
    """The package of an announcement is on disk, checked."""
    if version <= state.version:
        return state, []
    fetching = 0 if state.fetching <= version else state.fetching
    # The release held belongs to the package before.
    state = replace(state, version=version, package=package, fetching=fetching, base=b"")
    early = state.early_release
    return on_release(replace(state, early_release=None), early) if early else (state, [])


def on_release(state: State, release: Release) -> Step:
    """A release is published."""
    if release.package != state.package:
        newer = state.early_release is None or release.number > state.early_release.number
        return (replace(state, early_release=release) if newer else state), []
    if release.number <= state.release:
        return state, []
    return state, [AdoptRelease(release)]


def on_adopted(state: State, release: Release) -> Step:
    """A release was trained from and gated."""
    state = replace(state, release=release.number, base=release.adapter_sha256)
    early = state.early_round
    return on_round(replace(state, early_round=None), None, early) if early else (state, [])


def on_round(state: State, device: str | None, current: Round) -> Step:
    """A round is open; `device` None: membership was checked before."""
    if current.number <= state.answered or (device is not None and device not in current.cohort):
        return state, []
    if current.package == state.package and current.base == state.base:
        return state, [AnswerRound(current)]
    newer = state.early_round is None or current.number > state.early_round.number
    return (replace(state, early_round=current) if newer else state), []


def on_answered(state: State, number: int) -> Step:
    """The update of a round is in the outbox."""
    return replace(state, answered=max(state.answered, number)), []


def on_receipt(state: State, receipt: Receipt) -> Step:
    """The server's word on an update."""
    return state, [ClearOutbox(receipt)]
