"""TLS and SASL against a real broker: what gets in, and the one clear line that everything else gets."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset
import pytest
import trustme
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from cryptography.hazmat.primitives import serialization

from connectors.kafka.broker import Broker, jars
from connectors.kafka.broker.probe import free_ports
from connectors.kafka.broker.process import java
from connectors.kafka.refusals import refusal
from connectors.kafka.settings import KafkaSettings
from engine.errors import UserError

pytestmark = [pytest.mark.broker, pytest.mark.slow]

HEADRACE = [sys.executable, "-m", "engine.cli.start"]

USER = "ann"
PASSWORD = "open sesame \u00e4"
WRONG = "shut sesame"
TOPIC = "clicks"
RECORDS = 40

#: What a refused command may take: starting Python, and asking the broker a second time why.
REFUSAL_SECONDS_MAX = 15.0

JAAS = "org.apache.kafka.common.security"


@dataclass(frozen=True)
class Secured:
    """A broker with listeners of each kind, and the files that clients of it need."""

    broker: Broker
    ca_file: Path
    other_ca_file: Path
    client_file: Path
    stranger_file: Path

    def kafka(self, listener: str, protocol: str, **settings: object) -> dict[str, object]:
        return {"bootstrap": self.broker.address(listener), "security_protocol": protocol, **settings}


def _pkcs8(certificate: trustme.LeafCert) -> str:
    """The key in the only form that Kafka takes."""
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    pem = serialization.Encoding.PEM
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def _properties(authority: trustme.CA) -> dict[str, str]:
    server = authority.issue_cert("127.0.0.1")
    chain = "".join(pem.bytes().decode() for pem in server.cert_chain_pems)
    properties = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.key": _pkcs8(server),
        "ssl.keystore.certificate.chain": chain,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": authority.cert_pem.bytes().decode(),
        "listener.name.mutual.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
    }
    for listener in ("login", "secure"):
        plain = f'{JAAS}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        properties[f"listener.name.{listener}.plain.sasl.jaas.config"] = plain
        scram = f"{JAAS}.scram.ScramLoginModule required;"
        properties[f"listener.name.{listener}.scram-sha-512.sasl.jaas.config"] = scram
    return properties


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One broker with listeners TLS, MUTUAL, LOGIN and SECURE; the topic is filled through the plaintext one."""
    files = tmp_path_factory.mktemp("certificates")
    authority, other = trustme.CA(), trustme.CA()
    for name, certificate in (
        ("ca.pem", authority.cert_pem),
        ("other-ca.pem", other.cert_pem),
        ("client.pem", authority.issue_cert("ann@example.org").private_key_and_cert_chain_pem),
        ("stranger.pem", other.issue_cert("eve@example.org").private_key_and_cert_chain_pem),
    ):
        certificate.write_to_path(str(files / name))
    broker = Broker(
        tmp_path_factory.mktemp("secured"),
        port=0,
        listeners={"TLS": "SSL", "MUTUAL": "SSL", "LOGIN": "SASL_PLAINTEXT", "SECURE": "SASL_SSL"},
        extra_properties=_properties(authority),
        brief=True,
    )
    with broker:
        _add_scram_user(broker.bootstrap)
        asyncio.run(_fill(broker.bootstrap))
        names = ("ca.pem", "other-ca.pem", "client.pem", "stranger.pem")
        yield Secured(broker, *(files / name for name in names))


def _add_scram_user(bootstrap: str) -> None:
    """By Kafka's own tool: aiokafka has no call for it."""
    pins = jars.pins()
    class_path = jars.ensure(pins, jars.cache_directory() / pins.kafka, progress=lambda _line: None)
    tool = [java(), "-cp", os.pathsep.join(map(str, class_path)), "kafka.admin.ConfigCommand"]
    change = ["--alter", "--entity-type", "users", "--entity-name", USER]
    credentials = ["--add-config", f"SCRAM-SHA-512=[password={PASSWORD}]"]
    done = subprocess.run(
        [*tool, "--bootstrap-server", bootstrap, *change, *credentials],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


async def _fill(bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(TOPIC, num_partitions=2, replication_factor=1)])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for number in range(RECORDS):
            await producer.send_and_wait(TOPIC, b'{"id": %d}' % number, partition=number % 2)


