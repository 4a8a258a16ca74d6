"""The state of an update: no order of events says that an update was made which was not found healthy."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools.device import updates
from firmware_tools.device.updates import UpdateState
from firmware_tools.errors import FirmwareError
from runtime import whole_files

OLD, NEW = ("1.0.0", "A"), ("1.1.0", "B")
INSTALLED = updates.installed(updates.downloaded(updates.offered("1.1.0", "1.0.0")), "B", "boot 1")

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("offered"), st.sampled_from(["1.0.0", "1.1.0", "1.2.0"])),
        st.just(("downloaded", "")),
        st.tuples(st.just("installed"), st.sampled_from("AB")),
        st.just(("failed", "")),
        st.tuples(
            st.sampled_from(["boot", "healthy"]), st.sampled_from([OLD, NEW, ("1.1.0", "A"), ("1.2.0", "B")])
        ),
        st.just(("reload", "")),
    ),
    max_size=12,
)


@given(
    state=st.sampled_from([None, INSTALLED, updates.on_boot(INSTALLED, *NEW, "boot 2", "")]), events=EVENTS
)
def test_healthy_is_reached_only_where_that_version_in_that_slot_was_found_healthy(
    state: UpdateState | None, events: list[tuple]
) -> None:
    for number, (name, value) in enumerate(events):
        before = state
        try:
            if name == "offered":
                state = updates.offered(value, "1.0.0")
            elif name == "boot":
                state = updates.on_boot(state, *value, f"boot {number}", "")
            elif name == "healthy":
                state = updates.on_healthy(state, *value)
            elif state is None or name == "reload":
                continue
            elif name == "downloaded":
                state = updates.downloaded(state)
            elif name == "installed":
                state = updates.installed(state, value, f"boot {number}")
            else:
                state = updates.failed(state, "reason")
        except FirmwareError:
            assert state == before
        if state is not None and state.phase == updates.HEALTHY and state != before:
            assert before is not None
            assert before.phase == updates.BOOTED
            assert name == "healthy"
            assert value == (state.version, state.slot)


def test_the_whole_way() -> None:
    assert INSTALLED.phase == "installed"
    booted = updates.on_boot(INSTALLED, *NEW, "boot 2", "")
    assert booted is not None
    assert booted.text == "booted 1.1.0"
    again = updates.on_boot(booted, *NEW, "boot 3", "")  # a reboot before the gate
    healthy = updates.on_healthy(again, *NEW)
    assert healthy is not None
    assert healthy.text == "healthy 1.1.0"
    assert updates.on_boot(healthy, *NEW, "boot 4", "") == healthy


@pytest.mark.parametrize(
    ("state", "running", "reason", "text"),
    [
        (
            INSTALLED,
            OLD,
            "",
            "rolled back from 1.1.0 to 1.0.0: it did not boot, or its installation was cut short",
        ),
        (INSTALLED, OLD, "agent: is failed", "rolled back from 1.1.0 to 1.0.0: agent: is failed"),
        (
            updates.on_boot(INSTALLED, *NEW, "boot 2", ""),
            OLD,
            "",
            "rolled back from 1.1.0 to 1.0.0: it did not boot",
        ),
        # the same version as ran before, in the other slot
        (
            updates.installed(updates.downloaded(updates.offered("1.0.0", "1.0.0")), "B", ""),
            OLD,
            "",
            "rolled back",
        ),
    ],
)
def test_a_rollback_is_told_with_its_reason(
    state: UpdateState, running: tuple[str, str], reason: str, text: str
) -> None:
    found = updates.on_boot(state, *running, "boot 3", reason)
    assert found is not None
    assert found.text.startswith(text)
    assert updates.on_healthy(found, *running) == found
    assert updates.on_boot(found, *NEW, "boot 4", "") == found  # and stays so


def test_a_version_that_stops_booting_after_it_was_healthy_is_no_success_any_more() -> None:
    healthy = updates.on_healthy(updates.on_boot(INSTALLED, *NEW, "boot 2", ""), *NEW)
    found = updates.on_boot(healthy, *OLD, "boot 9", "")
    assert found is not None
    assert found.phase == updates.ROLLED_BACK
    assert "was healthy once" in found.text


@pytest.mark.parametrize("running", [OLD, NEW, ("1.1.0", "A"), ("1.0.0", "B")])
def test_a_healthy_system_that_was_not_seen_to_boot_as_the_update_is_no_success(
    running: tuple[str, str],
) -> None:
    assert updates.on_healthy(INSTALLED, *running) == INSTALLED
    booted = updates.on_boot(INSTALLED, *NEW, "boot 2", "")
    assert (updates.on_healthy(booted, *running) != booted) == (running == NEW)


def test_an_update_that_waits_for_its_reboot_is_not_rolled_back() -> None:
    assert updates.on_boot(INSTALLED, *OLD, "boot 1", "") == INSTALLED


def test_steps_out_of_order_are_refused() -> None:
    offer = updates.offered("1.1.0", "1.0.0")
    with pytest.raises(FirmwareError, match="offered cannot become installed"):
        updates.installed(offer, "B", "")
    with pytest.raises(FirmwareError, match="installed cannot become downloaded"):
        updates.downloaded(INSTALLED)
    booted = updates.on_boot(INSTALLED, *NEW, "", "")
    assert booted is not None
    with pytest.raises(FirmwareError, match="booted cannot become failed"):
        updates.failed(booted, "")


def test_reasons_are_cut_to_what_the_server_takes() -> None:
    assert len(updates.failed(INSTALLED, "x" * 1000).text) <= updates.MAX_REASON
    found = updates.on_boot(INSTALLED, *OLD, "boot 2", "y" * 1000)
    assert found is not None
    assert len(found.text) <= updates.MAX_REASON


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "update/state.json"
    assert updates.load(path) is None
    for state in (INSTALLED, updates.failed(INSTALLED, "no space \N{EURO SIGN}\n")):
        updates.save(path, state)
        assert updates.load(path) == state
        assert json.loads(path.read_text())["text"] == state.text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'"healthy"',
        b"null",
        b"{}",
        b'{"phase": "healthy"}',
        b'{"phase": "perfect", "version": "1.1.0", "before": "1.0.0"}',
        b'{"phase": ["healthy"], "version": "1.1.0", "before": "1.0.0"}',
        b'{"phase": "healthy", "version": 2, "before": "1.0.0"}',
        b'{"phase": "healthy", "version": "1.1.0", "before": "1.0.0", "reason": null}',
        b'{"phase": "healthy", "version": "1.1.0", "before": "1.0.0", "more": ""}',
    ],
)
def test_a_damaged_file_is_no_update(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    assert updates.load(tmp_path / "state.json") is None


def test_a_save_that_fails_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    updates.save(path, INSTALLED)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole_files.os, "fsync", full)
    with pytest.raises(FirmwareError, match="No space left"):
        updates.save(path, updates.failed(INSTALLED, ""))
    assert updates.load(path) == INSTALLED
    assert list(tmp_path.iterdir()) == [path]
