"""From a release's message to its adapter: any order, loss or lie, and never other bits than the server's."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.download import TIMEOUT_SECONDS
from agent.reconstruction import Reconstruction
from agent.store import Store
from protocol.artifacts import describe
from protocol.charter import SendingPolicy, TrainingPolicy
from protocol.errors import ArtifactError
from protocol.messages import BASE_BYTES, Chunk, Release
from protocol.package import Manifest
from protocol.release_coding import (
    adapter_sha256,
    add_difference,
    decode_difference,
    encode_difference,
    encode_keyframe,
)
from tests.builders import WIDE_PARAMETERS, WIDE_SEGMENTS, tiny_manifest, tiny_members

PACKAGE = b"p" * 32
MANIFEST: Manifest = tiny_manifest(tiny_members((0.0,) * WIDE_PARAMETERS), segments=WIDE_SEGMENTS)
PARTS = list(MANIFEST.slices().values())
CHUNK_BYTES = 1024


class History:
    """Releases as a server makes them, one after the other."""

    def __init__(self, count: int, seed: int = 0) -> None:
        random = np.random.Generator(np.random.PCG64(seed))
        self.adapters = [random.normal(size=WIDE_PARAMETERS).astype(np.float32)]
        self.releases = [Release(0, PACKAGE, b"", adapter_sha256(self.adapters[0]), b"")]
        self.keyframes: dict[bytes, bytes] = {}
        for number in range(1, count + 1):
            target = (random.normal(size=WIDE_PARAMETERS) * 0.01 * (1 << 30)).astype(np.int64)
            base = self.adapters[-1]
            difference = encode_difference(target, PARTS, 2.0)
            adapter = add_difference(base, decode_difference(difference, PARTS, WIDE_PARAMETERS))
            data = encode_keyframe(adapter)
            keyframe = describe(data, CHUNK_BYTES)
            self.keyframes[keyframe.sha256] = data
            self.adapters.append(adapter)
            self.releases.append(
                Release(
                    *(number, PACKAGE, adapter_sha256(base)[:BASE_BYTES], adapter_sha256(adapter)),
                    difference.body,
                    steps=difference.steps,
                    keyframe=keyframe,
                )
            )

    def chunk(self, artifact: bytes, index: int) -> Chunk:
        start = index * CHUNK_BYTES
        return Chunk(artifact, index, self.keyframes[artifact][start : start + CHUNK_BYTES])


HISTORY = History(6)


class Device:
    """A device's reconstruction on a folder; `restart` kills it and starts another one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.start()
        self.store.install(1, PACKAGE, HISTORY.adapters[0], TrainingPolicy(), SendingPolicy())

    def start(self) -> None:
        self.store = Store(self.folder / "agent.sqlite")
        self.reconstruction = Reconstruction(self.store, self.folder / "keyframes")

    def restart(self) -> None:
        self.store.close()
        self.start()

    def adapter(self, release: Release) -> NDArray[np.float32] | None:
        return self.reconstruction.adapter(release, MANIFEST)

    def pull(self, now: float = 0.0, most: int = 1000) -> Release | None:
        """Answer its requests until a keyframe is complete, or for `most` chunks."""
        while request := self.reconstruction.request(now):
            for index in request.indices:
                if most == 0:
                    return None
                most -= 1
                self.asked += 1
                complete = self.reconstruction.receive(HISTORY.chunk(request.artifact, index))
                if complete:
                    return complete
        return None

    def holds(self, number: int) -> bool:
        received = self.store.adapter("received")
        return received is not None and received.tobytes() == HISTORY.adapters[number].tobytes()

    def left(self) -> list[str]:
        return [path.name for path in (self.folder / "keyframes").iterdir()]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path / "device")
    yield device
    device.store.close()


def same(found: NDArray[np.float32] | None, number: int) -> bool:
    return found is not None and found.tobytes() == HISTORY.adapters[number].tobytes()


def test_the_first_release_is_in_the_package(device: Device) -> None:
    assert same(device.adapter(HISTORY.releases[0]), 0)
    assert device.reconstruction.request(0.0) is None


