"""Where the broker is and how to reach it: the `[broker]` table of both programs' configuration files."""

from dataclasses import dataclass, replace
from pathlib import Path

MQTT_VERSIONS = ("auto", "5", "3.1.1")


@dataclass(frozen=True)
class BrokerConfig:
    """Where the broker is and how to reach it."""

    host: str = "127.0.0.1"
    port: int = 1883
    keepalive_seconds: int = 30
    tls_ca: str = ""
    """File of the CA that signed the broker's certificate; empty: no TLS."""
    tls_certificate: str = ""
    """File of the client's certificate, for mutual TLS."""
    tls_key: str = ""
    """File of its private key; empty: the key is in the file of the certificate."""
    username: str = ""
    password_file: str = ""
    mqtt_version: str = "auto"
    """"5", "3.1.1", or "auto": 5 where the broker has it."""

    def relative_to(self, folder: Path) -> "BrokerConfig":
        """The same with file names counted from `folder`."""

        def path(name: str) -> str:
            return str(folder / name) if name else ""

        return replace(
            self,
            tls_ca=path(self.tls_ca),
            tls_certificate=path(self.tls_certificate),
            tls_key=path(self.tls_key),
            password_file=path(self.password_file),
        )

    def __post_init__(self) -> None:
        if self.mqtt_version not in MQTT_VERSIONS:
            raise ValueError(
                f"mqtt_version: expected one of {', '.join(MQTT_VERSIONS)}, got {self.mqtt_version!r}"
            )
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port: expected 1 to 65535, got {self.port}")
        if not 1 <= self.keepalive_seconds <= 3600:
            raise ValueError(f"keepalive_seconds: expected 1 to 3600, got {self.keepalive_seconds}")
        if self.tls_key and not self.tls_certificate:
            raise ValueError("tls_key: expected a tls_certificate with it")
