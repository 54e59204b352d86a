"""The schema registry's client: what it asks, what it keeps, what it believes, and what it never shows."""

from __future__ import annotations

import base64
import logging
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from connectors.registry import Registry, client
from engine.compose.shared import schema_registry
from engine.config import RegistryConfig
from engine.config_file import parse, resolved
from engine.errors import ConfigError, RegistryUnavailable, UserError
from engine.values.wire import Registered, UnusableSchema
from tests.unit.registry_server import Answer, FakeRegistry, error, registry_server

SECRET = "s3cret-word"


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    with registry_server() as running:
        yield running


def paths(server: FakeRegistry) -> list[str]:
    return [path for path, _ in server.requests]


def test_a_schema_is_asked_for_once(server: FakeRegistry) -> None:
    """By many threads too; Avro is what an answer without a type means."""
    server.add(7, '"string"')
    registry = Registry(server.url)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(registry.schema, [7] * 50))
    assert found == [Registered(7, "AVRO", '"string"')] * 50
    assert paths(server) == ["/schemas/ids/7"]


def test_references_come_before_what_refers_to_them(server: FakeRegistry) -> None:
    """Each once, whoever refers to it; subjects are quoted."""
    server.add(1, "main", "PROTOBUF", [("b.proto", "b", 2), ("c.proto", "c", 1)])
    server.add_version("b", 2, "b-text", "PROTOBUF", [("c.proto", "c", 1), ("d.proto", "d/e f", 3)])
    server.add_version("c", 1, "c-text", "PROTOBUF")
    server.answers["/subjects/d%2Fe%20f/versions/3"] = Answer(b'{"schema": "d-text"}')
    found = Registry(server.url).schema(1)
    assert found is not None
    assert found.kind == "PROTOBUF"
    assert [(each.name, each.text) for each in found.references] == [
        ("c.proto", "c-text"),
        ("d.proto", "d-text"),
        ("b.proto", "b-text"),
    ]
    assert len(paths(server)) == 4


def test_a_reference_that_is_missing_or_turns_in_a_circle_makes_the_schema_unusable(server: FakeRegistry) -> None:
    """It is a fault of the schema's records, and not asked for again."""
    server.add(1, "main", None, [("x", "gone", 1)])
    server.add(2, "main", None, [("x", "x", 1)])
    server.add_version("x", 1, "x", None, [("x", "x", 1)])
    registry = Registry(server.url)
    for _ in range(2):
        with pytest.raises(UnusableSchema, match="version 1 of 'gone', which the registry lacks"):
            registry.schema(1)
        with pytest.raises(UnusableSchema, match="'x' refers to itself"):
            registry.schema(2)
    assert len(paths(server)) == 4


def test_an_unknown_id_is_asked_for_twice_and_then_left_alone_for_a_while(
    server: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower may lag behind; many ids that are none must not cost a wait each; later it may be there."""
    monkeypatch.setattr(client, "UNKNOWN_AGAIN_SECONDS", 0.01)
    registry = Registry(server.url)
    assert [registry.schema(1), registry.schema(1), registry.schema(2), registry.schema(2)] == [None] * 4
    assert paths(server) == ["/schemas/ids/1", "/schemas/ids/1", "/schemas/ids/2"]
    server.add(1, '"string"')
    assert registry.schema(1) is None
    monkeypatch.setattr(client, "UNKNOWN_SECONDS", 0.0)
    assert registry.schema(1) is not None


def test_what_is_kept_is_bounded(server: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten, and asked for again."""
    monkeypatch.setattr(client, "SCHEMAS_MAX", 2)
    for number in (1, 2, 3):
        server.add(number, '"string"')
    registry = Registry(server.url)
    for number in (1, 2, 3, 3, 2, 1):
        assert registry.schema(number) is not None
    assert paths(server) == [f"/schemas/ids/{number}" for number in (1, 2, 3, 1)]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"oops", 500),
        Answer(b"oops", 503),
        Answer(b"<html>", 404),
        Answer(b"{}", 404),
        error(40401),
        Answer(b"<html>", 200),
        Answer(b"[]", 200),
        Answer(b'{"schema": 5}', 200),
        Answer(b'{"schema": "x", "references": [{"name": "x"}]}', 200),
        Answer(b"x" * 100, 200, {"Content-Length": "200"}),
    ],
)
def test_an_answer_of_no_use_is_the_registrys_trouble(server: FakeRegistry, answer: Answer) -> None:
    """It says nothing about records: to be tried again, and the next answer counts."""
    server.answers["/schemas/ids/1"] = answer
    registry = Registry(server.url)
    with pytest.raises(RegistryUnavailable, match=r"the schema registry at http://127\.0\.0\.1") as caught:
        registry.schema(1)
    assert caught.value.retry
    server.add(1, '"string"')
    assert registry.schema(1) is not None