def test_each_release_by_its_difference_to_the_one_before(device: Device) -> None:
    for number, release in enumerate(HISTORY.releases):
        assert same(device.adapter(release), number)
        assert same(device.adapter(release), number)  # it came twice
    assert device.reconstruction.request(0.0) is None


def test_a_newcomer_takes_the_first_difference_without_having_taken_release_0(device: Device) -> None:
    assert same(device.adapter(HISTORY.releases[1]), 1)


def test_a_difference_starts_from_what_was_received_before_a_restart(device: Device) -> None:
    device.adapter(HISTORY.releases[1])
    device.restart()
    assert device.holds(1)
    assert same(device.adapter(HISTORY.releases[2]), 2)


def test_a_device_that_was_away_pulls_the_keyframe(device: Device) -> None:
    assert device.adapter(HISTORY.releases[4]) is None
    assert device.pull() == HISTORY.releases[4]
    assert same(device.adapter(HISTORY.releases[4]), 4)
    assert device.holds(4)
    assert device.left() == []
    assert same(device.adapter(HISTORY.releases[5]), 5)  # and goes on by differences
    assert device.reconstruction.request(1000.0) is None


def test_the_release_again_while_its_keyframe_is_pulled_starts_nothing_anew(device: Device) -> None:
    device.adapter(HISTORY.releases[4])
    device.pull(most=2)
    assert device.adapter(HISTORY.releases[4]) is None
    assert device.pull(TIMEOUT_SECONDS) == HISTORY.releases[4]
    assert device.asked == len(HISTORY.releases[4].keyframe.chunk_sha256)  # type: ignore[union-attr]


def test_a_newer_release_replaces_a_keyframe_on_its_way(device: Device) -> None:
    device.adapter(HISTORY.releases[3])
    device.pull(most=2)
    assert device.adapter(HISTORY.releases[5]) is None
    late = HISTORY.chunk(HISTORY.releases[3].keyframe.sha256, 3)  # type: ignore[union-attr]
    assert device.reconstruction.receive(late) is None
    assert device.adapter(HISTORY.releases[3]) is None  # out of order: it is never gone back to
    assert device.pull() == HISTORY.releases[5]
    assert same(device.adapter(HISTORY.releases[5]), 5)
    assert device.left() == []


def test_a_package_whose_release_is_newer_ends_a_keyframe_on_its_way(device: Device) -> None:
    device.adapter(HISTORY.releases[3])
    device.pull(most=2)
    adapter = np.ones(WIDE_PARAMETERS, np.float32)
    device.store.install(2, b"q" * 32, adapter, TrainingPolicy(), SendingPolicy())
    first = Release(4, b"q" * 32, b"", adapter_sha256(adapter), b"")
    found = device.adapter(first)
    assert found is not None
    assert found.tobytes() == adapter.tobytes()
    assert device.reconstruction.request(1000.0) is None
    assert device.left() == []
    assert device.store.adapter("received") is None  # of the package before


def test_a_restart_in_the_middle_keeps_the_chunks(device: Device) -> None:
    device.adapter(HISTORY.releases[4])
    device.pull(most=3)
    device.restart()
    assert device.adapter(HISTORY.releases[4]) is None
    assert device.pull() == HISTORY.releases[4]
    assert same(device.adapter(HISTORY.releases[4]), 4)
    assert device.asked == len(HISTORY.releases[4].keyframe.chunk_sha256)  # type: ignore[union-attr]


def test_a_restart_after_the_last_chunk_asks_for_nothing(device: Device) -> None:
    device.adapter(HISTORY.releases[4])
    device.pull()
    device.restart()
    assert same(device.adapter(HISTORY.releases[4]), 4)


def test_a_lost_chunk_is_asked_for_again(device: Device) -> None:
    device.adapter(HISTORY.releases[4])
    first = device.reconstruction.request(0.0)
    assert first is not None
    assert device.reconstruction.request(TIMEOUT_SECONDS - 0.1) is None
    again = device.reconstruction.request(TIMEOUT_SECONDS)
    assert again == first
    device.reconstruction.link_broke()
    assert device.reconstruction.request(TIMEOUT_SECONDS) == first