def _configuration(directory: Path, kafka: Mapping[str, object]) -> Path:
    """A configuration that writes the topic to Parquet as it is."""
    settings = {"broker_wait_seconds_max": 60, **kafka}
    lines = ["[kafka]", *(f"{key} = {json.dumps(value, default=str)}" for key, value in settings.items())]
    lines += ["[pipelines.secured.source]", f'topic = "{TOPIC}"']
    lines += ["[pipelines.secured.sink]", 'type = "parquet"', 'path = "out"']
    file = directory / "headrace.toml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _run(*arguments: str | Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A command carried out, and its seconds. Whatever it was asked, no password is in its output."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    started = time.monotonic()
    done = subprocess.run(
        [*HEADRACE, *map(str, arguments)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    for secret in (PASSWORD, PASSWORD.encode("unicode_escape").decode(), WRONG):
        assert secret not in done.stdout + done.stderr
    return done, time.monotonic() - started


def _ids(directory: Path) -> list[int]:
    return sorted(pyarrow.dataset.dataset(directory / "out", format="parquet").to_table()["id"].to_pylist())


def _sasl(mechanism: str = "PLAIN", password: str = PASSWORD) -> dict[str, object]:
    return {"sasl_mechanism": mechanism, "sasl_username": USER, "sasl_password": password}


def _accepted(secured: Secured, case: str) -> dict[str, object]:
    ca = {"ssl_ca_file": secured.ca_file}
    match case.split():
        case ["TLS"]:
            return secured.kafka("TLS", "SSL", **ca)
        case ["client", "certificate"]:
            return secured.kafka("MUTUAL", "SSL", **ca, ssl_cert_file=secured.client_file)
        case ["SASL_PLAINTEXT", mechanism]:
            return secured.kafka("LOGIN", "SASL_PLAINTEXT", **_sasl(mechanism))
        case ["SASL_SSL", mechanism]:
            return secured.kafka("SECURE", "SASL_SSL", **ca, **_sasl(mechanism))
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case",
    [
        "TLS",
        "client certificate",
        "SASL_PLAINTEXT PLAIN",
        "SASL_PLAINTEXT SCRAM-SHA-512",
        "SASL_SSL PLAIN",
        "SASL_SSL SCRAM-SHA-512",
    ],
)
def test_a_topic_reaches_parquet_over_each_kind_of_listener(secured: Secured, tmp_path: Path, case: str) -> None:
    """Every record is there once; --verbose does not show the password."""
    file = _configuration(tmp_path, _accepted(secured, case))
    done, _ = _run("run", file, "--until-caught-up", "--verbose")
    assert done.returncode == 0, done.stderr
    assert _ids(tmp_path) == list(range(RECORDS))


@pytest.mark.parametrize("case", ["TLS", "SASL_PLAINTEXT PLAIN", "SASL_SSL SCRAM-SHA-512"])
def test_the_configuration_as_checked_does_not_show_the_password(
    secured: Secured, tmp_path: Path, case: str
) -> None:
    """Where there is one, asterisks stand for it."""
    file = _configuration(tmp_path, _accepted(secured, case))
    for arguments in (("check", file), ("check", file, "--json")):
        checked, _ = _run(*arguments)
        assert checked.returncode == 0, checked.stderr
        assert ("**********" in checked.stdout) == case.startswith("SASL")


async def test_a_listener_with_a_password_lets_its_users_in_only(secured: Secured) -> None:
    """A further listener is configured by extra properties, which nobody else may read, and found by its name."""
    assert (secured.broker.data / "server.properties").stat().st_mode & 0o077 == 0
    options = {
        "bootstrap_servers": secured.broker.address("LOGIN"),
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": USER,
    }
    consumer = AIOKafkaConsumer(**options, sasl_plain_password=PASSWORD)
    await consumer.start()
    assert TOPIC in await consumer.topics()
    await consumer.stop()
    refused = AIOKafkaConsumer(**options, sasl_plain_password=WRONG)
    with pytest.raises(Exception, match=r"Authentication failed|Unable to bootstrap"):
        await refused.start()
    await refused.stop()


def test_the_password_may_come_from_the_environment(secured: Secured, tmp_path: Path) -> None:
    """HEADRACE_SASL_PASSWORD is used where the file has no password, and is as secret."""
    login = secured.kafka("SECURE", "SASL_SSL", ssl_ca_file=secured.ca_file, sasl_username=USER)
    file = _configuration(tmp_path, login)
    missing, _ = _run("run", file, "--until-caught-up")
    assert missing.returncode == 2
    assert "needs kafka.sasl_password" in missing.stderr
    assert "HEADRACE_SASL_PASSWORD" in missing.stderr
    done, _ = _run("run", file, "--until-caught-up", HEADRACE_SASL_PASSWORD=PASSWORD)
    assert done.returncode == 0, done.stderr
    assert _ids(tmp_path) == list(range(RECORDS))
    refused, seconds = _run("run", file, "--until-caught-up", HEADRACE_SASL_PASSWORD=WRONG)
    assert (refused.returncode, seconds < REFUSAL_SECONDS_MAX) == (3, True)


def _refused(secured: Secured, case: str) -> tuple[dict[str, object], int, list[str]]:
    """Settings, the exit code, and what the message has to say."""
    ca = {"ssl_ca_file": secured.ca_file}
    match case:
        case "wrong password":
            return secured.kafka("LOGIN", "SASL_PLAINTEXT", **_sasl(password=WRONG)), 3, [USER, "Authentication"]
        case "wrong SCRAM password":
            settings = _sasl("SCRAM-SHA-512", WRONG)
            return secured.kafka("SECURE", "SASL_SSL", **ca, **settings), 3, [USER, "kafka.sasl_password"]
        case "mechanism":
            login = secured.kafka("LOGIN", "SASL_PLAINTEXT", **_sasl("SCRAM-SHA-256"))
            return login, 3, ["SCRAM-SHA-256", "it takes PLAIN, SCRAM-SHA-512"]
        case "unknown CA":
            tls = secured.kafka("TLS", "SSL", ssl_ca_file=secured.other_ca_file)
            return tls, 3, ["certificate that is not trusted", "kafka.ssl_ca_file"]
        case "system CAs":
            return secured.kafka("SECURE", "SASL_SSL", **_sasl()), 3, ["certificate that is not trusted"]
        case "missing CA file":
            missing = secured.ca_file.with_name("missing.pem")
            return secured.kafka("TLS", "SSL", ssl_ca_file=missing), 2, [str(missing), "No such file"]
        case "CA file without certificates":
            file = Path(__file__)
            return secured.kafka("TLS", "SSL", ssl_ca_file=file), 2, ["kafka.ssl_ca_file", str(file)]
        case "certificate without key":
            cert = {"ssl_cert_file": secured.ca_file}
            return secured.kafka("MUTUAL", "SSL", **ca, **cert), 2, ["kafka.ssl_cert_file", str(secured.ca_file)]
        case "no client certificate":
            return secured.kafka("MUTUAL", "SSL", **ca), 3, ["without a certificate", "kafka.ssl_cert_file"]
        case "stranger's client certificate":
            stranger = {"ssl_cert_file": secured.stranger_file}
            return secured.kafka("MUTUAL", "SSL", **ca, **stranger), 3, [str(secured.stranger_file), "refuses"]
        case "plaintext to TLS":
            return secured.kafka("TLS", "PLAINTEXT"), 3, ["it speaks TLS", '"SSL"']
        case "plaintext to TLS with client certificates":
            return secured.kafka("MUTUAL", "PLAINTEXT"), 3, ["it speaks TLS", '"SSL"']
        case "SASL_PLAINTEXT to SASL_SSL":
            return secured.kafka("SECURE", "SASL_PLAINTEXT", **_sasl()), 3, ["it speaks TLS", '"SASL_SSL"']
        case "plaintext to SASL":
            return secured.kafka("LOGIN", "PLAINTEXT"), 3, ["it asks for a password", '"SASL_PLAINTEXT"']
        case "TLS to SASL_SSL":
            return secured.kafka("SECURE", "SSL", **ca), 3, ["it asks for a password", '"SASL_SSL"']
        case "TLS to plaintext":
            address = {"bootstrap": secured.broker.bootstrap, "security_protocol": "SSL"}
            return address, 3, ["it speaks no TLS", '"PLAINTEXT"']
        case "SASL to TLS":
            return secured.kafka("TLS", "SASL_SSL", **ca, **_sasl()), 3, ["it asks for no password", '"SSL"']
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case",
    [
        "wrong password",
        "wrong SCRAM password",
        "mechanism",
        "unknown CA",
        "system CAs",
        "missing CA file",
        "CA file without certificates",
        "certificate without key",
        "no client certificate",
        "stranger's client certificate",
        "plaintext to TLS",
        "plaintext to TLS with client certificates",
        "SASL_PLAINTEXT to SASL_SSL",
        "plaintext to SASL",
        "TLS to SASL_SSL",
        "TLS to plaintext",
        "SASL to TLS",
    ],
)
def test_what_cannot_get_in_is_told_why_at_once(secured: Secured, tmp_path: Path, case: str) -> None:
    """One message that names address and setting, the exit code of who has to act, long before the wait is over."""
    kafka, code, said = _refused(secured, case)
    done, seconds = _run("run", _configuration(tmp_path, kafka), "--until-caught-up")
    assert done.returncode == code, done.stderr
    assert seconds < REFUSAL_SECONDS_MAX
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for text in said:
        assert text in done.stderr
    if code == 3:
        assert str(kafka["bootstrap"]) in lines[0]


