"""Every decoder that faces the network: the corpus that fuzzing left, and mutations of it, do no harm.

Needs no fuzzer. `observe` lets through whatever a decoder does not declare, and counts its memory.
"""

import functools
import importlib.util
import json
import logging
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import mutations
from tests.fuzz.catalogue import CORPUS, TARGETS, kept
from tests.fuzz.target import ERROR_BYTES, Case, MemoryFindingError, Target, observe

by_target = pytest.mark.parametrize("name", TARGETS)
EXAMPLES = 200


@functools.cache
def known(name: str) -> list[bytes]:
    return [*TARGETS[name].seeds(), *(path.read_bytes() for path in kept(name))]


@pytest.fixture(autouse=True)
def traced(request: pytest.FixtureRequest) -> Iterator[None]:
    """Memory is traced, once caches are filled; what is refused is logged, which is not tested here."""
    logging.disable(logging.CRITICAL)
    if "name" in request.fixturenames:
        target = TARGETS[request.getfixturevalue("name")]
        for seed in target.seeds():
            observe(target, seed)
    tracemalloc.start()
    yield
    tracemalloc.stop()
    logging.disable(logging.NOTSET)


@by_target
def test_the_kept_corpus_is_decoded_or_refused_within_its_memory(name: str) -> None:
    files = kept(name)
    assert files
    for path in files:
        observe(TARGETS[name], path.read_bytes())


@by_target
def test_what_real_encoders_write_reaches_the_depth_of_the_decoder(name: str) -> None:
    target = TARGETS[name]
    seen = [observe(target, data) for data in target.seeds()]
    assert any(observation.accepted for observation in seen)
    assert max(observation.peak for observation in seen) > 0


@by_target
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(choice=st.integers(0, 1 << 16), seed=st.integers(0, 1 << 32), rounds=st.integers(1, 4))
def test_mutated_inputs_are_decoded_or_refused_within_their_memory(
    name: str, choice: int, seed: int, rounds: int
) -> None:
    target, random = TARGETS[name], Random(seed)
    inputs = known(name)
    data = inputs[choice % len(inputs)]
    for _ in range(rounds):
        data = target.mutate(data, random, mutations.raw(random, target.longest))[: target.longest]
    observe(target, data)


@by_target
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused_within_their_memory(name: str, data: bytes) -> None:
    observe(TARGETS[name], data)


def test_the_corpus_stays_small() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} == set(TARGETS)
    assert sum(path.stat().st_size for name in TARGETS for path in kept(name)) < 1 << 20


def faulty(decode: Callable[[Callable[[], None]], object], limit: int = 1024) -> Target:
    """A target whose decoder does as it is told."""
    return Target("faulty", lambda _: Case(decode, limit), lambda: [b""], lambda data, *_: data, 1, "nothing")


def test_an_error_that_is_not_declared_is_a_finding() -> None:
    def decode(_: Callable[[], None]) -> object:
        raise OverflowError

    with pytest.raises(OverflowError):
        observe(faulty(decode), b"")


def test_memory_beyond_twice_the_declared_is_a_finding() -> None:
    target = faulty(lambda _: bytearray(1024 * 2 + ERROR_BYTES + 1))
    with pytest.raises(MemoryFindingError, match="declared are 1024"):
        observe(target, b"")
    assert observe(faulty(lambda _: bytearray(1024)), b"").accepted


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_a_campaign_keeps_count_and_leaves_its_corpus(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "topic",
        "--inputs",
        "3000",
        "--json",
        "--directory",
        tmp_path,
    ]
    ended = subprocess.run(command, capture_output=True, check=False, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    [row] = json.loads(ended.stdout)["targets"]
    assert (row["inputs"], row["findings"]) == (3000, {})
    assert row["edges"] > 0
    assert list((tmp_path / "topic" / "corpus").iterdir())
