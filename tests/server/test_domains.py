"""A federation that is really two: it is split once, each half learns its own, nothing is lost or mixed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.domains import adapter_of
from protocol.messages import Release, Round
from protocol.release_coding import release_adapter
from server.replay import SAME, replay_all
from server.round import RoundPolicy
from server.rules.policy import AggregationPolicy
from tests.builders import PARAMETERS
from tests.server.databases import Database
from tests.server.federation import MANY, PARTS, Federation, update_of

NAMES = MANY[:8]
LEFT, RIGHT = NAMES[:4], NAMES[4:]
Learned = Callable[[str, int], NDArray[np.float32]]


@pytest.fixture
def federation(tmp_path: Path, database: Database) -> Iterator[Federation]:
    yield from begun(tmp_path, database)


def begun(
    tmp_path: Path, database: Database, aggregation: AggregationPolicy | None = None
) -> Iterator[Federation]:
    federation = Federation(tmp_path / "data", database=database, names=NAMES, aggregation=aggregation)
    federation.push()
    federation.register()
    federation.coordinator.tick()
    yield federation
    federation.close()


def two_kinds(name: str, number: int) -> NDArray[np.float32]:
    """Four devices learn one thing, the others the contrary; all learn something together."""
    random = np.random.Generator(np.random.PCG64([NAMES.index(name), number]))
    own = np.array([0.5, 0.5, 0, 0, 0, 0.5]) * (1 if name in LEFT else -1)
    everyone = np.array([0, 0, 0.3, 0.3, 0, 0])
    return (own + everyone + random.normal(scale=0.05, size=PARAMETERS)).astype(np.float32)


def one_kind(name: str, number: int) -> NDArray[np.float32]:
    random = np.random.Generator(np.random.PCG64([NAMES.index(name), number]))
    return (0.3 + random.normal(scale=0.2, size=PARAMETERS)).astype(np.float32)


def domain_of(federation: Federation, name: str) -> int:
    """What a device chooses that knows where it belongs."""
    newest = federation.store.newest_release()
    assert newest is not None
    return 0 if newest.domains == 1 else federation.store.placement(1, newest.number).get(name, 0)


def run_round(federation: Federation, learned: Learned, missing: str = "") -> bytes:
    """A round that everyone answers, or all but one, at its deadline; returns the update that is missing."""
    current: Round = federation.open_round()
    updates = {
        name: update_of(name, current, learned(name, current.number), domain=domain_of(federation, name))
        for name in NAMES
    }
    for name, update in updates.items():
        if name != missing:
            assert [receipt.verdict for receipt in federation.deliver(name, update)] == ["counted"]
    if missing:
        federation.clock.advance(100.0)
        federation.coordinator.tick()
    return updates.get(missing, b"")


def adapters(release: Release, base: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """What a device makes of a release's message."""
    return release_adapter(release, base, PARTS, PARAMETERS)


def whole(federation: Federation, number: int) -> NDArray[np.float64]:
    """A release's adapters with what coding them left over."""
    kept = federation.store.release(number)
    assert kept is not None
    return kept.adapter + np.asarray(kept.residual, np.float64) / 2**30


def test_each_half_gets_the_mean_of_its_own_updates(federation: Federation) -> None:
    run_round(federation, two_kinds)
    first = federation.release()
    base = federation.store.release(1)
    assert base is not None
    assert first.domains == 1
    run_round(federation, two_kinds)
    second = federation.release()
    assert second.domains == 2
    stack = adapters(second, base.adapter)  # the base of one adapter stands for both
    left = adapter_of(stack, PARAMETERS, domain_of(federation, LEFT[0]))
    right = adapter_of(stack, PARAMETERS, domain_of(federation, RIGHT[0]))
    assert {domain_of(federation, name) for name in LEFT} != {domain_of(federation, name) for name in RIGHT}
    assert left[0] - right[0] > 0.5
    for names in (LEFT, RIGHT):
        found = adapter_of(whole(federation, 2), PARAMETERS, domain_of(federation, names[0]))
        expected = whole(federation, 1) + np.mean([two_kinds(name, 2) for name in names], axis=0)
        np.testing.assert_allclose(found, expected, atol=0.25)  # what coding updates of six values costs


def test_domains_go_on_apart_and_every_release_is_replayed(federation: Federation) -> None:
    for _ in range(5):
        run_round(federation, two_kinds)
    newest = federation.store.newest_release()
    assert newest is not None
    assert newest.domains == 2
    apart = [adapter_of(newest.adapter, PARAMETERS, domain)[0] for domain in (0, 1)]
    assert abs(apart[0] - apart[1]) > 3  # four rounds of 0.5 either way
    assert [result.verdict for result in replay_all(federation.store, "pumps")] == [SAME] * 6


