"""Topics: who may be named in them, and what a subscriber reads out of them."""

import contextlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import EncodingError
from protocol.topics import UP, Topics, check_device, check_name, context

TOPICS = Topics("pumps")
names = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)


@given(names, st.sampled_from(UP))
def test_a_device_is_read_from_its_topic(device: str, kind: str) -> None:
    assert check_name(device) == device
    assert TOPICS.parse_up(TOPICS.up(device, kind)) == (device, kind)


def test_the_topics_are_those_of_the_access_rules() -> None:
    assert TOPICS.up("+", "update") == "fl/v1/pumps/up/+/update"
    assert TOPICS.down("d", "receipt") == "fl/v1/pumps/dn/d/receipt"
    assert TOPICS.all("release") == "fl/v1/pumps/all/release"
    assert TOPICS.down("d", "certificate") == "fl/v1/pumps/dn/d/certificate"
    assert TOPICS.all("trust") == "fl/v1/pumps/all/trust"
    assert TOPICS.enroll("+", "request") == "fl/v1/pumps/enroll/+/request"
    assert TOPICS.server_state() == "fl/v1/pumps/srv/state"
    assert context("fl/v1/pumps/up/d/state") == b"graftwork/1 fl/v1/pumps/up/d/state"


@pytest.mark.parametrize("name", ["", "a" * 65, "a/b", "+", "#", "a b", "ä", "a\n", "\x00", "$SYS"])
def test_a_name_that_could_break_a_topic_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 64 characters"):
        check_name(name)
    with pytest.raises(ValueError, match="expected 1 to 64 characters"):
        Topics(name)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "fl/v1/pumps/up/d",
        "fl/v1/pumps/up/d/state/more",
        "fl/v1/pumps/up/d/receipt",
        "fl/v1/pumps/up//state",
        "fl/v1/pumps/up/a b/state",
        "fl/v1/pumps/dn/d/state",
        "fl/v1/fans/up/d/state",
        "fl/v2/pumps/up/d/state",
        "FL/v1/pumps/up/d/state",
        "/fl/v1/pumps/up/d/state",
        "fl/v1/pumps/up/" + "d" * 65 + "/state",
    ],
)
def test_a_foreign_topic_is_refused(topic: str) -> None:
    with pytest.raises(EncodingError, match="expected a topic"):
        TOPICS.parse_up(topic)


@given(names)
def test_a_newcomers_nonce_is_read_from_its_topic(nonce: str) -> None:
    assert TOPICS.parse_enrolment(TOPICS.enroll(nonce, "request")) == nonce
    with pytest.raises(EncodingError):
        TOPICS.parse_up(TOPICS.enroll(nonce, "request"))


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "fl/v1/pumps/enroll/n/response",
        "fl/v1/pumps/enroll//request",
        "fl/v1/pumps/enroll/a b/request",
        "fl/v1/pumps/enroll/+/request",
        "fl/v1/pumps/enroll/" + "n" * 65 + "/request",
        "fl/v1/pumps/enroll/n/request/more",
        "fl/v1/pumps/enroll/n",
        "fl/v1/fans/enroll/n/request",
        "fl/v2/pumps/enroll/n/request",
        "fl/v1/pumps/up/n/request",
        "fl/v1/pumps/enroll/" + "n/" * 21_000,
    ],
    ids=lambda topic: topic[:40],
)
def test_another_topic_is_no_newcomers(topic: str) -> None:
    assert TOPICS.parse_enrolment(topic) is None


@given(st.text(max_size=60) | st.text(max_size=20).map("fl/v1/pumps/enroll/{}/request".format))
def test_any_text_is_a_newcomers_topic_or_none(topic: str) -> None:
    nonce = TOPICS.parse_enrolment(topic)
    assert nonce is None or TOPICS.enroll(check_name(nonce), "request") == topic


@given(names)
def test_a_device_may_have_any_name_but_those_of_services(name: str) -> None:
    if name.lower().startswith("graftwork-"):
        with pytest.raises(ValueError, match="does not begin with graftwork-"):
            check_device(name)
    else:
        assert check_device(name) == name


@pytest.mark.parametrize("name", ["graftwork-server-pumps", "GRAFTWORK-bridge", "a/b", ""])
def test_a_device_with_the_name_of_a_service_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_device(name)


@given(st.text(max_size=60) | st.text(max_size=20).map("fl/v1/pumps/up/{}/state".format))
def test_any_text_is_read_or_refused(topic: str) -> None:
    with contextlib.suppress(EncodingError):
        device, kind = TOPICS.parse_up(topic)
        assert TOPICS.up(check_name(device), kind) == topic


def test_a_topic_of_many_levels_is_refused_without_being_cut_into_them() -> None:
    topic = "fl/v1/pumps/up/" + "ab/" * 21_000
    tracemalloc.start()
    with pytest.raises(EncodingError):
        TOPICS.parse_up(topic)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * len(topic)  # the text of the error, and its parts
