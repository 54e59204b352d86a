"""How to reach the cluster: what the [kafka] table, the command line and the environment say of it."""

from __future__ import annotations

import os

from connectors.kafka.settings import KafkaSettings
from engine.cli.options import bootstrap_option
from engine.config import KafkaConfig

PASSWORD_VARIABLE = "HEADRACE_SASL_PASSWORD"  # noqa: S105 - the name of a variable


def kafka_settings(config: KafkaConfig, bootstrap: str | None = None) -> KafkaSettings:
    """``bootstrap`` (of the command line) outranks the configuration, which outranks the environment."""
    password = config.sasl_password.get_secret_value() if config.sasl_password is not None else None
    return KafkaSettings(
        bootstrap=bootstrap_option(bootstrap, config.bootstrap),
        client_id=config.client_id,
        security_protocol=config.security_protocol,
        sasl_mechanism=config.sasl_mechanism,
        sasl_username=config.sasl_username,
        sasl_password=password or os.environ.get(PASSWORD_VARIABLE),
        ssl_ca_file=config.ssl_ca_file,
        ssl_cert_file=config.ssl_cert_file,
        ssl_key_file=config.ssl_key_file,
        broker_wait_seconds_max=config.broker_wait_seconds_max,
        session_timeout_ms=config.session_timeout_ms,
        heartbeat_interval_ms=config.heartbeat_interval_ms,
        metadata_age_ms_max=config.metadata_age_ms_max,
    )