def test_a_registry_that_is_not_there() -> None:
    """Nobody listens."""
    with registry_server() as server:
        url = server.url
    with pytest.raises(RegistryUnavailable, match="cannot be reached: ConnectionRefusedError"):
        Registry(url).schema(1)


def test_a_registry_that_hangs_is_given_up(server: FakeRegistry) -> None:
    """Within the timeout; others may ask afterwards."""
    hanging = threading.Event()
    server.answers["/schemas/ids/1"] = Answer(hangs=hanging)
    registry = Registry(server.url, timeout_seconds=0.2)
    try:
        with pytest.raises(RegistryUnavailable, match=r"gave no answer in 0\.2 s"):
            registry.schema(1)
        server.add(2, '"string"')
        assert registry.schema(2) is not None
    finally:
        hanging.set()


def test_an_answer_is_bounded(server: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is longer is not read to its end."""
    monkeypatch.setattr(client, "RESPONSE_BYTES_MAX", 1_000)
    server.add(1, "x" * 1_000)
    with pytest.raises(RegistryUnavailable, match="answers with more than 1,000 bytes"):
        Registry(server.url).schema(1)


def test_redirects_stay_where_they_are(server: FakeRegistry) -> None:
    """Followed on the same scheme, host and port; credentials go nowhere else."""
    server.add(1, '"string"')
    server.answers["/schemas/ids/2"] = Answer(status=307, headers={"Location": "/schemas/ids/1"})
    server.answers["/schemas/ids/3"] = Answer(status=302, headers={"Location": "/schemas/ids/3"})
    registry = Registry(server.url, username="me", password=SECRET)
    found = registry.schema(2)
    assert found is not None
    assert found.text == '"string"'
    with pytest.raises(RegistryUnavailable, match="redirects more than 3 times"):
        registry.schema(3)
    with registry_server() as other:
        for place in (other.url, other.url.replace("http:", "https:"), "//127.0.0.2"):
            server.answers["/schemas/ids/4"] = Answer(status=307, headers={"Location": f"{place}/schemas/ids/1"})
            with pytest.raises(RegistryUnavailable, match="which is not followed"):
                registry.schema(4)
        assert other.requests == []


def test_credentials_are_sent_and_never_shown(server: FakeRegistry) -> None:
    """Basic authentication; what is refused is the user's to mend."""
    registry = Registry(f"{server.url}/", username="me", password=SECRET)
    server.add(1, '"string"')
    assert registry.schema(1) is not None
    token = server.requests[0][1]["authorization"].removeprefix("Basic ")
    assert base64.b64decode(token).decode() == f"me:{SECRET}"
    for status in (401, 403):
        server.answers["/schemas/ids/2"] = Answer(SECRET.encode(), status)
        with pytest.raises(UserError, match=f"refuses access \\(HTTP {status}\\)") as caught:
            registry.schema(2)
        assert not caught.value.retry
        assert SECRET not in str(caught.value)


def test_credentials_do_not_cross_a_network_in_the_clear(caplog: pytest.LogCaptureFixture) -> None:
    """Refused for http to another machine, unless told otherwise, and then said; loopback and https have them."""
    for url in ("http://127.0.0.1:8081", "http://[::1]:8081", "http://localhost:8081", "https://registry.example"):
        Registry(url, username="me", password=SECRET)
    Registry("http://registry.example:8081")
    with pytest.raises(ConfigError, match=r"the password would go to registry\.example in the clear") as caught:
        Registry("http://registry.example:8081", username="me", password=SECRET)
    assert SECRET not in str(caught.value)
    with caplog.at_level(logging.WARNING):
        Registry("http://registry.example:8081", username="me", password=SECRET, allow_plaintext_credentials=True)
    assert "goes to registry.example in the clear" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "registry:8081",
        "ftp://registry",
        "http://",
        "http://host:port",
        f"http://me:{SECRET}@host",
        f"http://{SECRET}@host",
        "http://host?x=1",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """And not shown, for it may hold a password."""
    with pytest.raises(ConfigError, match="url: ") as caught:
        Registry(url)
    assert SECRET not in str(caught.value)


def test_https_is_checked(tmp_path: Path) -> None:
    """Against the given authority; another's certificate is not taken."""
    authority, other = trustme.CA(), trustme.CA()
    for name, each in (("ca.pem", authority), ("other.pem", other)):
        each.cert_pem.write_to_path(tmp_path / name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with registry_server(context) as server:
        server.add(1, '"string"')
        assert Registry(server.url, ca_file=tmp_path / "ca.pem").schema(1) is not None
        for stranger in (tmp_path / "other.pem", None):
            with pytest.raises(RegistryUnavailable, match="cannot be trusted"):
                Registry(server.url, ca_file=stranger).schema(1)
    with pytest.raises(ConfigError, match=r"gone\.pem"):
        Registry(server.url, ca_file=tmp_path / "gone.pem")


PIPELINE = {"source": {"topic": "t"}, "schema": {"format": "avro"}, "sink": {"type": "parquet", "path": "out"}}


def test_the_table_and_the_variable_make_a_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The password may come from the environment; files are relative to the configuration's."""
    monkeypatch.setenv("HEADRACE_REGISTRY_PASSWORD", SECRET)
    with pytest.raises(ConfigError, match="in the clear"):
        schema_registry(RegistryConfig(url="http://registry.example", username="me"))
    schema_registry(RegistryConfig(url="http://registry.example"))
    monkeypatch.delenv("HEADRACE_REGISTRY_PASSWORD")
    with pytest.raises(ConfigError, match="username and password go together"):
        schema_registry(RegistryConfig(url="http://127.0.0.1", username="me"))
    document = {
        "registry": {"url": "https://r", "ca_file": "ca.pem", "password": SECRET},
        "pipelines": {"p": PIPELINE},
    }
    config = parse(document, directory=tmp_path)
    assert config.registry.ca_file == tmp_path / "ca.pem"
    assert SECRET not in repr(resolved(config))
    assert SECRET not in repr(config)


def test_faults_of_the_table_show_no_secret() -> None:
    """Not even a password that is no text; and a format that needs the table says so."""
    with pytest.raises(ConfigError, match=r"registry\.password: must be text") as caught:
        parse({"registry": {"url": "https://r", "password": 1234567}, "pipelines": {"p": PIPELINE}})
    assert "1234567" not in str(caught.value)
    with pytest.raises(ConfigError, match=r'pipelines\.p\.schema\.format = "avro" needs registry\.url'):
        parse({"pipelines": {"p": PIPELINE}})
    with pytest.raises(ConfigError, match="prefix goes with format"):
        parse(
            {
                "registry": {"url": "https://r"},
                "pipelines": {"p": {**PIPELINE, "schema": {"format": "avro", "prefix": True}}},
            }
        )
