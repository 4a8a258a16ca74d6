"""The release's message: the fewest bytes that say it, and a keyframe for whoever they are not enough for."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.messages import BASE_BYTES, ChunkRequest
from protocol.release_coding import (
    adapter_sha256,
    add_difference,
    decode_difference,
    decode_keyframe,
    encode_difference,
    encode_keyframe,
    release_adapter,
)
from server.ledger_records import ReleaseRecord
from server.offers import Offers
from server.publications import release_message

PACKAGE = hashlib.sha256(b"package").digest()


def record(size: int, scale: float = 0.01) -> tuple[ReleaseRecord, NDArray[np.float32]]:
    random = np.random.Generator(np.random.PCG64(size))
    base = random.normal(size=size).astype(np.float32)
    parts = [slice(0, size)]
    difference = encode_difference(
        (random.normal(size=size) * scale * (1 << 30)).astype(np.int64), parts, 2.0
    )
    adapter = add_difference(base, decode_difference(difference, parts, size))
    made = ReleaseRecord(
        *(4, 1, 4, adapter_sha256(base), adapter_sha256(adapter), adapter, 9.0, 2, 20),
        {"loss_before": 1 / 3},
        "ensemble",
        difference,
    )
    return made, base


def test_a_difference_with_the_keyframe_on_offer() -> None:
    made, base = record(5000)
    offers = Offers()
    message = release_message(made, PACKAGE, offers)
    assert (message.number, message.package, message.updates, message.weight) == (4, PACKAGE, 2, 20)
    assert message.default == "ensemble"
    assert message.metrics["loss_before"] == pytest.approx(1 / 3, rel=1e-3)
    assert message.base == made.parent[:BASE_BYTES]
    assert release_adapter(message, base, [slice(0, 5000)], 5000).tobytes() == made.adapter.tobytes()
    assert message.keyframe is not None
    [chunk] = offers.chunks(ChunkRequest(message.keyframe.sha256, (0,)))
    assert decode_keyframe(chunk.data, 5000).tobytes() == made.adapter.tobytes()
    assert len(message.body) < len(chunk.data) / 15


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 12, 20, 100])
def test_the_body_is_never_larger_than_the_whole_adapter(size: int) -> None:
    made, base = record(size)
    message = release_message(made, PACKAGE, Offers())
    assert len(message.steps) + len(message.body) <= len(encode_keyframe(made.adapter))
    held = base if message.base else None
    assert release_adapter(message, held, [slice(0, size)], size).tobytes() == made.adapter.tobytes()


def test_an_adapter_that_zlib_codes_better_goes_whole() -> None:
    made, _ = record(40)
    plain = np.ones(40, np.float32)
    made = replace(made, adapter=plain, sha256=adapter_sha256(plain))
    message = release_message(made, PACKAGE, Offers())
    assert (message.base, message.steps, message.keyframe) == (b"", b"", None)
    assert release_adapter(message, None, [], 40).tobytes() == plain.tobytes()


def test_the_adapter_of_a_package_does_not_travel_again() -> None:
    initial = np.zeros(9637, np.float32)
    made = ReleaseRecord(0, 1, None, b"", adapter_sha256(initial), initial, 9.0, 0, 0, {})
    message = release_message(made, PACKAGE, Offers())
    assert (message.base, message.body, message.steps, message.keyframe) == (b"", b"", b"", None)
    assert message.adapter_sha256 == made.sha256
