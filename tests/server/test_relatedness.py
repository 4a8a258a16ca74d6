"""Relatedness: what cosines, tree and groups say of planted fleets, liars, noise, and a real journal."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.__main__ import main
from server.relatedness.directions import SKETCH, Directions, Relatedness, cosines
from server.relatedness.from_journal import of_journal
from server.relatedness.groups import suggest
from server.relatedness.tree import average_linkage, cut, order, silhouette
from tests.builders import PARAMETERS
from tests.server.databases import Database
from tests.server.federation import MANY, Federation, update_of

Matrix = NDArray[np.float64]

LENGTH = 400


def planted(groups: list[int], rounds: int, *, noise: float = 3.0, seed: int = 0) -> list[Matrix]:
    """Updates of devices by their group: what all learn, what a group learns, and noise."""
    random = np.random.Generator(np.random.PCG64(seed))
    common, directions = random.normal(size=LENGTH), random.normal(size=(max(groups) + 1, LENGTH))
    return [
        5 * common + directions[groups] + noise * random.normal(size=(len(groups), LENGTH))
        for _ in range(rounds)
    ]


def measured(rounds: list[Matrix], weights: list[float] | None = None) -> Relatedness:
    directions = Directions(rounds[0].shape[1])
    for number, updates in enumerate(rounds, 1):
        names = [f"d{index:02}" for index in range(len(updates))]
        directions.add_round(number, names, list(updates), weights or [1.0] * len(updates))
    return directions.relatedness()


def test_a_tree_by_hand() -> None:
    distances = np.array([[0, 2, 6, 10], [2, 0, 5, 9], [6, 5, 0, 4], [10, 9, 4, 0]], np.float64)
    joins = average_linkage(distances)
    assert [(join.left, join.right, join.distance, join.leaves) for join in joins] == [
        (0, 1, 2.0, 2),
        (2, 3, 4.0, 2),
        (4, 5, 7.5, 4),
    ]
    assert order(joins, 4) == [0, 1, 2, 3]
    assert cut(joins, 4, 2).tolist() == [0, 0, 1, 1]
    # By hand: device 0 has 2 inside and 8 outside, so 0.75; then 5/7, 1.5/5.5 and 5.5/9.5.
    expected = (6 / 8 + 5 / 7 + 1.5 / 5.5 + 5.5 / 9.5) / 4
    assert silhouette(distances, np.array([0, 0, 1, 1])) == pytest.approx(expected)
    assert silhouette(distances, np.array([0, 0, 0, 1])) < expected


@given(st.integers(0, 1 << 32), st.integers(2, 12))
def test_every_fork_is_the_mean_distance_of_its_branches(seed: int, count: int) -> None:
    points = np.random.Generator(np.random.PCG64(seed)).normal(size=(count, 3))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    joins = average_linkage(distances)
    leaves = {leaf: [leaf] for leaf in range(count)}
    for step, join in enumerate(joins):
        between = distances[np.ix_(leaves[join.left], leaves[join.right])]
        assert join.distance == pytest.approx(between.mean())
        leaves[count + step] = leaves[join.left] + leaves[join.right]
        assert join.leaves == len(leaves[count + step])
    assert all(one.distance <= other.distance + 1e-9 for one, other in pairwise(joins))
    hanging = order(joins, count)
    assert sorted(hanging) == list(range(count))
    for clusters in range(1, count + 1):
        labels = cut(joins, count, clusters)
        assert len(set(labels.tolist())) == clusters
        along = labels[hanging]
        assert (np.diff(along) >= 0).all()  # a cluster is one stretch of the tree


@given(st.integers(0, 1 << 32))
def test_cosines_are_symmetric_and_do_not_depend_on_length(seed: int) -> None:
    random = np.random.Generator(np.random.PCG64(seed))
    vectors = random.normal(size=(5, 7))
    vectors[2] = 0
    found = cosines(vectors)
    assert (found == found.T).all()
    assert (np.diag(found) == 1).all()
    assert (found[2, [0, 1, 3, 4]] == 0).all()
    np.testing.assert_allclose(found, cosines(vectors * random.uniform(0.1, 9, (5, 1))), atol=1e-12)
    assert found[0, 1] == pytest.approx(
        vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    )


def test_what_all_devices_learn_says_nothing_of_them() -> None:
    rounds = planted([0] * 4 + [1] * 4, 4)
    shifted = [updates + 7 for updates in rounds]
    np.testing.assert_allclose(measured(rounds).cosine, measured(shifted).cosine, atol=0.02)
    raw = cosines(rounds[0])
    assert raw[0, 7] > 0.6  # so alike do they look with what they have in common
    assert measured(rounds).cosine[0, 7] < -0.1


def test_rounds_are_averaged_so_that_noise_fades() -> None:
    def contrast(rounds: int) -> float:
        cosine = measured(planted([0] * 4 + [1] * 4, rounds)).cosine
        return float(cosine[:4, :4].mean() - cosine[:4, 4:].mean())

    assert contrast(1) < contrast(4) < contrast(16)


def test_a_device_that_lies_about_weight_and_length_does_not_make_the_others_look_alike() -> None:
    honest = planted([0] * 4 + [1] * 4, 6, noise=1.0)
    lying = [np.vstack([updates, 1e6 * np.ones(LENGTH)]) for updates in honest]
    plain = cosines(sum(updates - updates.mean(0) for updates in lying))
    assert plain[:8, :8].min() > 0.99  # what one liar does to a plain mean
    found = measured(lying, [1.0] * 8 + [1e9]).cosine
    assert found[:4, :4].min() > found[:4, 4:8].max() + 0.2


def test_long_adapters_are_sketched_and_their_cosines_hardly_change() -> None:
    random = np.random.Generator(np.random.PCG64(1))
    vectors = random.normal(size=(6, 4 * SKETCH)) + np.repeat(random.normal(size=(2, 4 * SKETCH)), 3, axis=0)
    exact = cosines(vectors - vectors.mean(0))
    assert np.abs(measured([vectors]).cosine - exact).max() < 0.05


def test_planted_groups_are_found() -> None:
    groups = [0] * 5 + [1] * 4 + [2] * 6
    found = suggest(measured(planted(groups, 8, noise=1.5)))
    assert found.count == 3
    assert len(set(zip(groups, found.labels, strict=True))) == 3
    assert found.silhouette > 0.25


@pytest.mark.parametrize("seed", range(5))
def test_a_fleet_without_groups_is_one_group_whatever_its_noise_looks_like(seed: int) -> None:
    found = suggest(measured(planted([0] * 12, 6, seed=seed)))
    assert found.count == 1
    assert set(found.labels) == {0}


def test_devices_that_each_go_their_own_way_are_one_group() -> None:
    found = suggest(measured(planted(list(range(16)), 8, noise=0.5)))
    assert (found.count, "without gaps" in found.reason) == (1, True)


@pytest.mark.parametrize(("devices", "rounds", "reason"), [(6, 8, "fewer than 7"), (8, 1, "two rounds")])
def test_too_little_to_see_groups_in_is_one_group(devices: int, rounds: int, reason: str) -> None:
    found = suggest(measured(planted([index % 2 for index in range(devices)], rounds, noise=0.1)))
    assert (found.count, reason in found.reason) == (1, True)


# From a journal


@pytest.fixture
def federation(tmp_path: Path, database: Database) -> Iterator[Federation]:
    federation = Federation(tmp_path / "data", database=database, names=MANY[:8])
    federation.push()
    federation.register()
    federation.coordinator.tick()
    yield federation
    federation.close()


def learned(name: str) -> NDArray[np.float32]:
    """The first four devices learn one thing, the others the contrary."""
    return np.full(PARAMETERS, 0.5 if name in MANY[:4] else -0.5, np.float32)


def run_round(federation: Federation, missing: str = "") -> bytes:
    """A round that everyone answers, or all but one, at its deadline; returns the update that is missing."""
    current = federation.open_round()
    updates = {name: update_of(name, current, learned(name)) for name in federation.names}
    for name, update in updates.items():
        if name != missing:
            federation.deliver(name, update)
    if missing:
        federation.clock.advance(100.0)
        federation.coordinator.tick()
    return updates.get(missing, b"")


def test_the_journal_shows_who_learns_alike(federation: Federation) -> None:
    for _ in range(4):
        run_round(federation)
    found = of_journal(federation.store, "pumps", 3)
    assert (found.devices, found.rounds) == (federation.names, (2, 3, 4))
    assert found.cosine[:4, :4].min() > 0 > found.cosine[:4, 4:].max()
    assert suggest(found).labels == (0,) * 4 + (1,) * 4


def test_a_late_update_is_compared_with_those_of_the_round_that_it_answers(federation: Federation) -> None:
    late = run_round(federation, missing=MANY[7])
    federation.open_round()
    assert federation.deliver(MANY[7], late)[0].verdict == "counted"
    found = of_journal(federation.store, "pumps", 9)
    assert (found.devices, found.rounds) == (federation.names, (1,))
    assert found.cosine[7, 4:7].mean() > 0 > found.cosine[7, :4].mean()


def test_a_new_package_starts_anew(federation: Federation) -> None:
    run_round(federation)
    federation.push(0.5, filler=3)
    federation.coordinator.tick()
    assert of_journal(federation.store, "pumps", 9).devices == ()
    run_round(federation)
    assert of_journal(federation.store, "pumps", 9).rounds == (2,)


class Operator:
    """Types `relatedness` at a federation's data."""

    def __init__(self, federation: Federation, output: pytest.CaptureFixture[str]) -> None:
        self.folder, self.output = Path(federation.config.data_directory).parent, output
        text = f'federation = "pumps"\ndata_directory = "data"\ndatabase = "{federation.config.database}"\n'
        (self.folder / "server.toml").write_text(text, "utf-8")

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        status = main(["--config", str(self.folder / "server.toml"), "relatedness", *arguments])
        return status, *self.output.readouterr()


