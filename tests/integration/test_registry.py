"""`headrace run` on Avro and Protobuf topics, with a real schema registry and with one that answers the same."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from engine.values.protobuf import ProtobufReader
from engine.values.wire import Reference, Registered
from tests.conftest import TopicFactory
from tests.integration.registries import TestRegistry, Unavailable, apicurio, dictionary
from tests.integration.support import POLL_SECONDS, SECONDS_MAX, SINKS, Project, pipeline
from tests.unit.registry_server import Answer, registry_server

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture(scope="module", params=["apicurio", "dictionary"])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestRegistry]:
    if request.param == "dictionary":
        with dictionary() as made:
            yield made
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    try:
        with apicurio(tmp_path_factory.mktemp("apicurio"), port) as real:
            yield real
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def project(tmp_path: Path, broker: Any) -> Project:
    return Project(tmp_path, broker.bootstrap)


def configure(project: Project, url: str, name: str, topic: str, sink: str, **schema: Any) -> None:
    made = pipeline(topic, sink, schema=schema, on_failure="failed.jsonl")
    path = project.configure({name: made})
    path.write_text(path.read_text() + f'\n[registry]\nurl = "{url}"\ntimeout_seconds = 5\n')


def framed(number: int, octets: bytes) -> bytes:
    return b"\0" + number.to_bytes(4, "big") + octets


def avro(number: int, schema: Any, value: Any) -> bytes:
    """A record as fastavro writes it."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(json.dumps(schema))), value)
    return framed(number, out.getvalue())


