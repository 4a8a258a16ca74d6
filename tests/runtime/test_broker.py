"""Which settings of the broker's table go together."""

from pathlib import Path

import pytest

from runtime.broker import BrokerConfig


def test_a_key_needs_a_certificate_and_a_certificate_may_hold_its_key() -> None:
    with pytest.raises(ValueError, match="tls_key: expected a tls_certificate with it"):
        BrokerConfig(tls_key="device.key")
    config = BrokerConfig(tls_ca="ca.crt", tls_certificate="device.pem").relative_to(Path("/etc/device"))
    assert (config.tls_certificate, config.tls_key) == ("/etc/device/device.pem", "")
