"""What the server counts, for Prometheus: attacks, refusals, updates, rounds, devices, certificates, traffic.

Every label value is from a closed set: what a peer sent never makes a new series. Each `Metrics` has a
registry of its own. The HTTP endpoint is off unless a port is set; it answers everybody who reaches it,
without TLS and without a password, so it belongs on loopback or on a network for operators.
"""

import ipaddress
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from protocol.field_checks import check_range
from protocol.messages import VERDICTS
from server import incidents, limits, refusals
from server.errors import ServerError

OTHER = "other"
"""Stands for a value outside its set: to count must not end the server."""
ROUND_EVENTS = ("opened", "extended", "closed")
RELEASE_EVENTS = ("made", "withdrawn")
STATUSES = ("active", "quarantined", "revoked", "online")
"""Of devices; those online are among the active ones."""
ENROLMENT_OUTCOMES = ("granted", "waiting", "refused", "failed")
CERTIFICATE_EVENTS = ("issued", "renewed")
DIRECTIONS = ("up", "down")
REVOCATION_BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 60, 300)


@dataclass(frozen=True)
class MetricsPolicy:
    """Where the figures can be fetched: the `[metrics]` table."""

    port: int = 0
    """Of the HTTP endpoint, with the path /metrics; 0: there is none."""
    bind: str = "127.0.0.1"
    """Address that it listens on."""

    def __post_init__(self) -> None:
        check_range("port", self.port, 0, 65535)
        try:
            ipaddress.ip_address(self.bind)
        except ValueError:
            raise ValueError(f"bind: expected an IP address, got {self.bind[:80]!r}") from None


class Metrics:
    """Counters and gauges of one server. Its methods may be called from any thread, and never raise."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._refused = self._counter("refused_messages", "Messages refused", "reason", refusals.CODES)
        self._limited = self._counter("limited_messages", "Beyond a limit", "limit", limits.REASONS)
        self._attacks = self._counter("attacks", "Incidents in the broker's log", "kind", incidents.KINDS)
        self._updates = self._counter("updates", "Updates answered", "verdict", VERDICTS)
        self._rounds = self._counter("rounds", "Rounds", "event", ROUND_EVENTS)
        self._releases = self._counter("releases", "Releases", "event", RELEASE_EVENTS)
        self._enrolments = self._counter("enrolments", "Enrolments", "outcome", ENROLMENT_OUTCOMES)
        self._certificates = self._counter("certificates", "Certificates", "event", CERTIFICATE_EVENTS)
        self._bytes = self._counter("bytes", "Topics and payloads", "direction", DIRECTIONS)
        self._newest = Gauge("graftwork_newest_release", "Its number", registry=self.registry)
        self._devices = Gauge("graftwork_devices", "Registered devices", ["status"], registry=self.registry)
        self.devices({})
        self._revocation = Histogram(
            "graftwork_revocation_seconds",
            "From the order to revoke a device to the end of its connection",
            registry=self.registry,
            buckets=REVOCATION_BUCKETS,
        )
        self._seen = dict.fromkeys(DIRECTIONS, 0)

    def refused(self, code: str) -> None:
        """A message was refused; one of `refusals.CODES`."""
        self._add(self._refused, code, refusals.CODES)

    def limited(self, reason: str) -> None:
        """A message exceeded a limit; one of `limits.REASONS`."""
        self._add(self._limited, reason, limits.REASONS)

    def attack(self, kind: str) -> None:
        """The broker's log shows an incident; one of `incidents.KINDS`."""
        self._add(self._attacks, kind, incidents.KINDS)

    def update(self, verdict: str) -> None:
        """An update was answered with a receipt; one of `protocol.messages.VERDICTS`."""
        self._add(self._updates, verdict, VERDICTS)

    def round(self, event: str) -> None:
        """A round was opened, extended or closed; one of ROUND_EVENTS."""
        self._add(self._rounds, event, ROUND_EVENTS)

    def release(self, event: str, newest: int) -> None:
        """A release was made or withdrawn, one of RELEASE_EVENTS; `newest`: the number of the newest one."""
        self._add(self._releases, event, RELEASE_EVENTS)
        self._newest.set(newest)

    def devices(self, counts: Mapping[str, int]) -> None:
        """Registered devices by status, of STATUSES; what is missing is 0."""
        for status in STATUSES:
            self._devices.labels(status).set(counts.get(status, 0))

    def enrolment(self, outcome: str) -> None:
        """Somebody asked to be enrolled; one of ENROLMENT_OUTCOMES."""
        self._add(self._enrolments, outcome, ENROLMENT_OUTCOMES)

    def certificate(self, event: str) -> None:
        """A certificate was issued or renewed; one of CERTIFICATE_EVENTS."""
        self._add(self._certificates, event, CERTIFICATE_EVENTS)

    def revoked(self, seconds: float) -> None:
        """A device was revoked; it took so long until it was off the broker."""
        self._revocation.observe(max(0.0, seconds))

    def traffic(self, up: int, down: int) -> None:
        """Bytes published and received by the server's link so far (`Link.bytes_up`, `Link.bytes_down`)."""
        for direction, total in (("up", up), ("down", down)):
            before = self._seen[direction]
            self._seen[direction] = total
            # A new link counts from 0.
            self._bytes.labels(direction).inc(total - before if total >= before else total)

    def _counter(self, name: str, text: str, label: str, values: Iterable[str]) -> Counter:
        counter = Counter(f"graftwork_{name}", text, [label], registry=self.registry)
        for value in (*values, OTHER):
            counter.labels(value)  # a series that begins at 0 shows its first event as a rate
        return counter

    def _add(self, counter: Counter, value: str, allowed: Container[str]) -> None:
        counter.labels(value if value in allowed else OTHER).inc()


@contextmanager
def endpoint(policy: MetricsPolicy, metrics: Metrics) -> Iterator[int]:
    """Serve the figures over HTTP while the context lasts; gives the port, 0: the policy wants none.

    Raises:
        ServerError: the address cannot be listened on.
    """
    if not policy.port:
        yield 0
        return
    try:
        server, thread = start_http_server(policy.port, policy.bind, metrics.registry)
    except OSError as error:
        raise ServerError(
            f"metrics: {policy.bind}:{policy.port} cannot be listened on: {error.strerror}; "
            "set another port in [metrics]"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
