"""What is counted, that no peer can make a series, and that the endpoint comes and goes."""

import threading
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest
from prometheus_client import generate_latest

from protocol.messages import VERDICTS
from protocol.records import from_named
from server import incidents, limits, metrics, refusals
from server.broker import free_port
from server.errors import ServerError
from server.metrics import Metrics, MetricsPolicy, endpoint


def value(counted: Metrics, name: str, **labels: str) -> float | None:
    return counted.registry.get_sample_value(f"graftwork_{name}", labels)


@pytest.mark.parametrize(
    ("act", "name", "label", "allowed"),
    [
        (Metrics.refused, "refused_messages_total", "reason", refusals.CODES),
        (Metrics.limited, "limited_messages_total", "limit", limits.REASONS),
        (Metrics.attack, "attacks_total", "kind", incidents.KINDS),
        (Metrics.update, "updates_total", "verdict", VERDICTS),
        (Metrics.round, "rounds_total", "event", metrics.ROUND_EVENTS),
        (lambda counted, event: counted.release(event, 3), "releases_total", "event", metrics.RELEASE_EVENTS),
        (Metrics.enrolment, "enrolments_total", "outcome", metrics.ENROLMENT_OUTCOMES),
        (Metrics.certificate, "certificates_total", "event", metrics.CERTIFICATE_EVENTS),
    ],
)
def test_every_counter_begins_at_0_counts_and_takes_no_label_from_outside(
    act: Callable[[Metrics, str], None], name: str, label: str, allowed: tuple[str, ...]
) -> None:
    counted = Metrics()
    size = len(generate_latest(counted.registry))
    for known in allowed:
        assert value(counted, name, **{label: known}) == 0
        act(counted, known)
        assert value(counted, name, **{label: known}) == 1
    before = value(counted, name, **{label: "other"})
    assert before is not None
    for invented in range(1000):
        act(counted, f"pump-{invented}\n")
    assert value(counted, name, **{label: "other"}) == before + 1000
    assert len(generate_latest(counted.registry)) < size + 500  # digits of the counts, no new lines


def test_devices_by_status_are_as_last_told() -> None:
    counted = Metrics()
    counted.devices({"active": 5, "online": 3, "quarantined": 1, "invented": 7})
    counted.devices({"active": 4, "online": 4})
    found = {status: value(counted, "devices", status=status) for status in metrics.STATUSES}
    assert found == {"active": 4, "quarantined": 0, "revoked": 0, "online": 4}
    assert value(counted, "devices", status="invented") is None


def test_traffic_goes_on_when_the_link_is_a_new_one() -> None:
    counted = Metrics()
    for up, down in ((100, 10), (150, 10), (20, 5), (30, 5)):
        counted.traffic(up, down)
    assert value(counted, "bytes_total", direction="up") == 150 + 30
    assert value(counted, "bytes_total", direction="down") == 10 + 5


def test_revocations_are_counted_by_the_seconds_that_they_took() -> None:
    counted = Metrics()
    for seconds in (0.2, 2.0, -1.0):  # a clock that went back
        counted.revoked(seconds)
    assert value(counted, "revocation_seconds_count") == 3
    assert value(counted, "revocation_seconds_sum") == pytest.approx(2.2)
    assert value(counted, "revocation_seconds_bucket", le="0.3") == 2


def test_the_newest_release_is_shown() -> None:
    counted = Metrics()
    counted.release("made", 12)
    counted.release("withdrawn", 13)
    assert value(counted, "newest_release") == 13


def test_two_servers_in_one_process_do_not_mix() -> None:
    one, other = Metrics(), Metrics()
    one.update("counted")
    assert value(other, "updates_total", verdict="counted") == 0


def test_the_endpoint_answers_while_it_is_wanted_and_leaves_no_thread() -> None:
    counted, threads = Metrics(), threading.active_count()
    counted.refused(refusals.SIGNATURE)
    policy = MetricsPolicy(port=free_port())
    for _ in range(2):  # the port is free again at once
        with endpoint(policy, counted) as port:
            assert port == policy.port
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                assert b'graftwork_refused_messages_total{reason="signature"} 1.0' in answer.read()
        assert threading.active_count() <= threads + 1  # the one that answered may be about to end
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{policy.port}/metrics", timeout=30)


def test_without_a_port_nothing_listens() -> None:
    threads = threading.active_count()
    with endpoint(MetricsPolicy(), Metrics()) as port:
        assert port == 0
        assert threading.active_count() == threads


def test_a_port_that_is_taken_is_said_with_what_to_change() -> None:
    policy = MetricsPolicy(port=free_port())
    with (
        endpoint(policy, Metrics()),
        pytest.raises(
            ServerError, match=rf"127\.0\.0\.1:{policy.port} cannot be listened on: .*another port"
        ),
        endpoint(policy, Metrics()),
    ):
        pass


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"port": 65536}, "port: expected 0 to 65535"),
        ({"port": -1}, "port: expected 0 to 65535"),
        ({"bind": "localhost"}, "bind: expected an IP address, got 'localhost'"),
        ({"bind": ""}, "bind: expected an IP address"),
    ],
)
def test_an_address_that_is_none_is_refused(values: dict[str, object], problem: str) -> None:
    with pytest.raises(Exception, match=problem):
        from_named(MetricsPolicy, values)


def test_ipv6_is_an_address() -> None:
    assert MetricsPolicy(bind="::1").bind == "::1"
