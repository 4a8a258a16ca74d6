"""The short crash matrix, and that the matrix sees what it is there to see.

The long one is `python -m benchmarks.crash`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.crash import Result, report, run_points
from benchmarks.crash_points import CHUNKS, DEVICES, EVENTS, ROUNDS, VICTIMS, make_point
from benchmarks.crash_verdict import Remains, Verdict, compare
from tests.system.plant import needs_mosquitto

POINTS = 22
"""Every victim twice, every event at least twice."""
SEED = 7

KEYS = [(device, number) for device in DEVICES for number in range(1, ROUNDS + 1)]
UNDISTURBED = Remains(
    updates={key: repr(key).encode() for key in KEYS},
    releases={number: (bytes([number]), len(DEVICES), 45) for number in range(1, ROUNDS + 1)},
    held=dict.fromkeys(DEVICES, bytes([ROUNDS])),
    outbox=frozenset(),
    answers=dict.fromkeys(KEYS, 1),
    receipts=dict.fromkeys(KEYS, ("counted",)),
    replays=dict.fromkeys(range(1, ROUNDS + 1), ""),
)
KEY = KEYS[0]


@pytest.mark.system
@pytest.mark.timeout(900)  # a slow machine may need minutes; nothing waits for this
@needs_mosquitto
def test_no_update_is_lost_or_counted_twice_whatever_is_killed_when(tmp_path: Path) -> None:
    points = [make_point(SEED, number) for number in range(POINTS)]
    results = run_points(points, tmp_path, note=lambda _: None)
    assert [f"{result.point}: {result.verdict}" for result in results if not result.verdict.good] == []
    assert [result.point for result in results] == points
    # The package's adapter and the rounds' releases.
    assert [result.replays for result in results] == [1 + ROUNDS] * POINTS


def test_one_lap_visits_every_victim_with_every_event() -> None:
    lap = len(VICTIMS) * len(EVENTS)
    points = [make_point(1, number) for number in range(lap)]
    assert {(point.victims, point.event.kind) for point in points} == {
        (victims, kind) for victims in VICTIMS for kind in EVENTS
    }


def test_the_short_matrix_has_every_victim_and_every_event() -> None:
    points = [make_point(SEED, number) for number in range(POINTS)]
    assert {point.victims for point in points} == set(VICTIMS)
    assert {point.event.kind for point in points} == set(EVENTS)


@given(st.integers(0, 2**32), st.integers(0, 10_000))
def test_a_point_can_be_repeated_and_its_event_comes_in_every_run(seed: int, number: int) -> None:
    point = make_point(seed, number)
    assert make_point(seed, number) == point
    highest = {"chunk": CHUNKS - 1}.get(point.event.kind, ROUNDS)
    assert 0 <= point.event.number <= highest
    assert point.event.count <= len(DEVICES)
    assert len(point.blows) == len(VICTIMS[point.victims])
    for blow in point.blows:
        assert len(set(blow.processes)) == len(blow.processes) == len(blow.down_seconds)
        assert set(blow.processes) <= {*DEVICES, "server", "broker"}
        assert "broker" in blow.processes or not blow.forget


def without(key: tuple[str, int]) -> Remains:
    return replace(UNDISTURBED, updates={k: v for k, v in UNDISTURBED.updates.items() if k != key})


def with_release(number: int, sha256: bytes, updates: int, weight: int) -> Remains:
    return replace(
        UNDISTURBED,
        releases={**UNDISTURBED.releases, number: (sha256, updates, weight)},
        replays={**UNDISTURBED.replays, number: ""},
    )


def lost(verdict: Verdict) -> tuple[str, ...]:
    return verdict.lost


def double(verdict: Verdict) -> tuple[str, ...]:
    return verdict.double


def different(verdict: Verdict) -> tuple[str, ...]:
    return verdict.different


def replayed_otherwise(verdict: Verdict) -> tuple[str, ...]:
    return verdict.replayed_otherwise


@pytest.mark.parametrize(
    ("remains", "finding"),
    [
        pytest.param(without(KEY), lost, id="an update is not in the journal"),
        pytest.param(replace(UNDISTURBED, outbox=frozenset([KEY])), lost, id="an update has no receipt"),
        pytest.param(
            replace(UNDISTURBED, receipts={**UNDISTURBED.receipts, KEY: ("refused",)}),
            lost,
            id="the receipt says refused",
        ),
        pytest.param(with_release(1, b"\x01", 2, 30), lost, id="a release left a journalled update out"),
        pytest.param(with_release(1, b"\x01", 4, 60), double, id="a release counts an update twice"),
        pytest.param(with_release(1, b"\x01", 3, 60), double, id="a release counts a weight twice"),
        pytest.param(
            replace(UNDISTURBED, answers={**UNDISTURBED.answers, KEY: 2}),
            double,
            id="a device answers a round twice",
        ),
        pytest.param(
            replace(UNDISTURBED, updates={**UNDISTURBED.updates, ("pump-1", 4): b"?"}),
            double,
            id="an update that was not due",
        ),
        pytest.param(with_release(1, b"?", 3, 45), different, id="a release of other bytes"),
        pytest.param(with_release(4, b"?", 3, 45), different, id="a release too many"),
        pytest.param(
            replace(UNDISTURBED, updates={**UNDISTURBED.updates, KEY: b"?"}),
            different,
            id="an update of other bytes",
        ),
        pytest.param(
            replace(UNDISTURBED, held={**UNDISTURBED.held, "fan-1": b"?"}),
            different,
            id="a device holds another release",
        ),
        pytest.param(
            replace(UNDISTURBED, replays={**UNDISTURBED.replays, 2: "different: adapter"}),
            replayed_otherwise,
            id="the journal gives another release",
        ),
        pytest.param(
            replace(UNDISTURBED, replays=dict.fromkeys(range(1, ROUNDS), "")),
            replayed_otherwise,
            id="a release was not replayed",
        ),
    ],
)
def test_a_fault_is_seen_under_its_name(
    remains: Remains, finding: Callable[[Verdict], tuple[str, ...]]
) -> None:
    verdict = compare(remains, UNDISTURBED)
    assert len(finding(verdict)) == 1
    assert len(verdict.lost + verdict.double + verdict.different + verdict.replayed_otherwise) == 1
    assert not verdict.good


def test_an_update_that_is_counted_after_it_came_again_is_no_fault() -> None:
    receipts = {**UNDISTURBED.receipts, KEY: ("duplicate",)}
    assert compare(replace(UNDISTURBED, receipts=receipts), UNDISTURBED).good


def test_the_report_counts_faults_and_names_the_point_to_repeat() -> None:
    points = [make_point(SEED, number) for number in range(4)]
    verdicts = [
        Verdict(),
        compare(without(KEY), UNDISTURBED),
        Verdict(failed="waited in vain"),
        compare(replace(UNDISTURBED, replays={**UNDISTURBED.replays, 2: "different: adapter"}), UNDISTURBED),
    ]
    results = [
        Result(point, verdict, 1.0, replays=4) for point, verdict in zip(points, verdicts, strict=True)
    ]
    found = report(results, SEED, 3.0)
    assert (found["points"], found["lost"], found["double"], found["different_releases"]) == (4, 1, 0, 1)
    assert (found["replays"], found["replays_different"]) == (16, 1)
    assert [failure["point"] for failure in found["failures"]] == [1, 2, 3]