def test_verbose_output_of_a_refused_client_has_no_secret_either(secured: Secured, tmp_path: Path) -> None:
    """With --verbose the client library speaks too; `_run` looks for the passwords in what it says."""
    for mechanism in ("PLAIN", "SCRAM-SHA-512"):
        login = secured.kafka("LOGIN", "SASL_PLAINTEXT", **_sasl(mechanism, WRONG))
        file = _configuration(tmp_path, login)
        for format_options in ((), ("--json",)):
            done, _ = _run("run", file, "--until-caught-up", "--verbose", *format_options)
            assert done.returncode == 3, done.stderr
            assert USER in done.stderr


def test_a_faulty_configuration_shows_no_password(tmp_path: Path) -> None:
    """Neither a password of the wrong type nor faults beside a right one bring it to light."""
    for kafka in (
        {"sasl_password": PASSWORD, "security_protocol": "TLS", "sasl_user": USER},
        {"sasl_password": [PASSWORD]},
        {"sasl_password": {"value": PASSWORD}},
        {"sasl_pasword": PASSWORD},
    ):
        done, _ = _run("check", _configuration(tmp_path, kafka))
        assert done.returncode == 2
        assert "headrace.toml" in done.stderr


def test_produce_reaches_a_secured_cluster_by_a_configuration(secured: Secured, tmp_path: Path) -> None:
    """`headrace produce --config` takes the [kafka] table, password from the environment included."""
    login = secured.kafka("SECURE", "SASL_SSL", ssl_ca_file=secured.ca_file, sasl_username=USER)
    file = _configuration(tmp_path, {**login, "sasl_mechanism": "SCRAM-SHA-512"})
    events = tmp_path / "events.ndjson"
    events.write_text('{"id": 1}\n{"id": 2}\n')
    arguments = ("produce", f"made-{tmp_path.name[:80]}", events, "--json")
    done, _ = _run(*arguments, "--config", file, HEADRACE_SASL_PASSWORD=PASSWORD)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["events"] == 2
    refused, seconds = _run(*arguments, "--config", file, HEADRACE_SASL_PASSWORD=WRONG)
    assert (refused.returncode, seconds < REFUSAL_SECONDS_MAX) == (3, True)
    assert f"refuses user {USER!r}" in refused.stderr
    plaintext, seconds = _run(*arguments, "--bootstrap", secured.broker.address("TLS"))
    assert (plaintext.returncode, seconds < REFUSAL_SECONDS_MAX) == (3, True)
    assert "it speaks TLS" in plaintext.stderr


