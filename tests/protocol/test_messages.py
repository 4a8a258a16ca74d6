"""Wire messages: every class crosses the wire, keeps its field numbers, and resists a hostile sender."""

import contextlib
import tracemalloc
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import cbor, records
from protocol.artifacts import MAX_CHUNKS, Artifact
from protocol.charter import ADAPTIVE, FIXED, SchedulePolicy, TrainingPolicy
from protocol.errors import EncodingError, ProtocolError, SchemaError, SignatureError
from protocol.identity import (
    MAX_SIGNING_REQUEST_BYTES,
    CertificateResponse,
    EnrolmentRequest,
    RenewalRequest,
    Trust,
)
from protocol.messages import (
    LIMITS,
    Announcement,
    Chunk,
    ChunkRequest,
    DeviceState,
    Receipt,
    Release,
    Report,
    Round,
    ServerState,
    Update,
    peek,
    sign_message,
    verify_message,
)
from protocol.signing import sign
from protocol.topics import context
from protocol.trust import MAX_ROOT_BYTES, MAX_ROOTS
from tests.builders import private_key

KEY, OTHER = private_key(1), private_key(2)
TOPIC = "fl/v1/pumps/up/pump-1/state"
A, B, C = b"a" * 32, b"b" * 32, b"c" * 32

EXAMPLES: dict[type, Any] = {
    TrainingPolicy: TrainingPolicy(
        "adamw", 0.25, 0.5, 0.75, 5, True, 4.0, 2.0, 4096, 0.5, 2, 0.5, 3, {"head": 0.0}, 0.5, ("anomaly",), 8
    ),
    DeviceState: DeviceState(True, 5, A, "0.1", B, 3, 7, firmware="rauc 1", firmware_update="running"),
    Announcement: Announcement(
        2,
        "n",
        Artifact(A, 5, 4, (B, C)),
        TrainingPolicy("sgd", 0.5, 0.0, 0.0, 1, False, 1.0, 1.0, 9, 0.0, tasks=("classification", "anomaly")),
        issued=1.5,
        expires=2.5,
        rollback=b"order",
    ),
    ChunkRequest: ChunkRequest(A, (0, 2)),
    Chunk: Chunk(A, 1, b"data"),
    Round: Round(4, A, B, ("x", "y"), 1.5),
    Update: Update(4, A[:8], 9, b"\x01\x02", b"body", 0.5, 0.25, 3),
    Receipt: Receipt(A, 4, "late", "r"),
    Release: Release(
        3,
        A,
        B[:8],
        C,
        b"z",
        2,
        9,
        {"m": 1.0},
        "personal",
        b"\x01\x02",
        Artifact(A, 5, 8, (B,)),
        2,
        3,
        1.5,
        2.5,
        1,
    ),
    Report: Report(3, "personal", 4, 0.5, 6, 7, 1.5, 8, 9, 10, ("p",), 0.25, 0.0, -0.5, 2, 3, 0.125, -0.75),
    ServerState: ServerState(False, 5),
    Trust: Trust((b"r1", b"r2"), A, 1.5, 2.5),
    EnrolmentRequest: EnrolmentRequest("pump-1", A, b"csr", "t", "0.1"),
    RenewalRequest: RenewalRequest(b"csr"),
    CertificateResponse: CertificateResponse("issued", A, b"pem", "r"),
}
GOLDEN = {
    "TrainingPolicy": (
        "b101656164616d7702f9340003f9380004f93a00050506f507f9440008f94000091910000af938000b020cf938"
        "000d030ea16468656164f900000ff93800"
        "108167616e6f6d616c791108"
    ),
    "DeviceState": (
        "aa01f5020503582061616161616161616161616161616161616161616161616161616161616161610463302e31"
        "05582062626262626262626262626262626262626262626262626262626262626262620603070708"
        "60"
        "09667261756320310a6772756e6e696e67"
    ),
    "Announcement": (
        "ab010202616e03a401582061616161616161616161616161616161616161616161616161616161616161610205"
        "030404825820626262626262626262626262626262626262626262626262626262626262626258206363636363"
        "63636363636363636363636363636363636363636363636363636304b1016373676402f9380003f9000004f900"
        "00050106f407f93c0008f93c0009090af900000b010cf934000d000ea00ff90000"
        "10826e636c617373696669636174696f6e67616e6f6d616c79111818"
        "05a601f9000002000380040805f93c0006f94e0006a2010402f9380007a301fb3fd3333333333333020603fb3fa999999999999a"
        "08a60165666978656402fb3f947ae147ae147b03fb3f847ae147ae147b04f9380005fb3f50624dd2f1a9fc0602"
        "09f93e000af941000b456f72646572"
    ),
    "ChunkRequest": "a2015820616161616161616161616161616161616161616161616161616161616161616102820002",
    "Chunk": "a301582061616161616161616161616161616161616161616161616161616161616161610201034464617461",
    "Round": (
        "a50104025820616161616161616161616161616161616161616161616161616161616161616103582062626262"
        "6262626262626262626262626262626262626262626262626262626204826178617905f93e00"
    ),
    "Update": "a80104024861616161616161610309044201020544626f647906f9380007f934000803",
    "Receipt": (
        "a40158206161616161616161616161616161616161616161616161616161616161616161020403646c617465046172"
    ),
    "Release": (
        "b00103025820616161616161616161616161616161616161616161616161616161616161616103486262626262"
        "626262045820636363636363636363636363636363636363636363636363636363636363636305417a06020709"
        "08a1616df93c000968706572736f6e616c0a4201020ba401582061616161616161616161616161616161616161"
        "616161616161616161616161610205030804815820626262626262626262626262626262626262626262626262"
        "62626262626262620c020d03"
        "0ef93e000ff94100"
        "1001"
    ),
    "Report": (
        "b201030268706572736f6e616c030404f938000506060707f93e00080809090a0a0b8161700cf934000df90000"
        "0ef9b8000f021003"
        "11f9300012f9ba00"
    ),
    "ServerState": "a201f40205",
    "Trust": (
        "a40182427231427232025820616161616161616161616161616161616161616161616161616161616161616103f93e0004f94100"
    ),
    "EnrolmentRequest": (
        "a5016670756d702d310258206161616161616161616161616161616161616161616161616161616161616161"
        "03436373720461740563302e31"
    ),
    "RenewalRequest": "a10143637372",
    "CertificateResponse": (
        "a401666973737565640258206161616161616161616161616161616161616161616161616161616161616161"
        "034370656d046172"
    ),
}


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_the_bytes_of_a_message_never_change(kind: type) -> None:
    """Field numbers are for ever: this test may gain fields at the end, and nothing else."""
    assert cbor.encode(records.to_numbered(EXAMPLES[kind])).hex() == GOLDEN[kind.__name__]


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_a_message_of_today_is_read_for_ever(kind: type) -> None:
    payload = cbor.decode(bytes.fromhex(GOLDEN[kind.__name__]), limit=1024)
    assert records.from_numbered(kind, payload) == EXAMPLES[kind]


