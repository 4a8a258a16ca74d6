"""A federation with two tasks: classification with labels, and anomaly detection that needs none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.config import SourceConfig
from agent.density import advance, standardise
from agent.features import FeatureCache
from agent.learner import Learner
from agent.sources import Source
from models.anomaly_head import add_anomaly_head
from protocol.charter import TrainingPolicy
from protocol.fleet import Device, FleetDescription
from protocol.messages import Update, verify_message
from protocol.package import unpack
from protocol.topics import Topics
from server.replay import SAME, replay_all
from server.round import RoundPolicy
from simulation.errors import SimulationError
from simulation.experiment import Settings, prepare
from simulation.in_process import FEDERATION, InProcessFederation, key_of
from simulation.recordings import write_fleet_description
from tests.builders import (
    FEATURES,
    PARAMETERS,
    PUBLISHER,
    SCHEMA,
    WINDOW,
    LogisticEngine,
    tiny_package,
    two_levels,
    write_recording,
)

RANK = 1
PACKAGE = add_anomaly_head(tiny_package(), RANK, PUBLISHER)
CLASSIFIER, HEAD = slice(0, PARAMETERS), slice(PARAMETERS, PARAMETERS + FEATURES * RANK)
TRAINING = TrainingPolicy(learning_rate=0.1, epochs=2, reference_windows=8)
NAMES = ("pump-1", "pump-2", "pump-3")
UNLABELLED = "pump-3"


class TwoTaskEngine(LogisticEngine):
    """The regression, which sees its own parameters only."""

    parameters = PARAMETERS + FEATURES * RANK

    def predict(self, adapter: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.float32]:
        return super().predict(adapter[CLASSIFIER], features)

    def loss_and_gradient(
        self,
        adapter: NDArray[np.float32],
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        weights: NDArray[np.float32],
    ) -> tuple[float, NDArray[np.float32]]:
        loss, gradient = super().loss_and_gradient(adapter, features, labels, weights)
        return loss, np.pad(gradient, (0, FEATURES * RANK))


def spools(directory: Path) -> dict[str, Path]:
    """Two devices with labels, and one without any; their levels wander, so that windows vary."""
    for index, name in enumerate(NAMES):
        random = np.random.Generator(np.random.PCG64(index))
        (directory / name).mkdir(parents=True)
        windows = [(label, level + float(random.normal(0, 0.2))) for label, level in two_levels(10)]
        if name == UNLABELLED:
            windows = [("", level) for _, level in windows]
        write_recording(directory / name / "0.csv", windows)
    return {name: directory / name for name in NAMES}


def federation(
    directory: Path, names: tuple[str, ...] = NAMES, training: TrainingPolicy = TRAINING, rounds: int = 2
) -> InProcessFederation:
    every = directory / "spools"
    found = {name: every / name for name in NAMES} if every.is_dir() else spools(every)
    policy = RoundPolicy(
        minimum_devices=len(names), quorum=1.0, deadline_seconds=1e7, gather_seconds=1e7, rounds=rounds
    )
    return InProcessFederation(
        directory / ("-".join(names) + "-".join(training.tasks)),
        PACKAGE,
        {name: found[name] for name in names},
        policy,
        training=training,
        make_engine=lambda *_: TwoTaskEngine(),
    )


def released(run: InProcessFederation) -> NDArray[np.float32]:
    run.run(500)
    assert run.server_store
    newest = run.server_store.newest_release()
    assert newest
    return newest.adapter


def test_a_device_without_any_label_takes_part_and_changes_no_bit_of_the_classifier(tmp_path: Path) -> None:
    # One round: the dither of the next one depends on the whole release.
    with federation(tmp_path, rounds=1) as run:
        everyone = released(run)
        assert run.server_store
        assert all(row["counted"] == 3 for row in run.server_store.rounds())
    with federation(tmp_path, NAMES[:2], rounds=1) as run:
        labelled = released(run)
    assert np.array_equal(everyone[CLASSIFIER], labelled[CLASSIFIER])
    assert not np.array_equal(everyone[HEAD], labelled[HEAD])


def test_the_release_holds_what_the_pooled_first_windows_teach(tmp_path: Path) -> None:
    with federation(tmp_path, rounds=5) as run:
        found = released(run)[HEAD].astype(np.float64)
    deviations = [first_windows(tmp_path, name) for name in NAMES]
    head = unpack(PACKAGE, None).adapter[HEAD]
    for _ in range(5):
        head = np.mean([advance(head, [part]) for part in deviations], axis=0).astype(np.float32)
    cosine = abs(found @ head) / np.linalg.norm(found) / np.linalg.norm(head)
    assert cosine > 0.95
    assert np.linalg.norm(found) == pytest.approx(float(np.linalg.norm(head)), rel=0.3)


@pytest.mark.parametrize(("task", "still"), [("classification", HEAD), ("anomaly", CLASSIFIER)])
def test_a_task_that_the_charter_switches_off_stays_as_the_package_brought_it(
    tmp_path: Path, task: str, still: slice
) -> None:
    # Weight decay pulls at every parameter that a training does not leave alone.
    training = replace(TRAINING, tasks=(task,), weight_decay=0.5)
    names = NAMES[:2]
    initial = unpack(PACKAGE, None).adapter
    with federation(tmp_path, names, training) as run:
        release = released(run)
        used = [store.adapter("personal_full") for store in run.agent_stores.values()]
    moving = CLASSIFIER if still == HEAD else HEAD
    assert np.array_equal(release[still], initial[still])
    assert not np.array_equal(release[moving], initial[moving])
    assert all(adapter is not None and np.array_equal(adapter[still], initial[still]) for adapter in used)


def test_the_classifiers_training_leaves_the_head_as_its_own_step_made_it(tmp_path: Path) -> None:
    with federation(tmp_path, training=replace(TRAINING, weight_decay=0.5)) as run:
        released(run)
        for name, store in run.agent_stores.items():
            release, personal = store.adapter("global"), store.adapter("personal")
            assert release is not None
            assert personal is not None
            assert np.array_equal(personal[HEAD], advance(release[HEAD], [first_windows(tmp_path, name)]))


def first_windows(directory: Path, name: str) -> NDArray[np.float64]:
    """What a device trains its head on: of the first 8 windows those that are not held out."""
    text = (directory / "spools" / name / "0.csv").read_text("utf-8").splitlines()[1:]
    values = np.array([float(row.split(",")[0]) for row in text], np.float32)
    features = LogisticEngine().features(values.reshape(-1, 1, 4))[:6]
    return standardise(features, features)


def test_rounds_of_two_tasks_replay_to_the_same_bits(tmp_path: Path) -> None:
    with federation(tmp_path) as run:
        released(run)
        assert run.server_store
        assert [found.verdict for found in replay_all(run.server_store, FEDERATION)] == [SAME] * 3


def test_an_update_of_a_device_without_labels_says_nothing_of_the_classifier(tmp_path: Path) -> None:
    with federation(tmp_path, rounds=1) as run:
        released(run)
        assert run.server_store
        topic = Topics(FEDERATION).up(UNLABELLED, "update")
        [envelope] = [row[1] for row in run.server_store.journalled_updates(1) if row[0] == UNLABELLED]
    update = verify_message(Update, envelope, key_of(UNLABELLED).public, topic)
    assert update.steps[:4] == bytes(4)
    assert update.steps[4:] != bytes(2)
    assert update.weight == 6  # first windows but those held out


def test_of_an_update_that_was_withheld_the_step_of_the_head_is_dropped(tmp_path: Path) -> None:
    manifest = unpack(PACKAGE, None).manifest
    learner = Learner(
        TwoTaskEngine(),
        manifest,
        Source(SourceConfig(str(tmp_path)), lambda: 0.0),
        FeatureCache(tmp_path / "features", manifest, limit_bytes=1 << 20),
        policy=TRAINING,
        maximum_windows=lambda: 100,
        seed=b"",
    )
    difference = np.arange(1, TwoTaskEngine.parameters + 1, dtype=np.float32)
    carried = learner.carried_over(difference)
    assert np.array_equal(carried[CLASSIFIER], difference[CLASSIFIER])
    assert not carried[HEAD].any()


@pytest.mark.parametrize("anomalies", [(), ("high",)])
def test_a_fleet_without_any_label_is_simulated_where_it_has_anomalies(
    tmp_path: Path, anomalies: tuple[str, ...]
) -> None:
    fleet = FleetDescription(SCHEMA, WINDOW, (Device("pump-1", "pump", "edge"),), anomalies=anomalies)
    write_fleet_description(tmp_path / "fleet", fleet)
    (tmp_path / "fleet" / "pump-1").mkdir()
    write_recording(tmp_path / "fleet" / "pump-1" / "0.csv", [("low", 0.0)] * 12 + [("high", 5.0)] * 8)
    if not anomalies:
        with pytest.raises(SimulationError, match="expected labelled windows to train on"):
            prepare(tmp_path / "run", tmp_path / "fleet", Settings(labels_per_class=0))
        return
    experiment = prepare(tmp_path / "run", tmp_path / "fleet", Settings(labels_per_class=0))
    [participant] = experiment.participants
    assert (participant.labelled_windows, participant.development_windows) == (0, 15)
    assert len(experiment.test_recordings("pump-1")) == participant.test_windows == 3
