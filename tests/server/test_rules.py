"""Aggregation rules: the same bits in every order and split, plain formulas, and attackers withstood."""

import gc
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.quantisation import VALUE_BITS, to_float
from server import rules
from server.rules import rule as arithmetic
from server.rules.policy import RULES, AggregationPolicy
from server.rules.spool import Spool

SIZE = 5
UNIT = 1 << 30
LARGEST = (1 << VALUE_BITS) - 1
ROBUST = tuple(name for name in RULES if name != "mean")
Update = tuple[NDArray[np.int64], int]
Floats = NDArray[np.float64]

vectors = st.lists(
    st.integers(-LARGEST, LARGEST) | st.integers(-UNIT, UNIT) | st.integers(-2, 2),
    min_size=SIZE,
    max_size=SIZE,
).map(lambda values: np.array(values, np.int64))
updates = st.lists(st.tuples(vectors, st.integers(1, 1 << 16)), min_size=1, max_size=12)


def aggregate(name: str, parts: Sequence[Update], **options: object) -> NDArray[np.int64]:
    rule = rules.make(AggregationPolicy(rule=name, **options), len(parts[0][0]))  # type: ignore[arg-type]
    for vector, weight in parts:
        rule.add(vector, weight)
    return rule.mean()


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60)
@given(parts=updates, random=st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_no_bit(name: str, parts: list[Update], random: object) -> None:
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert aggregate(name, parts).tobytes() == aggregate(name, shuffled).tobytes()


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60)
@given(parts=updates)
def test_no_value_leaves_the_range_of_the_updates(name: str, parts: list[Update]) -> None:
    """So nothing overflows, and no rule invents a value; one unit is lost to each rounding down."""
    found = aggregate(name, parts)
    table = np.array(
        [vector for vector, _ in parts] + [np.zeros(SIZE, np.int64)]
    )  # the clipping rules' centre
    slack = 1 + 2 * AggregationPolicy().iterations
    rounding = (LARGEST >> 15) if name in ("bounded_mean", "centered_clipping") else 0  # of the 16-bit scale
    assert (found >= table.min(0) - slack - rounding).all()
    assert (found <= table.max(0) + slack + rounding).all()
    assert (np.abs(found) <= LARGEST + slack).all()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("value", [LARGEST, -LARGEST])
def test_largest_values_with_largest_weights_do_not_overflow(name: str, value: int) -> None:
    parts = [(np.full(SIZE, value, np.int64), 1 << 16) for _ in range(9)]
    assert np.abs(aggregate(name, parts) - value).max() <= 2**6  # of 2**36


@pytest.mark.parametrize("name", RULES)
def test_opposite_largest_values_do_not_overflow(name: str) -> None:
    """Distances are largest between them."""
    parts = [(np.full(SIZE, sign * LARGEST, np.int64), 1 << 16) for sign in (1, -1, 1, -1, 1, 1, 1)]
    found = aggregate(name, parts)
    assert (found > 0).all()
    assert (found <= LARGEST).all()


@pytest.mark.parametrize("name", RULES)
def test_a_round_without_updates_changes_nothing(name: str) -> None:
    assert rules.make(AggregationPolicy(rule=name), SIZE).mean().tolist() == [0] * SIZE


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_equal_updates_are_their_own_aggregate(name: str, count: int) -> None:
    vector = np.array([UNIT, -UNIT, 3, 0, -7], np.int64)
    assert np.abs(aggregate(name, [(vector, 5)] * count) - vector).max() <= 2


# Plain formulas, in float64


def mean(x: Floats, w: Floats) -> Floats:
    return np.average(x, axis=0, weights=w)


