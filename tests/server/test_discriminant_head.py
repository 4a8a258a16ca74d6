"""A federation on a package with a discriminant head: coded finely, counted apart, replayed, no kinship."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.update import Contribution, make_update
from protocol.charter import TrainingPolicy
from protocol.discriminant import STEP_RATIO
from protocol.messages import Report, Round, sign_message
from protocol.package import DISCRIMINANT, EMBEDDING
from server.__main__ import main
from server.relatedness.from_journal import learned_by_gradients, of_journal
from server.replay import SAME, replay_all
from server.store import ReleaseRecord, Store
from tests.builders import (
    HEADED_PARAMETERS,
    PARAMETERS,
    discriminant_manifest,
    discriminant_package,
    headed_adapter,
    tiny_manifest,
    tiny_members,
    tiny_package,
)
from tests.server.databases import Database
from tests.server.federation import KEYS, MANY, NAMES, TOPICS, Federation

Floats = NDArray[np.float32]

MANIFEST = discriminant_manifest({**tiny_members(), EMBEDDING: b"embedding"})
HEAD = MANIFEST.task_slices()[DISCRIMINANT]
RATIO = 8.0
"""Of releases: far coarser than what the head has."""


class HeadedFederation(Federation):
    """A federation whose package has a head, pushed as operators push it."""

    def publish(self) -> None:
        folder = Path(self.config.data_directory).parent
        (folder / "model.zip").write_bytes(discriminant_package())
        text = f'federation = "pumps"\ndata_directory = "data"\ndatabase = "{self.config.database}"\n'
        (folder / "server.toml").write_text(text, "utf-8")
        assert main(["--config", str(folder / "server.toml"), "push", str(folder / "model.zip")]) == 0

    def answer(self, name: str, current: Round, difference: Floats, windows: int = 9) -> None:
        envelope = make_update(
            current,
            Contribution(difference, windows, 0.5, 0.25),
            MANIFEST,
            TrainingPolicy(),
            topics=TOPICS,
            device=name,
            key=KEYS[name],
        )
        [receipt] = self.deliver(name, envelope)
        assert receipt.verdict == "counted"

    def report(self, name: str, ensemble: float, discriminant: float, combined: float) -> None:
        report = Report(
            self.record().number, "combined", 8, 0.0, 9, 0, 1.0, 1, 1, 1,
            ensemble_gain=ensemble, discriminant_gain=discriminant, combined_gain=combined,
        )  # fmt: skip
        topic = TOPICS.up(name, "report")
        self.hand(topic, sign_message(report, KEYS[name], topic))

    def record(self) -> ReleaseRecord:
        newest = self.store.newest_release()
        assert newest is not None
        return newest


@pytest.fixture
def federation(tmp_path: Path, database: Database) -> Iterator[HeadedFederation]:
    federation = begun(tmp_path, database, NAMES)
    yield federation
    federation.close()


def begun(folder: Path, database: Database, names: tuple[str, ...]) -> HeadedFederation:
    folder.mkdir(exist_ok=True)
    federation = HeadedFederation(folder / "data", database=database, names=names)
    federation.config = replace(federation.config, release_step_ratio=RATIO)
    federation.restart()
    federation.publish()
    federation.register()
    federation.coordinator.tick()
    return federation


def learned(seed: int, head: bool = True) -> Floats:
    found = np.random.Generator(np.random.PCG64(seed)).normal(0, 0.2, HEADED_PARAMETERS).astype(np.float32)
    if not head:
        found[HEAD] = 0
    return found


def test_a_package_with_a_head_begins_with_all_members_together(federation: HeadedFederation) -> None:
    assert federation.record().default_choice == federation.release().default == "combined"
    assert federation.record().adapter.tobytes() == headed_adapter().tobytes()


def test_a_package_without_a_head_begins_with_the_ensemble(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text('federation = "pumps"\ndata_directory = "data"\n', "utf-8")
    (tmp_path / "model.zip").write_bytes(tiny_package())
    assert main(["--config", str(tmp_path / "server.toml"), "push", str(tmp_path / "model.zip")]) == 0
    store = Store(tmp_path / "data")
    newest = store.newest_release()
    assert newest is not None
    assert newest.default_choice == "ensemble"
    store.close()


def test_releases_code_the_head_finely_and_come_out_of_the_journal_with_the_same_bits(
    federation: HeadedFederation,
) -> None:
    for number in range(1, 4):
        before = federation.record()
        current = federation.open_round()
        differences = [learned(10 * number + index) for index in range(len(NAMES))]
        for name, difference in zip(NAMES, differences, strict=True):
            federation.answer(name, current, difference)
        after = federation.record()
        assert after.number == number
        # What was moved and what is left over are together what the devices learned, but for their coding.
        moved = after.adapter.astype(np.float64) - before.adapter
        wanted = moved + np.asarray(after.residual) / 2**30
        ratios = MANIFEST.step_ratios(RATIO)
        assert ratios == (RATIO, RATIO, *[STEP_RATIO] * 4)
        for part, ratio in zip(MANIFEST.slices().values(), ratios, strict=True):
            step = ratio * float(np.sqrt(np.mean(wanted[part] ** 2)))
            np.testing.assert_allclose(moved[part], wanted[part], atol=0.64 * step + 1e-6)
        # With the other segments' step, nothing would have been left of the head.
        assert np.count_nonzero(moved[HEAD]) > len(moved[HEAD]) / 2
        assert not moved[:PARAMETERS].all()
    results = sorted(replay_all(federation.store, "pumps"), key=lambda result: result.release)
    assert [(result.verdict, result.updates) for result in results] == [(SAME, n) for n in (0, 3, 3, 3)]
    assert all(result.replayed == result.sha256 for result in results)


def test_a_device_that_says_nothing_of_the_head_does_not_weaken_what_others_say(
    federation: HeadedFederation,
) -> None:
    current = federation.open_round()
    said = learned(1)
    for name in NAMES:
        federation.answer(name, current, said if name == NAMES[0] else learned(2, head=False))
    record = federation.record()
    wanted = record.adapter - headed_adapter() + np.asarray(record.residual) / 2**30
    root = float(np.sqrt(np.mean(said[HEAD] ** 2)))
    # Half a quantisation step of one update, and no third of the value.
    np.testing.assert_allclose(wanted[HEAD], said[HEAD], atol=root)
    assert wanted[HEAD] @ said[HEAD] > 0.8 * said[HEAD] @ said[HEAD]


def test_the_default_follows_what_the_devices_report_of_each_choice(federation: HeadedFederation) -> None:
    def next_default(ensemble: float, discriminant: float, combined: float) -> str:
        current = federation.open_round()
        for name in NAMES:
            federation.report(name, ensemble, discriminant, combined)
        for index, name in enumerate(NAMES):
            federation.answer(name, current, learned(index))
        return federation.release().default

    assert next_default(ensemble=0.1, discriminant=0.3, combined=0.4) == "combined"
    assert next_default(ensemble=0.1, discriminant=0.6, combined=0.4) == "discriminant"
    assert next_default(ensemble=0.6, discriminant=0.1, combined=0.4) == "ensemble"
    assert next_default(ensemble=-0.1, discriminant=-0.6, combined=-0.4) == "local"
    assert next_default(ensemble=0.1, discriminant=0.3, combined=0.4) == "combined"


def test_who_learns_alike_is_told_by_all_but_the_head() -> None:
    assert learned_by_gradients(MANIFEST).tolist() == list(range(PARAMETERS))
    assert learned_by_gradients(tiny_manifest(tiny_members())).tolist() == list(range(PARAMETERS))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_steps_of_the_head_make_no_devices_look_alike(tmp_path: Path, database: Database) -> None:
    federation = begun(tmp_path, database, MANY[:8])
    for _ in range(4):
        current = federation.open_round()
        for index, name in enumerate(federation.names):
            difference = np.zeros(HEADED_PARAMETERS, np.float32)
            difference[:PARAMETERS] = 0.5 if index < 4 else -0.5
            # By their heads the devices would be paired quite otherwise, and far more clearly.
            difference[HEAD] = 5 * learned(index % 4)[HEAD]
            federation.answer(name, current, difference)
    found = of_journal(federation.store, "pumps", 9)
    assert (found.devices, found.rounds) == (federation.names, (1, 2, 3, 4))
    assert found.cosine[:4, :4].min() > 0 > found.cosine[:4, 4:].max()
    federation.close()


def test_the_package_is_what_its_name_on_the_wire_says(federation: HeadedFederation) -> None:
    assert federation.release().package == hashlib.sha256(discriminant_package()).digest()
