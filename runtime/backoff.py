"""How long to wait before the next attempt to reach the broker: exponential back-off with full jitter.

A broker that restarts loses all its clients in the same moment. Each draws every wait anew, uniformly between
next to nothing and a ceiling that doubles with every failure: so they come back one by one, and the longer
the broker is away, the further apart ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

import random

SHORTEST_SECONDS = 0.2
FIRST_CEILING_SECONDS = 2.0
LAST_CEILING_SECONDS = 60.0
STEADY_SECONDS = 60.0
"""A connection that held this long was no failed attempt."""


class Backoff:
    """The waits of one client."""

    def __init__(self, draw: random.Random, longest_seconds: float = LAST_CEILING_SECONDS) -> None:
        """Take what the waits are drawn from.

        Args:
            draw: the source of the jitter; no two devices may share a seed.
            longest_seconds: the last ceiling.
        """
        self._draw = draw
        self._longest = longest_seconds
        self._ceiling = FIRST_CEILING_SECONDS

    def delay(self, held_seconds: float) -> float:
        """Seconds to wait now that an attempt failed, or that a connection broke.

        Args:
            held_seconds: how long the connection held; 0: there was none. A broker that takes connections
                and drops them at once is to be spared like one that is away.
        """
        if held_seconds >= STEADY_SECONDS:
            self._ceiling = FIRST_CEILING_SECONDS
        delay = self._draw.uniform(SHORTEST_SECONDS, self._ceiling)
        self._ceiling = min(2 * self._ceiling, self._longest)
        return delay
