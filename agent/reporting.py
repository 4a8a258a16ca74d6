"""What the device says of itself: its state, and how its gate decided. Figures, never data."""

from importlib.metadata import PackageNotFoundError, version

from agent.learner import Learner, resources
from agent.participant import State
from agent.store import Store
from protocol.messages import DeviceState, Report


def state_message(
    state: State, *, online: bool, session: int, public_key: bytes, labelled_windows: int
) -> DeviceState:
    """What the device runs now; a release counts as held only once it was adopted."""
    release = state.release if state.base else -1
    return DeviceState(
        online, session, public_key, _agent_version(), state.package, release, labelled_windows
    )


def report_message(store: Store, learner: Learner, traffic: tuple[int, int]) -> Report:
    """The gate's verdict on the release that the device holds, and what taking part has cost so far.

    Args:
        store: holds release, choice and gains.
        learner: counts windows and problems.
        traffic: bytes (up, down) of this connection.
    """
    cpu_seconds, peak = resources()
    inventory = learner.inventory()
    return Report(
        store.state().release,
        store.text("choice"),
        store.number("holdout_windows", 0),
        float(store.text("gain")),
        len(inventory.labelled),
        inventory.unlabelled_windows,
        cpu_seconds,
        peak,
        *traffic,
        learner.problems(),
        float(store.text("personal_gain")),
    )


def _agent_version() -> str:
    try:
        return version("graftwork")
    except PackageNotFoundError:
        return "unknown"
