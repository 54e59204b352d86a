"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from engine import config_file
from engine.config import KafkaConfig
from engine.errors import UserError

BOOTSTRAP_VARIABLE = "HEADRACE_BOOTSTRAP"
BOOTSTRAP_DEFAULT = "127.0.0.1:9092"

PORT_MAX = 65_535

#: ``--bootstrap``; give what it holds to `bootstrap_option`.
Bootstrap = Annotated[
    str | None,
    typer.Option(
        "--bootstrap",
        metavar="HOST:PORT[,...]",
        help=f"The cluster; by default ${BOOTSTRAP_VARIABLE}, or else {BOOTSTRAP_DEFAULT}.",
    ),
]

#: ``--config``; give what it holds to `kafka_option`.
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="A headrace.toml: its [kafka] table says how to reach the cluster."
    ),
]


def kafka_option(file: Path | None) -> KafkaConfig:
    """The [kafka] table of a configuration. Raises ConfigError for a file that is no configuration."""
    return KafkaConfig() if file is None else config_file.load(file).kafka


def bootstrap_option(given: str | None, configured: str | None = None) -> str:
    """The cluster's address: the command line's, else the configuration's, the environment's, the local broker's.

    Raises UserError for one that is no ``host:port`` list.
    """
    for origin, value in (
        ("--bootstrap", given),
        ("kafka.bootstrap", configured),
        (BOOTSTRAP_VARIABLE, os.environ.get(BOOTSTRAP_VARIABLE)),
    ):
        if value:
            _check(origin, value)
            return value
    return BOOTSTRAP_DEFAULT


def _check(origin: str, value: str) -> None:
    for address in value.split(","):
        host, _, port = address.strip().rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) <= PORT_MAX:
            raise UserError(f"{origin} is {value!r}; valid is HOST:PORT, or several with commas between them")