async def test_asking_why_leaves_nothing_open_and_does_not_blame_a_broker_that_is_away(secured: Secured) -> None:
    """Refusals are found in this process too, where an unclosed connection is an error; silence is none."""
    for case in ("mechanism", "unknown CA", "no client certificate", "plaintext to TLS", "plaintext to SASL"):
        settings = KafkaSettings(**_refused(secured, case)[0])
        host, _, port = settings.bootstrap.rpartition(":")
        assert await refusal(settings, [(host, int(port))]) is not None, case
        gc.collect()
    [closed] = free_ports(1)
    for protocol in ("PLAINTEXT", "SSL"):
        settings = KafkaSettings(bootstrap=f"127.0.0.1:{closed}", security_protocol=protocol)
        assert await refusal(settings, [("127.0.0.1", closed)]) is None


def test_an_encrypted_key_is_refused_without_asking_for_its_password(tmp_path: Path) -> None:
    """OpenSSL would ask on the terminal, and a service would wait there for ever."""
    certificate = trustme.CA().issue_cert("ann@example.org")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"pass phrase")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(str(cert_file))
    key_file.write_bytes(pem)
    settings = KafkaSettings(
        bootstrap="127.0.0.1:9092", security_protocol="SSL", ssl_cert_file=cert_file, ssl_key_file=key_file
    )
    with pytest.raises(UserError, match="not encrypted") as raised:
        settings.client_arguments()
    assert str(key_file) in raised.value.message