def test_the_command_prints_matrix_tree_and_groups(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = Operator(federation, capsys)
    assert operator() == (
        1,
        "",
        "error: the journal holds no round with two updates or more of the package that runs\n",
    )
    for _ in range(4):
        run_round(federation)
    status, text, _ = operator()
    assert status == 0
    assert "1  pump-1" in text
    assert "─ pump-1  group 1" in text
    assert "─ pump-8  group 2" in text
    assert "suggested: 2 groups" in text
    status, text, _ = operator("--json", "--rounds", "2")
    found = json.loads(text)
    assert found["rounds"] == [3, 4]
    assert found["groups"] == [0] * 4 + [1] * 4
    assert set(found["devices"][:4]) == set(MANY[:4])
    assert [join["devices"] for join in found["tree"]][-1] == 8
    assert [row[index] for index, row in enumerate(found["cosine"])] == [1.0] * 8
    assert "expected 1 or more, got 0" in operator("--rounds", "0")[2]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_picture_is_written_and_needs_its_extra(
    federation: Federation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_round(federation)
    operator, file = Operator(federation, capsys), Path(federation.config.data_directory) / "new" / "tree.png"
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "matplotlib", None)
        assert (
            "--plot needs matplotlib: pip install 'graftwork[server,server-plot]'"
            in operator("--plot", str(file))[2]
        )
    pytest.importorskip("matplotlib")
    assert operator("--plot", str(file))[0] == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert "is not supported" in operator("--plot", str(file.with_suffix(".mp3")))[2]


def test_an_update_that_lost_its_signature_is_left_out(federation: Federation) -> None:
    run_round(federation)
    for journalled in list(federation.store.answers(1)):
        assert journalled.round == 1
    federation.config = replace(federation.config, federation="pumps")
    # Under another name of the federation no signature fits: as if every row had been tampered with.
    assert of_journal(federation.store, "fans", 9).devices == ()
