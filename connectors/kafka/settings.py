"""How to reach a cluster: the configuration's [kafka] table as arguments of aiokafka's clients."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import UserError


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """``bootstrap`` is ``host:port[,host:port...]``. The password never shows in a repr or a message."""

    bootstrap: str
    client_id: str = "headrace"
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = "PLAIN"
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ssl_ca_file: Path | None = None
    ssl_cert_file: Path | None = None
    ssl_key_file: Path | None = None
    broker_wait_seconds_max: float = 60.0
    session_timeout_ms: int = 10_000
    heartbeat_interval_ms: int = 3_000
    metadata_age_ms_max: int = 30_000

    def client_arguments(self) -> dict[str, object]:
        """What every client of aiokafka takes. Raises UserError for certificates that cannot be read."""
        arguments: dict[str, object] = {
            "bootstrap_servers": self.bootstrap,
            "client_id": self.client_id,
            "metadata_max_age_ms": self.metadata_age_ms_max,
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol.startswith("SASL"):
            arguments |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        if self.security_protocol.endswith("SSL"):
            arguments["ssl_context"] = self._ssl_context()
        return arguments

    def _ssl_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ssl_ca_file)
            if self.ssl_cert_file is not None:
                context.load_cert_chain(self.ssl_cert_file, self.ssl_key_file)
        except (OSError, ssl.SSLError) as error:
            files = [str(path) for path in (self.ssl_ca_file, self.ssl_cert_file, self.ssl_key_file) if path]
            raise UserError(f"the certificates {', '.join(files)} cannot be used: {error}") from None
        return context