def test_a_tampered_chunk_is_refused_and_asked_for_again(device: Device) -> None:
    device.adapter(HISTORY.releases[4])
    request = device.reconstruction.request(0.0)
    assert request is not None
    good = HISTORY.chunk(request.artifact, 0)
    for data in (b"", good.data[:-1], good.data + b"\x00", bytes(len(good.data))):
        with pytest.raises(ArtifactError, match="announced hash"):
            device.reconstruction.receive(replace(good, data=data))
    assert device.left() == []
    assert device.pull(TIMEOUT_SECONDS) == HISTORY.releases[4]
    assert same(device.adapter(HISTORY.releases[4]), 4)


def test_a_damaged_difference_falls_back_to_the_keyframe(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = replace(HISTORY.releases[1], body=HISTORY.releases[2].body)
    assert device.adapter(damaged) is None
    assert device.store.adapter("received") is None
    assert device.pull() == damaged
    assert same(device.adapter(damaged), 1)
    assert [record.levelname for record in caplog.records if record.levelname != "INFO"] == ["WARNING"] * 2


def test_a_keyframe_of_another_adapter_is_refused_once_and_for_all(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = replace(HISTORY.releases[4], keyframe=HISTORY.releases[3].keyframe)
    device.adapter(wrong)
    assert device.pull() == wrong
    for _ in range(3):
        assert device.adapter(wrong) is None
        assert device.reconstruction.request(1000.0) is None
    assert device.store.adapter("received") is None
    assert device.left() == []
    assert sum(record.levelname == "ERROR" for record in caplog.records) == 1
    assert device.adapter(HISTORY.releases[5]) is None  # the next release is a new chance
    assert device.pull() == HISTORY.releases[5]
    assert same(device.adapter(HISTORY.releases[5]), 5)


def test_a_keyframe_that_is_too_large_is_not_pulled(device: Device) -> None:
    huge = describe(bytes(100_000), CHUNK_BYTES)
    assert device.adapter(replace(HISTORY.releases[4], keyframe=huge)) is None
    assert device.reconstruction.request(0.0) is None


def test_without_base_and_keyframe_there_is_no_way(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    assert device.adapter(replace(HISTORY.releases[4], keyframe=None)) is None
    assert device.reconstruction.request(0.0) is None
    assert "gives no other way" in caplog.text


def test_an_adapter_in_the_store_that_was_damaged_is_no_base(device: Device) -> None:
    device.adapter(HISTORY.releases[1])
    device.store.receive(HISTORY.adapters[1] + np.float32(1e-7))
    assert device.adapter(HISTORY.releases[2]) is None
    assert device.pull() == HISTORY.releases[2]
    assert same(device.adapter(HISTORY.releases[2]), 2)


STEPS = st.one_of(
    st.tuples(st.just("release"), st.integers(0, 6)),
    st.tuples(st.just("pull"), st.integers(0, 6)),
    st.tuples(st.just("restart"), st.just(0)),
    st.tuples(st.just("link"), st.just(0)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, max_size=25))
def test_any_order_of_messages_gives_the_servers_bits_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    device = Device(tmp_path_factory.mktemp("device"))
    now = 0.0
    for step, argument in steps:
        now += TIMEOUT_SECONDS
        if step == "release":
            found = device.adapter(HISTORY.releases[argument])
            assert found is None or same(found, argument)
        elif step == "pull":
            complete = device.pull(now, most=argument)
            if complete:
                assert same(device.adapter(complete), complete.number)
        elif step == "restart":
            device.restart()
        else:
            device.reconstruction.link_broke()
    # Whatever came before, the newest release is reached in the end.
    newest = HISTORY.releases[-1]
    if device.adapter(newest) is None:
        assert device.pull(now + TIMEOUT_SECONDS) == newest
    assert same(device.adapter(newest), newest.number)
    device.store.close()
