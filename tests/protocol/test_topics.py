"""Topics: who may be named in them, and what a subscriber reads out of them."""

import contextlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import EncodingError
from protocol.topics import UP, Topics, check_name, context

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