def user(*fields: tuple[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "User", "fields": [{"name": name, "type": kind} for name, kind in fields]}


@pytest.mark.parametrize("sink", SINKS)
async def test_avro_reaches_the_sink_and_evolves(
    registry: TestRegistry, project: Project, topic: TopicFactory, sink: str
) -> None:
    """Columns of the first schema; a later one's new field in _rest; bad records alone in the on-failure file."""
    source = await topic(name="users")
    first = user(
        ("id", "long"),
        ("name", ["null", "string"]),
        ("at", {"type": "long", "logicalType": "timestamp-millis"}),
        ("price", {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}),
        ("tags", {"type": "array", "items": "string"}),
        ("photo", "bytes"),
        ("wakes", {"type": "int", "logicalType": "time-millis"}),
    )
    one = registry.register(f"{source}-value", json.dumps(first))
    plain = {**first, "fields": [{**each, "type": strip(each["type"])} for each in first["fields"]]}
    value = {
        "name": "n",
        "at": 1_709_208_000_123,
        "price": b"\x04\xd2",
        "tags": ["a"],
        "photo": b"\xff",
        "wakes": 1,
    }
    good = [avro(one, plain, {**value, "id": at}) for at in range(50)]
    bad = [b"no prefix", good[0][:-1], good[0] + b"\0", framed(2**31 - 1, b"\0")]
    await project.produce(source, {0: [*good[:25], *bad, *good[25:]]})
    configure(project, registry.url, "users", source, sink, format="avro")
    ended = await project.run()
    assert ended.code == 0, ended.err
    columns = 'id, name, epoch_ms("at"), price::VARCHAR, tags, photo, wakes::VARCHAR, _rest, _offset'
    row = ("n", 1_709_208_000_123, "12.34", '["a"]', b"\xff", "00:00:00.001", None)
    offsets = [*range(25), *range(29, 54)]
    assert project.rows(sink, columns) == [(at, *row, offset) for at, offset in enumerate(offsets)]
    assert [(each["offset"], each["reason"]) for each in project.failures()] == [
        (
            25,
            "the value does not start with a zero byte but with 0x6e: "
            "it was not written by a schema registry's serializer",
        ),
        (26, 'the value ends within field "wakes"'),
        (27, "the value has bytes after its last field"),
        (28, "the registry has no schema 2147483647"),
    ]

    second = user(("id", "long"), ("city", "string"))
    two = registry.register(f"{source}-2-value", json.dumps(second))
    await project.produce(source, {0: [avro(two, second, {"id": 50, "city": "Bern"})]})
    ended = await project.run()
    assert ended.code == 0, ended.err
    found = project.rows(sink, "id, name, _rest")
    assert found[-1] == (50, None, '{"city":"Bern"}')
    assert len(found) == 51


def strip(kind: Any) -> Any:
    """A type without its logical type, so that fastavro writes the numbers given."""
    return kind["type"] if isinstance(kind, dict) and "logicalType" in kind else kind


async def test_avro_references_are_followed(registry: TestRegistry, project: Project, topic: TopicFactory) -> None:
    """A type of another subject, declared columns."""
    source = await topic(name="orders")
    money = {"type": "record", "name": "Money", "namespace": "x", "fields": [{"name": "units", "type": "long"}]}
    registry.register(f"{source}-money", json.dumps(money))
    order = user(("id", "long"), ("price", "x.Money"))
    number = registry.register(f"{source}-value", json.dumps(order), "AVRO", [("x.Money", f"{source}-money", 1)])
    await project.produce(source, {0: [framed(number, b"\x0a\x0c")]})
    configure(
        project, registry.url, "orders", source, "parquet", format="avro", columns={"id": "BIGINT", "price": "JSON"}
    )
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert project.rows("parquet", "id, price, _offset") == [(5, '{"units":6}', 0)]


MONEY = 'syntax = "proto3"; package common; message Money { int64 units = 1; }'
ORDER = (
    'syntax = "proto3"; package shop; import "common/money.proto"; import "google/protobuf/timestamp.proto"; '
    "enum Kind { NEW = 0; PAID = 1; } "
    "message Order { int64 id = 1; optional string name = 2; google.protobuf.Timestamp at = 3; "
    "common.Money price = 4; Kind kind = 5; }"
)


@pytest.mark.parametrize("sink", SINKS)
async def test_protobuf_reaches_the_sink(
    registry: TestRegistry, project: Project, topic: TopicFactory, sink: str
) -> None:
    """A schema of text with a reference, and one that a client registered as a descriptor."""
    source = await topic(name="protos")
    registry.register(f"{source}-money", MONEY, "PROTOBUF")
    one = registry.register(f"{source}-value", ORDER, "PROTOBUF", [("common/money.proto", f"{source}-money", 1)])
    local = Registered(one, "PROTOBUF", ORDER, (Reference("common/money.proto", MONEY),))
    message = ProtobufReader(local, (0,)).message
    good = message(id=1, at={"seconds": 1_709_208_000}, price={"units": 5}, kind=1).SerializeToString()
    file = FileDescriptorProto(name="other.proto", package="q", syntax="proto3")
    file.message_type.add(name="A").field.add(
        name="id", number=1, type=FieldDescriptorProto.TYPE_INT64, label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    text = base64.b64encode(file.SerializeToString()).decode()
    two = registry.register(f"{source}-descriptor", text, "PROTOBUF")
    values = [framed(one, b"\0" + good), framed(one, b"\0" + good + b"\xff"), framed(two, b"\0\x08\x07")]
    await project.produce(source, {0: values})
    configure(project, registry.url, "protos", source, sink, format="protobuf")
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert project.rows(sink, 'id, name, epoch_ms("at"), price, kind, _offset') == [
        (1, None, 1_709_208_000_000, '{"units":"5"}', "PAID", 0),
        (7, None, None, None, None, 2),
    ]
    assert [each["offset"] for each in project.failures()] == [1]


async def test_a_registry_that_is_away_is_waited_for(project: Project, topic: TopicFactory) -> None:
    """No record is failed or passed meanwhile; when it is back, the rows come."""
    source = await topic(name="away")
    schema = user(("id", "long"))
    with registry_server() as server:
        server.answers["/schemas/ids/1"] = Answer(b"starting", 503)
        await project.produce(source, {0: [avro(1, schema, {"id": at}) for at in range(10)]})
        configure(project, server.url, "away", source, "parquet", format="avro")
        async with project.running() as running:
            await running.says("answers /schemas/ids/1 with HTTP 503")
            await running.says("trying again", times=2)
            assert project.rows("parquet") == []
            assert project.failures() == []
            server.add(1, json.dumps(schema))
            deadline = time.monotonic() + SECONDS_MAX
            while len(project.rows("parquet")) < 10:
                assert time.monotonic() < deadline, running.err
                await asyncio.sleep(POLL_SECONDS)
        assert project.rows("parquet", "id") == [(at,) for at in range(10)]
        assert project.failures() == []