def test_a_charter_from_before_there_were_schedules_is_that_of_the_fixed_one() -> None:
    numbered = records.to_numbered(replace(EXAMPLES[Announcement], schedule=SchedulePolicy(ADAPTIVE)))
    assert records.from_numbered(Announcement, numbered).schedule.mode == ADAPTIVE
    del numbered[8]
    assert records.from_numbered(Announcement, numbered).schedule == SchedulePolicy()
    assert SchedulePolicy().mode == FIXED


@pytest.mark.parametrize("kind", LIMITS, ids=lambda kind: kind.__name__)
class TestEveryMessage:
    def test_arrives_as_it_was_sent(self, kind: type) -> None:
        envelope = sign_message(EXAMPLES[kind], KEY, TOPIC)
        assert verify_message(kind, envelope, KEY.public, TOPIC) == EXAMPLES[kind]
        assert peek(kind, envelope) == EXAMPLES[kind]

    def test_moved_to_another_topic_is_refused(self, kind: type) -> None:
        with pytest.raises(SignatureError):
            verify_message(
                kind, sign_message(EXAMPLES[kind], KEY, TOPIC), KEY.public, TOPIC.replace("pump-1", "pump-2")
            )

    def test_by_another_key_is_refused(self, kind: type) -> None:
        with pytest.raises(SignatureError):
            verify_message(kind, sign_message(EXAMPLES[kind], OTHER, TOPIC), KEY.public, TOPIC)

    def test_oversized_is_refused_before_its_signature_is_looked_at(self, kind: type) -> None:
        with pytest.raises(EncodingError, match="expected at most"):
            verify_message(kind, b"\x00" * (LIMITS[kind] + 200), KEY.public, TOPIC)
        with pytest.raises(EncodingError):
            verify_message(kind, sign_message(EXAMPLES[kind], KEY, TOPIC), KEY.public, TOPIC, limit=4)

    def test_with_a_field_of_the_future_is_read(self, kind: type) -> None:
        payload = {**records.to_numbered(EXAMPLES[kind]), len(fields(kind)) + 1: "later", 99: [1]}
        envelope = sign(cbor.encode(payload), KEY, context(TOPIC))
        assert verify_message(kind, envelope, KEY.public, TOPIC) == EXAMPLES[kind]

    def test_without_its_first_field_is_refused(self, kind: type) -> None:
        payload = records.to_numbered(EXAMPLES[kind])
        del payload[1]
        with pytest.raises(SchemaError, match=f"{kind.__name__}.{fields(kind)[0].name}: missing"):
            verify_message(kind, sign(cbor.encode(payload), KEY, context(TOPIC)), KEY.public, TOPIC)

    def test_no_flipped_byte_is_believed(self, kind: type) -> None:
        envelope = sign_message(EXAMPLES[kind], KEY, TOPIC)
        for position in range(0, len(envelope), max(1, len(envelope) // 40)):
            damaged = bytearray(envelope)
            damaged[position] ^= 0x41
            with pytest.raises(ProtocolError):
                verify_message(kind, bytes(damaged), KEY.public, TOPIC)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (TrainingPolicy, {"optimizer": "adam"}),
        (TrainingPolicy, {"learning_rate": float("nan")}),
        (TrainingPolicy, {"epochs": 0}),
        (TrainingPolicy, {"clipping_bound": float("inf")}),
        (TrainingPolicy, {"holdout_fraction": 0.95}),
        (TrainingPolicy, {"accumulation": 0}),
        (TrainingPolicy, {"replay_share": 1.0}),
        (TrainingPolicy, {"early_stopping": -1}),
        (TrainingPolicy, {"learning_rate_factors": {"head": -1.0}}),
        (TrainingPolicy, {"proximal": -0.1}),
        (TrainingPolicy, {"proximal": float("nan")}),
        (DeviceState, {"public_key": b"short"}),
        (DeviceState, {"package": b"short"}),
        (Announcement, {"version": 0}),
        (ChunkRequest, {"indices": ()}),
        (ChunkRequest, {"indices": tuple(range(17))}),
        (ChunkRequest, {"artifact": b""}),
        (Chunk, {"artifact": b""}),
        (Round, {"number": 0}),
        (Round, {"base": b""}),
        (Round, {"cohort": ("a/b",)}),
        (Update, {"round": -1}),
        (Update, {"base": A}),
        (Update, {"weight": 0}),
        (Update, {"weight": (1 << 16) + 1}),
        (Update, {"loss_before": float("nan")}),
        (Update, {"loss_after": float("inf")}),
        (Receipt, {"verdict": "perhaps"}),
        (Release, {"number": -1}),
        (Release, {"base": b"x"}),
        (Release, {"base": B}),
        (Release, {"base": b""}),
        (Release, {"withdraws": 3}),
        (Report, {"choice": "best"}),
        (Report, {"compared_with": -2}),
        (Report, {"release_gain": 2e3}),
        (Report, {"discriminant_gain": float("nan")}),
        (Report, {"combined_gain": -2e3}),
        (Release, {"restores": 3}),
        (Release, {"issued": -1.0}),
        (Announcement, {"expires": float("nan")}),
        (Trust, {"roots": (b"",)}),
        (Trust, {"roots": (b"x" * (MAX_ROOT_BYTES + 1),)}),
        (Trust, {"roots": (b"r",) * (MAX_ROOTS + 1)}),
        (Trust, {"sealing_key": b""}),
        (Trust, {"sealing_key": bytes(2049)}),
        (Trust, {"issued": float("nan")}),
        (Trust, {"expires": 2e12}),
        (EnrolmentRequest, {"device": "a/b"}),
        (EnrolmentRequest, {"device": "graftwork-server-pumps"}),
        (EnrolmentRequest, {"public_key": b"short"}),
        (EnrolmentRequest, {"signing_request": b""}),
        (EnrolmentRequest, {"signing_request": bytes(MAX_SIGNING_REQUEST_BYTES + 1)}),
        (EnrolmentRequest, {"token": "x" * 129}),
        (EnrolmentRequest, {"agent_version": "x" * 65}),
        (RenewalRequest, {"signing_request": b""}),
        (RenewalRequest, {"signing_request": bytes(MAX_SIGNING_REQUEST_BYTES + 1)}),
        (CertificateResponse, {"status": "perhaps"}),
        (CertificateResponse, {"request": b"short"}),
    ],
)
def test_a_value_out_of_range_cannot_be_built_nor_received(kind: type, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(EXAMPLES[kind], **change)
    [(name, value)] = change.items()
    number = [field.name for field in fields(kind)].index(name) + 1
    payload = {**records.to_numbered(EXAMPLES[kind]), number: list(value) if type(value) is tuple else value}
    with pytest.raises(SchemaError, match=kind.__name__):
        records.from_numbered(kind, payload)


numbers = st.integers(-(2**64), 2**64 - 1) | st.integers(-2, 20)
values = (
    numbers
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.binary(min_size=32, max_size=32)
    | st.booleans()
    | st.none()
)
hostile_payloads = (
    st.dictionaries(
        st.integers(0, 12) | st.text(max_size=2),
        values
        | st.lists(values, max_size=3)
        | st.dictionaries(st.text(max_size=2) | st.integers(1, 4), values),
        max_size=8,
    )
    | values
)


@settings(max_examples=150)
@given(st.sampled_from(list(LIMITS)), hostile_payloads)
def test_a_hostile_payload_rightly_signed_is_read_or_refused(kind: type, payload: Any) -> None:
    envelope = sign(cbor.encode(payload), KEY, context(TOPIC))
    with contextlib.suppress(ProtocolError):
        assert isinstance(verify_message(kind, envelope, KEY.public, TOPIC), kind)
    with contextlib.suppress(ProtocolError):
        assert isinstance(peek(kind, envelope), kind)


@settings(max_examples=150)
@given(st.sampled_from(list(LIMITS)), st.binary(max_size=200))
def test_hostile_bytes_are_refused(kind: type, data: bytes) -> None:
    for envelope in (data, b"\xd2\x84" + data, b"\xd2\x84\x43\xa1\x01\x27\xa0" + data):
        with pytest.raises(ProtocolError):
            verify_message(kind, envelope, KEY.public, TOPIC)
        with contextlib.suppress(ProtocolError):
            peek(kind, envelope)


ARTIFACT = {1: bytes(32), 2: 5, 3: 5, 4: [bytes(32)]}
HOSTILE: dict[str, tuple[type, int, dict[int, object]]] = {
    "text that is escaped": (Round, 1 << 20, {1: 1, 2: bytes(32), 3: bytes(32), 4: ["\0" * 900_000], 5: 0.0}),
    "text that fills it": (Round, 1 << 20, {1: 1, 2: "x" * 1_000_000}),
    "a key that is no name": (
        Announcement,
        1 << 20,
        {1: 1, 2: "x", 3: ARTIFACT, 4: {14: {"\0" * 900_000: -1.0}}},
    ),
    "many keys": (
        Announcement,
        1 << 20,
        {1: 1, 2: "x", 3: ARTIFACT, 4: {14: {str(number): 1.0 for number in range(60_000)}}},
    ),
    "wide text": (Announcement, 1 << 20, {1: 1, 2: "x" * 1_000_000 + "\U0001f600"}),
    "empty lists": (Round, 1 << 20, {4: [[]] * 1_000_000}),
    "empty maps": (Round, 1 << 20, {4: [{}] * 1_000_000}),
    "a body that fills it": (Update, 1 << 20, {1: 1, 2: bytes(8), 3: 1, 4: b"", 5: bytes((1 << 20) - 99)}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_message_takes_at_most_twice_its_limit_of_memory(what: str) -> None:
    kind, limit, fields = HOSTILE[what]
    envelope = sign(cbor.encode(fields), KEY, context(TOPIC))
    tracemalloc.start()
    with contextlib.suppress(ProtocolError):
        verify_message(kind, envelope, KEY.public, TOPIC, limit=limit)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * limit + 16 * 1024


def test_a_round_of_a_hundred_thousand_devices_is_read() -> None:
    cohort = tuple(f"device-{number:06}" for number in range(100_000))
    message = Round(1, bytes(32), bytes(32), cohort, 0.0)
    assert verify_message(Round, sign_message(message, KEY, TOPIC), KEY.public, TOPIC) == message


def test_an_announcement_of_as_many_chunks_as_there_may_be_is_read() -> None:
    chunks = tuple(number.to_bytes(32, "big") for number in range(MAX_CHUNKS))
    message = Announcement(1, "x", Artifact(bytes(32), 1024 * MAX_CHUNKS, 1024, chunks), TrainingPolicy())
    assert verify_message(Announcement, sign_message(message, KEY, TOPIC), KEY.public, TOPIC) == message
