"""No older package than the newest that was installed under its name, but by a signed order to go back."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from agent.store import Store
from agent.versions import check_version, note_version
from protocol.artifacts import Artifact
from protocol.charter import TrainingPolicy
from protocol.errors import ArtifactError, ProtocolError, SignatureError
from protocol.messages import Announcement
from protocol.package import Manifest
from protocol.rollback import Rollback, sign_rollback
from tests.builders import PUBLISHER, private_key, tiny_manifest, tiny_members

OLD = b"o" * 32
NOW = 1000.0
SERVER = private_key(100)


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store(":memory:")
    yield store
    store.close()


def manifest(version: int, *, name: str = "tiny", expires: float = 0.0) -> Manifest:
    return replace(tiny_manifest(tiny_members(), name), version=version, expires=expires)


def announcement(rollback: bytes = b"", sha256: bytes = OLD) -> Announcement:
    artifact = Artifact(sha256, 5, 8, (bytes(32),))
    return Announcement(1, "tiny", artifact, TrainingPolicy(), rollback=rollback)


def check(store: Store, wanted: Manifest, brought: Announcement | None = None, now: float = NOW) -> None:
    check_version(store, wanted, brought or announcement(), [PUBLISHER.public], now)


def order(**changes: object) -> bytes:
    step = replace(Rollback("tiny", 5, 3, OLD, NOW + 1), **changes)  # type: ignore[arg-type]
    return sign_rollback(step, PUBLISHER)


def test_the_first_one_the_same_and_newer_ones_are_taken(store: Store) -> None:
    check(store, manifest(0))
    for version in (1, 1, 2, 7):
        check(store, manifest(version))
        note_version(store, manifest(version))


def test_an_older_one_is_refused(store: Store) -> None:
    note_version(store, manifest(5))
    for version in (4, 0):
        with pytest.raises(ArtifactError, match=rf"tiny {version} is older than 5, .* needs a signed order"):
            check(store, manifest(version))


def test_each_name_has_versions_of_its_own(store: Store) -> None:
    note_version(store, manifest(5))
    check(store, manifest(1, name="other"))
    note_version(store, manifest(1, name="other"))
    with pytest.raises(ArtifactError, match="older than 5"):
        check(store, manifest(4))


def test_an_order_takes_it_back_once(store: Store) -> None:
    note_version(store, manifest(5))
    check(store, manifest(3), announcement(order()))
    note_version(store, manifest(3))
    check(store, manifest(3))
    note_version(store, manifest(6))
    with pytest.raises(ArtifactError, match="for another step"):
        check(store, manifest(3), announcement(order()))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"from_version": 4},
        {"to_version": 2},
        {"to_sha256": b"x" * 32},
        {"expires": NOW - 1},
    ],
    ids=str,
)
def test_an_order_for_another_step_or_time_is_refused(store: Store, changes: dict[str, object]) -> None:
    note_version(store, manifest(5))
    with pytest.raises(ArtifactError, match="for another step, or has expired"):
        check(store, manifest(3), announcement(order(**changes)))


def test_an_order_for_another_archive_of_that_version_is_refused(store: Store) -> None:
    note_version(store, manifest(5))
    with pytest.raises(ArtifactError, match="for another step"):
        check(store, manifest(3), announcement(order(), sha256=b"y" * 32))


def test_an_order_by_the_server_is_refused_where_there_are_publishers(store: Store) -> None:
    """The server's key may have been stolen; packages and orders are the publishers' alone."""
    note_version(store, manifest(5))
    by_server = sign_rollback(Rollback("tiny", 5, 3, OLD), SERVER)
    with pytest.raises(SignatureError, match="not signed by a publisher"):
        check(store, manifest(3), announcement(by_server))
    check_version(store, manifest(3), announcement(by_server), [SERVER.public], NOW)


def test_what_is_no_order_is_refused(store: Store) -> None:
    note_version(store, manifest(5))
    for damaged in (b"x", order()[:-1], bytes(5000)):
        with pytest.raises(ProtocolError):
            check(store, manifest(3), announcement(damaged))


def test_an_order_that_is_not_needed_is_not_looked_at(store: Store) -> None:
    note_version(store, manifest(5))
    check(store, manifest(5), announcement(b"whatever"))
    check(store, manifest(6), announcement(b"whatever"))


def test_a_package_that_has_expired_is_refused_even_by_order(store: Store) -> None:
    check(store, manifest(1, expires=NOW))
    with pytest.raises(ArtifactError, match="package tiny 1 has expired"):
        check(store, manifest(1, expires=NOW), now=NOW + 1)
    note_version(store, manifest(5))
    with pytest.raises(ArtifactError, match="has expired"):
        check(store, manifest(3, expires=NOW - 1), announcement(order()))
