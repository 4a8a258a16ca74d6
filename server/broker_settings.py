"""Text of the configuration of a federation's two mosquitto brokers, complete but for keys and certificates.

mosquitto.conf is the broker: a listener for devices, one for the server. enrolment.conf is a broker of its
own in front of it, for clients that have no certificate yet; a bridge hands on their requests and nothing
else. It is another process because client ids, and most limits, are shared by all listeners of a mosquitto:
an anonymous client that calls itself like a device would throw that device off, and one that leaves
messages behind would fill the memory of the whole fleet's broker.
"""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from protocol.topics import PREFIX, check_name
from server import broker_templates
from server.authority import bridge_name, server_name
from server.errors import ServerError

BROKER = "mosquitto.conf"
ENROLMENT = "enrolment.conf"
REVOKED = "devices.crl"
STATE = "state"
"""Folder of what the broker keeps over a restart."""


def authority_file(kind: str) -> str:
    """File of a CA's certificate."""
    return f"{kind}-ca.crt"


@dataclass(frozen=True)
class BrokerSettings:
    """What can be chosen; see `graftwork-server broker-config --help`."""

    federation: str
    directory: Path
    """Where everything lies that the brokers read and write; absolute."""
    port: int = 8883
    """For devices."""
    enrolment_port: int = 8884
    """For clients without a certificate of a device; 0: no enrolment over the network."""
    service_port: int = 8885
    """For the server."""
    bind: str = ""
    """IP address of the listeners for devices and enrolment; empty: every one of this machine."""
    service_bind: str = "127.0.0.1"
    require_claim: bool = False
    """Whether asking for enrolment needs a claim certificate."""
    audit: bool = True
    """Whether the log says what was denied to whom; costs about a line for each packet."""
    bridge_id: str = "SECRET"
    """Client id of the bridge within the enrolment broker. Who knows it can throw the bridge off there."""

    def __post_init__(self) -> None:
        check_name(self.federation)
        ports = [port for port in (self.port, self.enrolment_port, self.service_port) if port]
        if not self.port or not self.service_port or len(set(ports)) != len(ports):
            raise ServerError(f"ports: expected different ones for every listener, got {ports}")
        if not all(1 <= port <= 65535 for port in ports):
            raise ServerError(f"ports: expected 1 to 65535, got {ports}")
        if not self.service_bind:
            raise ServerError("the address of the server's listener: expected an IP address, got none")
        found = [_address(address) for address in (self.bind, self.service_bind) if address]
        if found[-1].version != 4:  # mosquitto's option for a bridge's address knows no other
            raise ServerError(
                f"the address of the server's listener: expected an IPv4 one, got {self.service_bind}"
            )
        if not self.directory.is_absolute() or not str(self.directory).isprintable():
            raise ServerError(f"expected an absolute directory of printable characters, got {self.directory}")

    @property
    def service_host(self) -> str:
        """Address under which this machine reaches the server's listener."""
        address = _address(self.service_bind)
        return "127.0.0.1" if address.is_unspecified else str(address)

    def texts(self) -> dict[str, str]:
        """Every file, by name."""
        files = {
            BROKER: self._broker(),
            "acl-devices": self._acl_devices(),
            "acl-services": self._acl_services(),
        }
        if self.enrolment_port:
            files |= {ENROLMENT: self._enrolment(), "acl-enrolment": self._acl_enrolment()}
        return files

    def _broker(self) -> str:
        return broker_templates.BROKER.format(
            **self._names(),
            log=self._log("mosquitto"),
            devices_listener=f"listener {self.port} {self.bind}".rstrip(),
            services_listener=f"listener {self.service_port} {self.service_bind}",
        )

    def _enrolment(self) -> str:
        return broker_templates.ENROLMENT.format(
            **self._names(),
            log=self._log("enrolment"),
            listener=f"listener {self.enrolment_port} {self.bind}".rstrip(),
            require=str(self.require_claim).lower(),
            bridge=bridge_name(self.federation),
            bridge_id=self.bridge_id,
            address=f"{self.service_host}:{self.service_port}",
        )

    def _names(self) -> dict[str, str]:
        return {
            "federation": self.federation,
            "directory": str(self.directory),
            "prefix": f"{PREFIX}/{self.federation}",
        }

    def _log(self, program: str) -> str:
        return broker_templates.LOG.format(path=self.directory / f"{program}.log") + (
            broker_templates.AUDIT if self.audit else ""
        )

    def _acl_devices(self) -> str:
        return broker_templates.ACL_DEVICES.format(**self._names())

    def _acl_enrolment(self) -> str:
        return broker_templates.ACL_ENROLMENT.format(**self._names())

    def _acl_services(self) -> str:
        names = {"server": server_name(self.federation), "bridge": bridge_name(self.federation)}
        return broker_templates.ACL_SERVICES.format(**self._names(), **names)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise ServerError(f"expected an IP address to listen on, got {text!r}") from error