def bounded_mean(x: Floats, w: Floats) -> Floats:
    norms = np.linalg.norm(x, axis=1)
    limit, most = np.sort(norms)[(len(x) - 1) // 2], np.sort(w)[(len(w) - 1) // 2]
    return mean(x * np.minimum(1, limit / norms)[:, None], np.minimum(w, most))


def trimmed_mean(x: Floats, _: Floats) -> Floats:
    cut = int(0.2 * len(x))
    return np.sort(x, axis=0)[cut : len(x) - cut].mean(0)


def median(x: Floats, _: Floats) -> Floats:
    return np.median(x, axis=0)


def geometric_median(x: Floats, w: Floats) -> Floats:
    w = np.minimum(w, np.sort(w)[(len(w) - 1) // 2])
    centre = mean(x, w)
    for _ in range(AggregationPolicy().iterations):
        centre = mean(x, w / np.maximum(1e-6, np.linalg.norm(x - centre, axis=1)))
    return centre


def centered_clipping(x: Floats, w: Floats) -> Floats:
    w = np.minimum(w, np.sort(w)[(len(w) - 1) // 2])
    centre = np.zeros(x.shape[1])
    for _ in range(AggregationPolicy().iterations):
        distances = np.linalg.norm(x - centre, axis=1)
        radius = np.sort(distances)[(len(x) - 1) // 2]
        centre = centre + mean((x - centre) * np.minimum(1, radius / distances)[:, None], w)
    return centre


def multi_krum(x: Floats, _: Floats) -> Floats:
    hostile = max(0, min(int(0.2 * len(x)), (len(x) - 3) // 2))
    squares = ((x[:, None] - x[None]) ** 2).sum(2)
    scores = np.sort(squares, axis=1)[:, 1 : len(x) - hostile - 1].sum(1)
    return x[np.argsort(scores, kind="stable")[: len(x) - hostile]].mean(0)


FORMULAS = {
    f.__name__: f
    for f in (mean, bounded_mean, trimmed_mean, median, geometric_median, centered_clipping, multi_krum)
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", range(5))
def test_a_rule_is_its_plain_formula(name: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(5, 30))
    x = random.normal(0.05, 0.1, (count, 200)) * random.uniform(0.3, 3, (count, 1))
    w = random.integers(1, 100, count)
    fixed = np.rint(x * UNIT).astype(np.int64)
    found = to_float(aggregate(name, list(zip(fixed, w.tolist(), strict=True))))
    assert np.allclose(found, FORMULAS[name](x, w.astype(float)), atol=2e-5)


@pytest.mark.parametrize("name", ROBUST)
def test_a_quarter_of_the_updates_cannot_turn_the_round(name: str) -> None:
    """Ten honest updates around 1, three hostile ones far off that claim to outweigh all others."""
    random = np.random.default_rng(1)
    honest = random.normal(1.0, 0.1, (10, 50))
    hostile = np.full((3, 50), -30.0)
    fixed = np.rint(np.concatenate([honest, hostile]) * UNIT).astype(np.int64)
    weights = [20] * 10 + [4096] * 3
    found = to_float(
        aggregate(name, list(zip(fixed, weights, strict=True)), assumed_attackers=0.25, iterations=30)
    )
    # Bounding leaves the hostile updates an honest norm each: three of thirteen against ten.
    floor = 0.45 if name == "bounded_mean" else 0.85
    assert (found > floor).all()
    assert (found < 1.5).all()
    undefended = to_float(aggregate("mean", list(zip(fixed, weights, strict=True))))
    assert (undefended < -25).all()


@pytest.mark.parametrize("name", ROBUST)
def test_an_update_that_is_sent_with_a_larger_weight_gains_nothing_beyond_the_median(name: str) -> None:
    random = np.random.default_rng(2)
    fixed = random.integers(-UNIT, UNIT, (7, SIZE))
    modest = [(vector, 30) for vector in fixed]
    boasting = [*modest[:-1], (fixed[-1], 1 << 16)]
    assert aggregate(name, modest).tobytes() == aggregate(name, boasting).tobytes()


@pytest.mark.parametrize("name", ["trimmed_mean", "median", "multi_krum", "geometric_median", "bounded_mean"])
def test_a_round_larger_than_memory_comes_out_with_the_same_bits(name: str) -> None:
    random = np.random.default_rng(3)
    parts = [(random.integers(-UNIT, UNIT, 70_000), int(random.integers(1, 50))) for _ in range(8)]
    assert sum(vector.nbytes for vector, _ in parts) > 4 * 2**20
    small, large = (aggregate(name, parts, memory_mib=size) for size in (1, 64))
    assert small.tobytes() == large.tobytes()


@pytest.mark.parametrize("name", ["trimmed_mean", "median", "geometric_median", "bounded_mean", "multi_krum"])
def test_memory_does_not_grow_with_the_fleet(name: str) -> None:
    def peak(devices: int) -> int:
        random = np.random.default_rng(4)
        gc.collect()
        tracemalloc.start()
        rule = rules.make(AggregationPolicy(rule=name, memory_mib=1), 20_000)
        for _ in range(devices):
            rule.add(random.integers(-UNIT, UNIT, 20_000), 1)
        rule.mean()
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    assert peak(60) < 1.3 * peak(20) + 2**17  # 3 and 9 MiB of updates
    assert peak(60) < 6 * 2**20


def test_a_spool_gives_back_what_it_took_by_row_and_by_range() -> None:
    random = np.random.default_rng(5)
    table = random.integers(-LARGEST, LARGEST, (40, 9_001))
    spool = Spool(9_001, 1)
    for index, row in enumerate(table):
        spool.add(row, index + 1)
        if index % 7 == 0:
            assert np.array_equal(spool.row(index // 2), table[index // 2])  # read while it grows
    assert np.array_equal(np.array(list(spool.rows())), table)
    blocks = list(spool.columns())
    assert len(blocks) > 1
    assert np.array_equal(np.concatenate([block for _, block in blocks], axis=1), table)
    assert [part.start for part, _ in blocks[1:]] == [part.stop for part, _ in blocks[:-1]]


@given(vectors)
def test_a_length_is_the_norm_of_the_vector(vector: NDArray[np.int64]) -> None:
    found = arithmetic.length(vector) / (1 << arithmetic.LENGTH_BITS)
    assert abs(found - float(np.linalg.norm(to_float(vector)))) < 1e-6


def test_the_largest_difference_of_the_largest_adapter_has_its_length() -> None:
    difference = np.full(4_000_000, 2 * LARGEST, np.int64)
    found = arithmetic.length(difference) / (1 << arithmetic.LENGTH_BITS)
    assert found == pytest.approx(128 * 2000, rel=1e-6)


@given(st.lists(st.integers(1, 1 << 60), min_size=1, max_size=50))
def test_shares_never_sum_up_to_more_than_one(weights: list[int]) -> None:
    found = arithmetic.shares(weights)
    assert (1 << arithmetic.SHARE_BITS) - len(weights) <= sum(found) <= 1 << arithmetic.SHARE_BITS


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "vote"},
        {"server_optimizer": "sgd"},
        {"assumed_attackers": 0.5},
        {"clipping_radius": -1.0},
        {"iterations": 0},
        {"memory_mib": 0},
        {"learning_rate": float("nan")},
        {"beta1": 1.0},
        {"beta2": 1.0},
        {"tau": 0.0},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AggregationPolicy(**wrong)  # type: ignore[arg-type]
