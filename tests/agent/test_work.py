"""Training in slices: paused by the board, cut off by the mains, overtaken by releases."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.config import LimitsConfig
from agent.errors import EngineError
from agent.learning import Learning
from agent.resources import Resources
from agent.store import Store
from agent.training import Training
from agent.work import CHECKPOINT_SECONDS, Job, Work
from protocol.charter import TrainingPolicy
from tests.agent.test_training import ENGINE, START, data, random
from tests.builders import Clock

POLICY = TrainingPolicy(learning_rate=0.1, epochs=6)
STEP_SECONDS = 1.0


@dataclass
class Board(Resources):
    """Works a given number of steps per slice; every step takes a second of the clock."""

    clock: Clock
    steps: float = math.inf
    reason: str = ""
    worked: int = 0

    def __post_init__(self) -> None:
        super().__init__(LimitsConfig(), self.clock)

    def pause_reason(self) -> str:
        return self.reason

    def work(self, step: Callable[[], None], finished: Callable[[], bool]) -> float:
        done = 0
        while not finished() and done < self.steps:
            step()
            self.clock.advance(STEP_SECONDS)
            done += 1
            self.worked += 1
        return 0.0


@dataclass
class Device:
    """A device that is put together again after every power cut, on the same store."""

    store: Store = field(default_factory=lambda: Store(":memory:"))
    clock: Clock = field(default_factory=Clock)
    learned: dict[str, Mapping[str, NDArray[np.float32]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.board = Board(self.clock)
        self.work = Work(self.store, self.board, self.clock)

    def job(self, name: str, windows: int = 20) -> Job:
        def begin() -> Learning:
            def make(_epochs: Mapping[str, int]) -> Training:
                return Training(ENGINE, START, data(windows, windows), POLICY, random())

            return Learning(name.encode(), {"local": make, "personal": make})

        return Job(name, begin, lambda adapters: self.learned.update({name: adapters}))


@pytest.fixture
def device() -> Device:
    return Device()


def test_a_job_is_done_in_slices_and_finished_once(device: Device) -> None:
    device.board.steps = 3
    device.work.take(device.job("one"))
    slices = 0
    while device.work.go_on() is not None:
        slices += 1
    assert slices == math.ceil(device.board.worked / 3) - 1
    assert set(device.learned["one"]) == {"local", "personal"}
    assert device.work.idle
    assert device.work.go_on() is None


def test_what_was_begun_is_finished_before_the_newest(device: Device) -> None:
    device.board.steps = 2
    device.work.take(device.job("one"))
    device.work.go_on()
    for name in ("one", "two", "three"):
        device.work.take(device.job(name))
    assert device.work.holds("three")
    assert not device.work.holds("two")
    while device.work.go_on() is not None:
        pass
    assert list(device.learned) == ["one", "three"]


def test_a_power_cut_costs_less_than_a_minute_of_work(device: Device) -> None:
    whole = Device()
    whole.work.take(whole.job("one", 60))
    whole.work.go_on()
    total = whole.board.worked
    assert total * STEP_SECONDS > 3 * CHECKPOINT_SECONDS
    lost = []
    for cut_after in range(5, total, 13):
        device = Device()
        device.board.steps = 1
        device.work.take(device.job("one", 60))
        for _ in range(cut_after):
            device.work.go_on()
        device.start()
        device.work.take(device.job("one", 60))
        assert device.work.go_on() is None
        lost.append(cut_after + device.board.worked - total)
        assert_same(device.learned["one"], whole.learned["one"])
    assert max(lost) * STEP_SECONDS <= CHECKPOINT_SECONDS < 60
    assert device.store.checkpoint() is None


def assert_same(
    found: Mapping[str, NDArray[np.float32]], expected: Mapping[str, NDArray[np.float32]]
) -> None:
    assert {name: a.tobytes() for name, a in found.items()} == {n: a.tobytes() for n, a in expected.items()}


def test_a_hot_board_rests_and_loses_nothing_when_it_is_switched_off(device: Device) -> None:
    device.board.steps = 4
    device.work.take(device.job("one"))
    device.work.go_on()
    device.board.reason = "hot: 91 degrees Celsius, goes on at 75"
    assert device.work.go_on() is None
    assert device.store.text("paused") == device.board.reason
    assert device.board.worked == 4
    device.start()
    device.work.take(device.job("one"))
    device.work.go_on()
    whole = Device()
    whole.work.take(whole.job("one"))
    whole.work.go_on()
    assert device.board.worked == whole.board.worked - 4
    assert_same(device.learned["one"], whole.learned["one"])


def test_the_status_says_when_training_goes_on(device: Device) -> None:
    device.board.reason = "hot"
    device.work.take(device.job("one"))
    device.work.go_on()
    assert (device.store.text("paused"), device.learned) == ("hot", {})
    device.board.reason = ""
    device.work.go_on()
    assert device.store.text("paused") == ""
    assert list(device.learned) == ["one"]


@pytest.mark.parametrize("change", ["release", "garbage", "torn"])
def test_a_checkpoint_of_something_else_is_not_used(device: Device, change: str) -> None:
    device.board.steps = CHECKPOINT_SECONDS + 1
    device.work.take(device.job("one", 60))
    device.work.go_on()
    checkpoint = device.store.checkpoint()
    assert checkpoint is not None
    damaged = {"garbage": b"x" * 50, "torn": checkpoint[: len(checkpoint) // 2]}.get(change, checkpoint)
    device.store.note_training(damaged, 0.5)
    device.start()
    job = device.job("two" if change == "release" else "one", 60)
    device.work.take(job)
    device.work.go_on()
    assert set(device.learned[job.name]) == {"local", "personal"}
    whole = Device()
    whole.work.take(whole.job("one", 60))
    whole.work.go_on()
    assert device.board.worked == whole.board.worked


def test_a_training_that_fails_leaves_the_device_to_the_next_one(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Learning:
        raise EngineError("step.onnx: expected opset 18")

    device.work.take(Job("bad", fail, lambda _: None))
    assert device.work.go_on() is None
    assert "training from the release failed; the next one is tried again: step.onnx" in caplog.text
    device.work.take(device.job("good"))
    device.work.go_on()
    assert list(device.learned) == ["good"]


def test_jobs_of_a_package_that_is_gone_are_dropped(device: Device) -> None:
    device.board.steps = 1
    device.work.take(device.job("one"))
    device.work.go_on()
    device.work.take(device.job("two"))
    device.work.drop()
    assert device.work.go_on() is None
    assert device.learned == {}
