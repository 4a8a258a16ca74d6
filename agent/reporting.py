"""What the device says of itself: its state, and how its gate decided. Figures, never data."""

import resource
from importlib.metadata import PackageNotFoundError, version

from agent.learner import Learner
from agent.participant import State
from agent.store import Store
from protocol.messages import DeviceState, Report
from runtime import memory


def state_message(
    state: State,
    *,
    online: bool,
    session: int,
    public_key: bytes,
    labelled_windows: int,
    waits: str,
) -> DeviceState:
    """What the device runs now; a release counts as held only once it was adopted."""
    release = state.release if state.base else -1
    return DeviceState(
        online, session, public_key, _agent_version(), state.package, release, labelled_windows, waits
    )


def report_message(store: Store, learner: Learner, traffic: tuple[int, int]) -> Report:
    """The gate's verdict on the release that the device holds, and what taking part has cost so far.

    Args:
        store: holds release, choice, gains and counts of windows.
        learner: knows the recordings that cannot be read.
        traffic: bytes (up, down) of this connection.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Report(
        store.state().release,
        store.text("choice"),
        store.number("holdout_windows", 0),
        float(store.text("gain")),
        store.number("labelled_windows", 0),
        store.number("unlabelled_windows", 0),
        usage.ru_utime + usage.ru_stime,
        memory.peak_resident_bytes() or usage.ru_maxrss * 1024,
        *traffic,
        learner.problems(),
        float(store.text("personal_gain")),
    )


def _agent_version() -> str:
    try:
        return version("graftwork")
    except PackageNotFoundError:
        return "unknown"