def test_a_fleet_of_one_kind_is_never_split(federation: Federation) -> None:
    for _ in range(6):
        run_round(federation, one_kind)
    assert federation.release().domains == 1


def test_who_wants_one_release_for_all_gets_it(tmp_path: Path, database: Database) -> None:
    for federation in begun(tmp_path, database, AggregationPolicy(maximum_domains=1)):
        for _ in range(4):
            run_round(federation, two_kinds)
        assert federation.release().domains == 1


def test_a_late_update_from_before_the_split_counts_in_its_half(federation: Federation) -> None:
    run_round(federation, two_kinds)
    late = run_round(federation, two_kinds, missing=RIGHT[0])
    assert federation.release().domains == 2
    federation.open_round()
    [receipt] = federation.deliver(RIGHT[0], late)
    assert receipt.verdict == "counted"
    current = federation.newest(Round, "round")
    for name in NAMES:
        if name != RIGHT[0]:
            level = 0.3 if name in RIGHT else 0.0
            federation.deliver(name, update_of(name, current, level, domain=domain_of(federation, name)))
    federation.clock.advance(100.0)
    federation.coordinator.tick()
    assert federation.release().number == 3
    moved = whole(federation, 3) - whole(federation, 2)
    left, right = (adapter_of(moved, PARAMETERS, domain_of(federation, name)) for name in (LEFT[0], RIGHT[0]))
    assert abs(left[0]) < 0.01
    assert right[1] > 0.05
    assert {result.verdict for result in replay_all(federation.store, "pumps")} == {SAME}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_kill_before_the_split_changes_nothing(tmp_path: Path, database: Database) -> None:
    hashes = []
    for folder, killed in (("one", False), ("other", True)):
        for federation in begun(tmp_path / folder, database):
            run_round(federation, two_kinds)
            current = federation.open_round()
            for name in NAMES:
                federation.deliver(name, update_of(name, current, two_kinds(name, 2)))
                if killed:
                    federation.restart()
            federation.coordinator.tick()
            assert federation.release().domains == 2
            hashes.append(federation.release().adapter_sha256)
    assert hashes[0] == hashes[1]


def test_a_domain_that_is_not_there_is_refused(federation: Federation) -> None:
    current = federation.open_round()
    [receipt] = federation.deliver(LEFT[0], update_of(LEFT[0], current, 0.5, domain=1))
    assert (receipt.verdict, receipt.reason) == ("refused", "expected a domain up to 0, got 1")


def test_a_domain_that_nobody_is_in_any_more_stays_as_it_is(tmp_path: Path, database: Database) -> None:
    for federation in begun(tmp_path, database, AggregationPolicy(server_optimizer="adam")):
        run_round(federation, two_kinds)
        run_round(federation, two_kinds)
        before = federation.store.newest_release()
        current = federation.open_round()
        for name in NAMES:
            federation.deliver(name, update_of(name, current, 0.5, domain=1))
        after = federation.store.newest_release()
        assert before is not None
        assert after is not None
        empty, full = (adapter_of(after.adapter - before.adapter, PARAMETERS, domain) for domain in (0, 1))
        residual = np.abs(np.asarray(before.residual)).max() / 2**30
        assert np.abs(empty).max() <= 2 * residual < np.abs(full).max()


def test_a_new_package_starts_as_one(federation: Federation) -> None:
    run_round(federation, two_kinds)
    run_round(federation, two_kinds)
    assert federation.release().domains == 2
    federation.push(0.5, filler=3)
    federation.coordinator.tick()
    assert federation.release().domains == 1


def test_devices_that_missed_a_round_are_placed_with_those_that_they_are_like(
    tmp_path: Path, database: Database
) -> None:
    names = MANY[:9]
    federation = Federation(
        tmp_path / "data",
        database=database,
        names=names,
        round_policy=RoundPolicy(minimum_devices=2, deadline_seconds=100.0),
    )
    federation.push()
    federation.register()
    federation.coordinator.tick()
    for number in (1, 2):
        current = federation.open_round()
        for name in NAMES:
            federation.deliver(name, update_of(name, current, two_kinds(name, number)))
        if number == 2:
            federation.deliver(names[8], update_of(names[8], current, two_kinds(RIGHT[0], 7)))
        else:
            federation.clock.advance(100.0)
            federation.coordinator.tick()
    placed = federation.store.placement(1, 2)
    assert placed[names[8]] == placed[RIGHT[0]] != placed[LEFT[0]]
    federation.close()
