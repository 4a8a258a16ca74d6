"""Whether a device sends its update now, or waits and adds it to the next one: a decision without I/O."""

import time
from dataclasses import dataclass

import numpy as np

from agent.engine import Floats
from protocol.charter import SendingPolicy

QUIET, BYTES, BUSY, SMALL = "quiet hours", "bytes per day", "no receipts", "small update"
IDLE = "little to gain"
HOUR = 3600.0


@dataclass(frozen=True)
class Situation:
    """What the decision depends on."""

    now: float
    """Unix seconds."""
    bytes_of_day: int
    """Bytes up and down in the 24 hours before."""
    update_bytes: int
    """What sending would take, as far as is known."""
    relative_norm: float
    """L2 norm of what would be sent, relative to that of the release's adapter."""
    hours_waited: float
    """Since the update began to be too small, or not worth its bytes; 0: it is not."""
    outstanding: int
    """Updates without a receipt."""
    idle: bool = False
    """Whether releases bring less than an update costs (see schedule.py)."""


def reason_to_wait(policy: SendingPolicy, situation: Situation) -> str:
    """Why the device waits; empty: it sends."""
    local = time.localtime(situation.now)
    if policy.quiet(60 * local.tm_hour + local.tm_min):
        return QUIET
    if policy.bytes_per_day and situation.bytes_of_day + situation.update_bytes > policy.bytes_per_day:
        return BYTES
    if policy.maximum_outstanding and situation.outstanding >= policy.maximum_outstanding:
        return BUSY
    waited_enough = 0 < policy.maximum_wait_hours <= situation.hours_waited
    if situation.relative_norm < policy.minimum_relative_norm and not waited_enough:
        return SMALL
    if situation.idle and not _together(policy, situation):
        return IDLE
    return ""


def _together(policy: SendingPolicy, situation: Situation) -> bool:
    """Whether devices that wait for want of gain send, all at once: a release of a few would be a poor one.

    They began to wait within minutes, as each adopted the release, and end at the last full quarter of the
    longest wait, by everybody's clock, at which none has waited longer.
    """
    quarter = policy.maximum_wait_hours * HOUR / 4
    if not quarter:
        return False
    longest = situation.now - situation.hours_waited * HOUR + 4 * quarter
    return situation.hours_waited > 0 and situation.now >= longest // quarter * quarter


def relative_norm(difference: Floats, base: Floats) -> float:
    """L2 norm of a difference relative to that of its base; infinite where that is all zeros."""
    of_base = float(np.linalg.norm(base.astype(np.float64)))
    return float(np.linalg.norm(difference.astype(np.float64))) / of_base if of_base else np.inf
