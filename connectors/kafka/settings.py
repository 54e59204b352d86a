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
        """What every client of aiokafka takes; reads the certificates' files.

        Raises UserError for files that cannot be used, and for SASL without user or password.
        """
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
            credentials = {"sasl_username": self.sasl_username, "sasl_password": self.sasl_password}
            missing = [f"kafka.{key}" for key, value in credentials.items() if not value]
            if missing:
                raise UserError(
                    f"kafka.security_protocol = {self.security_protocol!r} needs {' and '.join(missing)}",
                    hint="the password may come from the environment, as HEADRACE_SASL_PASSWORD",
                )
        if self.security_protocol.endswith("SSL"):
            arguments["ssl_context"] = self._ssl_context()
        return arguments

    def _ssl_context(self) -> ssl.SSLContext:
        for key in ("ssl_ca_file", "ssl_cert_file", "ssl_key_file"):
            path: Path | None = getattr(self, key)
            try:
                if path is not None:
                    path.open("rb").close()
            except OSError as error:
                raise UserError(f"kafka.{key} = {str(path)!r} cannot be read: {error.strerror}") from None
        if self.ssl_key_file is not None and self.ssl_cert_file is None:
            raise UserError("kafka.ssl_key_file goes with kafka.ssl_cert_file, which is missing")
        try:
            context = ssl.create_default_context(cafile=self.ssl_ca_file)
        except OSError as error:
            raise UserError(
                f"kafka.ssl_ca_file = {str(self.ssl_ca_file)!r} holds no certificates in PEM: {error}"
            ) from None
        if self.ssl_cert_file is not None:
            try:
                # With a password, if an empty one, OpenSSL does not ask for one on the terminal.
                context.load_cert_chain(self.ssl_cert_file, self.ssl_key_file, password="")
            except OSError as error:
                files = " and ".join(repr(str(path)) for path in (self.ssl_cert_file, self.ssl_key_file) if path)
                raise UserError(
                    f"kafka.ssl_cert_file: {files} cannot be used: {error}",
                    hint="valid are a certificate (and those that signed it) and its key, in PEM, not encrypted",
                ) from None
        return context
