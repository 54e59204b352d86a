"""The page's server over a real socket: every route, every refusal, and an end that is bounded in time."""

from __future__ import annotations

import asyncio
import csv
import errno
import io
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import orjson
import pyarrow.parquet as pq
import pytest

from engine.config_serving import WebConfig
from engine.errors import UserError
from engine.web import events, requests, security, server
from engine.web.server import WebServer
from engine.web.static_files import charts
from tests.web_world import World

TOKEN = "a-token-of-many-letters"
OWN = {"X-Headrace": "1"}


@asynccontextmanager
async def serving(world: World, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server over ``world``; nothing is kept between two clients."""
    web = WebServer(world, WebConfig(port=0, **settings), tick_seconds=0.02, step_seconds=0.1)
    url = await web.start()
    try:
        async with httpx.AsyncClient(base_url=url, timeout=10.0, trust_env=False) as client:
            yield client
    finally:
        await web.close()


@pytest.fixture
def world() -> World:
    return World(shards=2, pipelines=2)


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(world) as found:
        yield found


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[str, World]]:
    """A server for all tests that leave its world as it is."""
    world = World(shards=2, pipelines=2)
    web = WebServer(world, WebConfig(port=0, names=("engine.intern",)), tick_seconds=0.02)
    url = asyncio.run(web.start())
    yield url, world
    asyncio.run(web.close())


@pytest.fixture
async def guest(shared: tuple[str, World]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=shared[0], timeout=10.0, trust_env=False) as client:
        yield client


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something holds that happens in the server's thread."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come about"
        await asyncio.sleep(0.01)


async def heard(response: httpx.Response, count: int) -> list[dict[str, Any]]:
    """The next events of a stream: event, id and data; comments are left out."""
    found: list[dict[str, Any]] = []
    fields: dict[str, Any] = {}
    async with asyncio.timeout(10):
        async for line in response.aiter_lines():
            if line.startswith(":"):
                continue
            if line:
                name, _, value = line.partition(": ")
                fields[name] = orjson.loads(value) if name == "data" else value
            elif fields:
                found.append(fields)
                fields = {}
                if len(found) == count:
                    return found
    raise AssertionError(f"the stream ended after {len(found)} events")


# What is answered.


async def test_the_status_is_whole_and_has_lags(client: httpx.AsyncClient, world: World) -> None:
    """Every field of the snapshot, and what is worked out from it."""
    found = (await client.get("/api/status")).json()
    moment = world.status()
    assert moment is not None
    pipeline = moment.pipelines[0]
    assert [each["name"] for each in found["pipelines"]] == world.names
    assert found["started_at"] == moment.started_at
    shown = found["pipelines"][0]
    assert shown["offset_lag"] == sum(shard["offset_lag"] for shard in shown["shards"]) > 0
    assert shown["iterator_age_seconds"] == max(shard["iterator_age_seconds"] for shard in shown["shards"])
    assert set(shown["shards"][0]) >= {"partition", "position", "end", "counts", "error"}
    assert shown["function"]["duration"]["bounds"] == list(pipeline.function.duration.bounds)


async def test_nothing_is_known_before_the_first_moment(client: httpx.AsyncClient, world: World) -> None:
    """An engine that starts is neither healthy nor broken."""
    world.no_status = True
    for path in ("/api/status", "/metrics", "/healthz"):
        response = await client.get(path)
        assert (response.status_code, response.json()["error"]) == (503, "the engine is starting")
    assert (await client.get("/api/history")).json()["moments"] == {}


async def test_the_history_is_kept_though_nobody_looks(world: World) -> None:
    """A moment for each step, made from the statuses."""
    world.fixed_at = time.time()
    async with serving(world) as client:
        moments: list[dict[str, Any]] = []
        deadline = time.monotonic() + 5
        while len(moments) < 2 and time.monotonic() < deadline:
            world.fixed_at += 1.0
            moments = (await client.get("/api/history")).json()["moments"].get("clicks", [])
            await asyncio.sleep(0.02)
        assert moments[0]["records_per_second"] > 0


async def test_failed_records_show_their_bytes(client: httpx.AsyncClient, world: World) -> None:
    """Text where it is UTF-8, base64 where it is not, null where there is none; cut, with the whole length."""
    world.fail(value=b"\xff\x00")
    world.fail("orders", value="ü".encode() * 10_000)
    newest, older = (await client.get("/api/failures")).json()
    assert older["value"] == {"text": None, "base64": "/wA=", "bytes": 2, "truncated": False}
    assert newest["value"]["bytes"] == 20_000
    assert newest["value"]["text"] == "ü" * 8_192
    assert newest["value"]["truncated"]
    assert newest["headers"][2] == {"key": "nothing", "value": None}
    assert (older["replayable"], newest["replayable"]) == (True, False)
    assert "on_failure" in newest["replay_refusal"]
    of_one = (await client.get("/api/failures", params={"pipeline": "orders", "limit": 1})).json()
    assert [each["sequence"] for each in of_one] == [2]


async def test_a_record_is_replayed_once(client: httpx.AsyncClient, world: World) -> None:
    """A second time says that it was sent before; a pipeline without a destination says what to set."""
    body = {"pipeline": "clicks", "partition": 0, "offset": 7}
    first = await client.post("/api/failures/replay", json=body, headers=OWN)
    second = await client.post("/api/failures/replay", json=body, headers=OWN)
    assert first.json() == {"sent": True, "before": False, "topic": "clicks.retry"}
    assert second.json() == {"sent": False, "before": True, "topic": "clicks.retry"}
    refused = await client.post("/api/failures/replay", json={**body, "pipeline": "orders"}, headers=OWN)
    assert refused.status_code == 400
    assert "source.destination_config.on_failure" in refused.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        {"partition": 0, "offset": 0},
        {"pipeline": "clicks", "partition": "0", "offset": 0},
        {"pipeline": "clicks", "partition": True, "offset": 0},
        {"pipeline": "clicks", "partition": 0, "offset": -1},
        {"pipeline": "clicks", "partition": 0, "offset": 2**63},
        {"pipeline": "c" * 2_000, "partition": 0, "offset": 1},
        ["clicks"],
    ],
)
async def test_a_replay_is_checked(guest: httpx.AsyncClient, shared: tuple[str, World], body: object) -> None:
    """Types, signs and sizes, before the engine hears of it."""
    response = await guest.post("/api/failures/replay", json=body, headers=OWN)
    assert response.status_code == 400
    assert set(response.json()) == {"error", "hint"}
    assert shared[1].replayed == set()


async def test_lines_are_found(client: httpx.AsyncClient, world: World) -> None:
    """By pipeline and by what they say, whatever its case; newest first, as many as wanted."""
    world.say("Hello ONE")
    world.say("hello two", function="orders")
    world.say("other")
    found = (await client.get("/api/logs", params={"search": "HELLO"})).json()
    assert [line["text"] for line in found] == ["hello two", "Hello ONE"]
    found = (await client.get("/api/logs", params={"pipeline": "clicks", "limit": 1})).json()
    assert [(line["text"], line["pipeline"], line["origin"]) for line in found] == [("other", "clicks", "function")]


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1e3", "1" * 30])
async def test_a_limit_is_a_number(guest: httpx.AsyncClient, limit: str) -> None:
    """From 1 on."""
    assert (await guest.get("/api/logs", params={"limit": limit})).status_code == 400
    assert (await guest.get("/api/failures", params={"limit": limit})).status_code == 400


async def test_metrics_and_health(client: httpx.AsyncClient, world: World) -> None:
    """As the metrics' own modules make them; a shard that stands still turns health red."""
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'pipeline="clicks"' in response.text
    assert (await client.get("/healthz")).status_code == 200
    world.stalled, world.kept = True, None
    world.started_at -= 10_000
    response = await client.get("/healthz")
    assert response.status_code == 503
    assert response.json()["reasons"][0]["kind"] == "shard_stalled"


# SQL.


def question(sql: str, **more: object) -> dict[str, object]:
    return {"target": "warehouse.duckdb", "sql": sql, "id": str(uuid.uuid4()), **more}


async def test_an_answer_is_text_and_names_its_types(guest: httpx.AsyncClient) -> None:
    """At most a thousand rows, and it says that there are more."""
    found = (await guest.post("/api/sql", json=question("FROM clicks ORDER BY _offset"), headers=OWN)).json()
    assert found["columns"][0] == {"name": "_offset", "type": "BIGINT"}
    assert found["rows"][0][:2] == ["0", "page-0"]
    assert found["rows"][0][-1] is None
    assert (len(found["rows"]), found["truncated"]) == (1_000, True)
    assert [each["name"] for each in (await guest.get("/api/sql/targets")).json()][:2] == [
        "warehouse.duckdb",
        "audit",
    ]


async def test_long_cells_are_cut(guest: httpx.AsyncClient) -> None:
    """And counted."""
    found = (await guest.post("/api/sql", json=question("SELECT repeat('x', 20000)"), headers=OWN)).json()
    assert (len(found["rows"][0][0]), found["cut"]) == (10_001, 1)


async def test_exports_are_equal_and_whole(guest: httpx.AsyncClient) -> None:
    """CSV and Parquet have the same rows, all of them."""
    asked = question("SELECT _offset, page FROM clicks ORDER BY _offset")
    as_csv = await guest.post("/api/sql/export", json={**asked, "format": "csv"}, headers=OWN)
    as_parquet = await guest.post("/api/sql/export", json={**asked, "format": "parquet"}, headers=OWN)
    assert as_csv.headers["content-disposition"] == 'attachment; filename="result.csv"'
    lines = list(csv.DictReader(io.StringIO(as_csv.text)))
    table = pq.read_table(io.BytesIO(as_parquet.content))
    assert [(int(line["_offset"]), line["page"]) for line in lines] == [
        (row["_offset"], row["page"]) for row in table.to_pylist()
    ]
    assert len(lines) == 2_500 == int(as_csv.headers["x-headrace-rows"])


@pytest.mark.parametrize(
    "change",
    [{"id": "one"}, {"id": None}, {"sql": ""}, {"sql": "x" * 100_001}, {"target": 1}, {"target": "nowhere"}],
)
async def test_a_question_is_checked(guest: httpx.AsyncClient, change: dict[str, object]) -> None:
    """Each part of it."""
    response = await guest.post("/api/sql", json={**question("SELECT 1"), **change}, headers=OWN)
    assert response.status_code == 400
    assert (await guest.post("/api/sql/export", json=question("SELECT 1", format="xlsx"), headers=OWN)).is_error


async def test_a_query_is_cancelled_by_its_id(client: httpx.AsyncClient, world: World) -> None:
    """The one that asked hears of it at once."""
    asked = question("SELECT sleep(30)")
    asking = asyncio.create_task(client.post("/api/sql", json=asked, headers=OWN))
    await until(lambda: asked["id"] in world.queries)
    found = await client.post(f"/api/sql/{asked['id']}/cancel", headers=OWN)
    assert found.json() == {"cancelled": True}
    response = await asking
    assert (response.status_code, response.json()["error"]) == (409, "the query was cancelled")
    again = await client.post(f"/api/sql/{asked['id']}/cancel", headers=OWN)
    assert again.json() == {"cancelled": False}


@pytest.mark.parametrize("path", ["/api/sql", "/api/sql/export"])
async def test_a_query_ends_with_its_page(client: httpx.AsyncClient, world: World, path: str) -> None:
    """Whoever closes the page ends what it has asked."""
    asked = question("SELECT sleep(30)", format="csv")
    asking = asyncio.create_task(client.post(path, json=asked, headers=OWN))
    await until(lambda: asked["id"] in world.queries)
    asking.cancel()
    await until(lambda: world.cancelled == [asked["id"]])


# Events.


async def test_a_page_hears_what_happens(client: httpx.AsyncClient, world: World) -> None:
    """The status first, then failed records and lines as they come."""
    async with client.stream("GET", "/api/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.aiter_lines()
        first = [await anext(lines) for _ in range(3)]
        assert first[1] == "event: status"
        started_ms = int(world.started_at * 1000)
        assert first[0].startswith(f"id: {started_ms}-0-0")
        world.fail()
        world.say("a line")
        seen: dict[str, str] = {}
        async with asyncio.timeout(5):
            while not {"failure", "log"} <= seen.keys():
                line = await anext(lines)
                if line.startswith("id: "):
                    last = line[4:]
                elif line.startswith("event: "):
                    seen[line[7:]] = last
        assert seen["failure"] == f"{started_ms}-1-0"
        assert seen["log"] == f"{started_ms}-1-1"


async def test_a_page_that_comes_back_hears_what_it_missed(client: httpx.AsyncClient, world: World) -> None:
    """By the id that its browser sends; a page of another run of the engine starts anew."""
    world.fail()
    async with client.stream("GET", "/api/events") as response:
        last = (await heard(response, 1))[0]["id"]
    world.fail()
    world.say("missed")
    async with client.stream("GET", "/api/events", headers={"Last-Event-ID": last}) as response:
        found = await heard(response, 3)
    assert [each["event"] for each in found] == ["failure", "log", "status"]
    assert found[0]["data"]["sequence"] == 2
    world.restart()
    world.fail()
    async with client.stream("GET", "/api/events", headers={"Last-Event-ID": last}) as response:
        found = await heard(response, 1)
    assert found[0]["event"] == "status"
    assert found[0]["id"] != last


async def test_a_compressed_stream_is_the_same(client: httpx.AsyncClient, world: World) -> None:
    """Frames are compressed for all clients at once, and a client may begin at any."""
    async with (
        client.stream("GET", "/api/events", headers={"Accept-Encoding": "gzip"}) as packed,
        client.stream("GET", "/api/events", headers={"Accept-Encoding": "identity"}) as plain,
    ):
        assert packed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        one, other = await heard(packed, 1), await heard(plain, 1)
    assert one[0]["data"]["pid"] == other[0]["data"]["pid"]


async def test_there_are_so_many_listeners(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused, and has room again when another has gone."""
    monkeypatch.setattr(events, "CLIENTS_MAX", 1)
    async with client.stream("GET", "/api/events") as response:
        lines = response.aiter_lines()
        await anext(lines)
        async with client.stream("GET", "/api/events") as refused:
            assert refused.status_code == 502
    async with asyncio.timeout(5):
        while True:
            async with client.stream("GET", "/api/events") as response:
                if response.status_code == 200:
                    break
            await asyncio.sleep(0.01)


async def test_a_slow_listener_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs bounded memory, and others go on."""
    monkeypatch.setattr(events, "WAITING_BYTES_MAX", 200_000)
    world = World(shards=500, pipelines=1, now=1_000_000.0)
    async with serving(world) as client:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        slow.connect(("127.0.0.1", client.base_url.port))
        slow.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with client.stream("GET", "/api/events") as response:
            lines = response.aiter_lines()
            cut = False
            deadline = time.monotonic() + 10
            while not cut and time.monotonic() < deadline:
                assert world.fixed_at is not None
                world.fixed_at += 1
                async with asyncio.timeout(5):
                    while not (await anext(lines)).startswith("event: status"):
                        pass
                cut = slow.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        slow.close()
        assert cut
    assert [each for each in caplog.records if each.levelname == "ERROR"] == []


# Refusals.


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.nip.io", "", "[::1", "10.0.0.1"],
)
async def test_a_wrong_host_is_refused(guest: httpx.AsyncClient, host: str) -> None:
    """A name that somebody else owns may point here."""
    for path in ("/", "/api/status", "/static/index.html"):
        response = await guest.get(path, headers={"Host": host})
        assert response.status_code in (400, 421)
    assert (await guest.get("/api/status", headers={"Host": host})).status_code != 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8321", "engine.intern", "engine.intern.:80"]
)
async def test_an_expected_host_is_taken(guest: httpx.AsyncClient, host: str) -> None:
    """The address, localhost, and the names of the configuration, with any port."""
    assert (await guest.get("/api/status", headers={"Host": host})).status_code == 200


POSTS = (
    "/api/failures/replay",
    "/api/sql",
    "/api/sql/export",
    "/api/sql/6460633f-6004-471f-911e-434d6aa45f23/cancel",
    "/api/login",
    "/api/logout",
)


@pytest.mark.parametrize("path", POSTS)
async def test_a_foreign_page_changes_nothing(guest: httpx.AsyncClient, path: str) -> None:
    """Neither without the header, nor from another origin."""
    assert (await guest.post(path, json={})).status_code == 403
    for origin in ("https://evil.example", "null", f"http://localhost:{guest.base_url.port}", "http://127.0.0.1"):
        response = await guest.post(path, json={}, headers={**OWN, "Origin": origin})
        assert response.status_code == 403
    own = {**OWN, "Origin": str(guest.base_url).rstrip("/")}
    assert (await guest.post(path, json={}, headers=own)).status_code != 403


async def test_a_foreign_page_reads_nothing(guest: httpx.AsyncClient) -> None:
    """Browsers say where a request comes from."""
    for site in ("cross-site", "same-site"):
        assert (await guest.get("/api/status", headers={"Sec-Fetch-Site": site})).status_code == 403
        assert (await guest.get("/", headers={"Sec-Fetch-Site": site})).status_code == 200


async def test_other_methods_are_refused(guest: httpx.AsyncClient) -> None:
    """And those of other routes."""
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
        assert (await guest.request(method, "/api/status", headers=OWN)).status_code == 405
    assert (await guest.post("/api/status", json={}, headers=OWN)).status_code == 405
    assert (await guest.get("/api/sql")).status_code == 405


async def test_bodies_are_bounded(guest: httpx.AsyncClient) -> None:
    """By what they say of themselves, and by what they are; and they are JSON."""
    large = b" " * (requests.BODY_BYTES_MAX + 1)
    json = {**OWN, "Content-Type": "application/json"}
    assert (await guest.post("/api/sql", content=large, headers=json)).status_code == 413

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b" " * 65_536

    assert (await guest.post("/api/sql", content=pieces(), headers=json)).status_code == 413
    assert (await guest.post("/api/sql", content=b"{", headers=json)).status_code == 400
    assert (await guest.post("/api/sql", content=b"[" * 100_000, headers=json)).status_code == 400
    assert (await guest.post("/api/sql", content=b"{}", headers=OWN)).status_code == 415


async def test_a_slow_body_is_left(guest: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would else keep its connection for ever."""
    monkeypatch.setattr(requests, "BODY_SECONDS_MAX", 0.1)
    head = "POST /api/sql HTTP/1.1\r\nHost: localhost\r\nX-Headrace: 1\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", guest.base_url.port)
    writer.write(f"{head}Content-Length: 10\r\n\r\n{{".encode())
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_a_connection_without_a_request_is_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while."""
    monkeypatch.setattr(server, "HEAD_SECONDS_MAX", 0.1)
    async with serving(world) as client, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        writer.write(b"GET /api/status HTTP/1.1\r\nHost: loc")
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def test_a_connection_with_half_a_second_request_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slowly more of it comes, and whether it came behind the first one or later."""
    monkeypatch.setattr(server, "HEAD_SECONDS_MAX", 0.3)
    whole, half = b"GET /api/logs HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HTTP/1.1\r\n"
    async with serving(world) as client, asyncio.timeout(10):
        for first, second in ((whole, half), (whole + half, b"X: y\r\n")):
            reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            writer.write(first)
            assert (await reader.readuntil(b"[]")).startswith(b"HTTP/1.1 200 ")
            writer.write(second)
            with suppress(ConnectionError):
                while not reader.at_eof():
                    writer.write(b"X: y\r\n")
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.05):
                            assert await reader.read(100) == b""
            writer.close()
        slow = await client.get("/api/logs")
        await asyncio.sleep(0.5)
        assert (await client.get("/api/logs")).content == slow.content  # one that is idle stays


async def test_who_takes_nothing_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an answer that was handed over whole, and whose connection would only wait for its client."""
    monkeypatch.setattr(server, "TAKE_SECONDS_MAX", 0.3)
    async with serving(world) as client:
        with socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            silent.connect(("127.0.0.1", client.base_url.port))
            silent.sendall(b"GET /static/plotly.min.js HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

            def is_left() -> bool:
                return silent.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET

            await until(is_left, 10.0)


async def test_the_head_of_events_has_an_end(guest: httpx.AsyncClient) -> None:
    """It has no events to wait for."""
    response = await guest.head("/api/events")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e%2f%2e%2e%2fstatus.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/..%5cserver.py",
        "/static/.hidden.js",
        "/static/index.html%00.js",
        "/static/",
        "/static/" + "a" * 5_000 + ".js",
        "/server.py",
    ],
)
async def test_no_other_file_is_read(guest: httpx.AsyncClient, path: str) -> None:
    """Whatever way it is asked for."""
    reader, writer = await asyncio.open_connection("127.0.0.1", guest.base_url.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"import" not in answer


async def test_every_answer_is_strict(guest: httpx.AsyncClient) -> None:
    """Pages, data, refusals: all with the headers that keep a browser safe; data is kept nowhere."""
    for path in ("/", "/static/index.html", "/api/status", "/api/nothing", "/metrics", "/healthz"):
        headers = (await guest.get(path)).headers
        assert "script-src 'self';" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
        if not path.startswith("/static") and path != "/":
            assert headers["cache-control"] == "no-store"
    assert "unsafe-eval" not in security.POLICY


async def test_a_fault_tells_nothing(
    client: httpx.AsyncClient, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in the log; the answer has neither a trace nor what it was about."""

    def broken(*_: object) -> None:
        raise RuntimeError("secret-in-a-message")

    world.logs = broken  # type: ignore[method-assign, assignment]
    response = await client.get("/api/logs")
    assert response.status_code == 500
    assert response.json() == {"error": "headrace has failed to answer", "hint": "the log says more"}
    await until(lambda: "secret-in-a-message" in caplog.text)


# The token.


async def test_a_token_is_needed_everywhere_but_for_the_page_itself(world: World) -> None:
    """With it as a bearer all routes answer."""
    paths = (
        "/api/status",
        "/api/history",
        "/api/events",
        "/api/failures",
        "/api/logs",
        "/api/sql/targets",
        "/metrics",
        "/healthz",
        "/api/nothing",
    )
    async with serving(world, token=TOKEN) as client:
        for path in paths:
            response = await client.get(path)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert (await client.get(path, params={"token": TOKEN})).status_code == 401
        for path in POSTS[:4]:
            assert (await client.post(path, json={}, headers=OWN)).status_code == 401
        assert (await client.get("/")).status_code == 200
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        for path in (*paths[:2], *paths[3:8]):
            assert (await client.get(path, headers=bearer)).status_code == 200
        assert (await client.get("/api/status", headers={"Authorization": f"Basic {TOKEN}"})).status_code == 401


async def test_a_login_gives_a_session(world: World) -> None:
    """A cookie that scripts cannot read and that says nothing of the token; logging out ends it."""
    async with serving(world, token=TOKEN) as client:
        response = await client.post("/api/login", json={"token": TOKEN}, headers=OWN)
        cookie = response.headers["set-cookie"]
        assert "httponly" in cookie.lower()
        assert "samesite=strict" in cookie.lower()
        assert TOKEN not in cookie
        assert (await client.get("/api/status")).status_code == 200
        kept = dict(client.cookies)
        await client.post("/api/logout", headers=OWN)
        client.cookies.update(kept)
        assert (await client.get("/api/status")).status_code == 401


async def test_no_token_needs_no_login(guest: httpx.AsyncClient) -> None:
    """The login answers all the same, and gives nothing."""
    response = await guest.post("/api/login", json={"token": "whatever"}, headers=OWN)
    assert (response.status_code, "set-cookie" in response.headers) == (200, False)


async def test_wrong_tokens_are_slow_and_then_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many from one address; sessions that there are go on."""
    monkeypatch.setattr(security, "WRONG_MAX", 3)
    monkeypatch.setattr(security, "WRONG_DELAY_SECONDS", 0.05)
    async with serving(world, token=TOKEN) as client:
        await client.post("/api/login", json={"token": TOKEN}, headers=OWN)
        async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as stranger:
            began = time.monotonic()
            for _ in range(2):
                response = await stranger.post("/api/login", json={"token": "wrong"}, headers=OWN)
                assert response.status_code == 401
            assert (await stranger.get("/api/status", headers={"Authorization": "Bearer x"})).status_code == 401
            assert time.monotonic() - began >= 0.15
            response = await stranger.post("/api/login", json={"token": TOKEN}, headers=OWN)
            assert (response.status_code, response.headers["retry-after"]) == (429, "60")
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            assert (await stranger.get("/api/status", headers=bearer)).status_code == 429
        assert (await client.get("/api/status")).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "engine.example"])
def test_others_need_a_token(world: World, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one it is not even tried; the message says what to set, and no token is short."""
    monkeypatch.delenv(security.TOKEN_VARIABLE, raising=False)
    with pytest.raises(UserError, match="no token") as caught:
        WebServer(world, WebConfig(host=host))
    assert security.TOKEN_VARIABLE in str(caught.value)
    monkeypatch.setenv(security.TOKEN_VARIABLE, "short-secret")
    with pytest.raises(UserError, match="too short") as caught:
        WebServer(world, WebConfig(host=host))
    assert "short-secret" not in str(caught.value)
    monkeypatch.setenv(security.TOKEN_VARIABLE, TOKEN)
    assert WebServer(world, WebConfig(host=host)).token == TOKEN


# Static files.


async def test_the_charts_come_packed(guest: httpx.AsyncClient) -> None:
    """The library is a quarter when packed, is kept by the browser, and is not sent twice."""
    path = charts()
    assert path is not None
    response = await guest.get("/static/plotly.min.js", headers={"Accept-Encoding": "gzip"})
    assert response.content == path.read_bytes()
    assert response.headers["content-encoding"] == "gzip"
    assert int(response.headers["content-length"]) < len(response.content) / 2
    assert "max-age" in response.headers["cache-control"]
    again = await guest.get("/static/plotly.min.js", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_a_plain_guest_gets_plain_files(guest: httpx.AsyncClient) -> None:
    """Types are named, since browsers may not guess."""
    response = await guest.get("/static/index.html", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in response.headers
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert (await guest.get("/")).text == response.text


# Starting and ending.


async def test_a_taken_port_gives_the_next(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is said, and the URL that is told is the one that answers; no token is in any log."""
    caplog.set_level("INFO")
    first = WebServer(world, WebConfig(port=0))
    port = int((await first.start()).rpartition(":")[2])
    second = WebServer(world, WebConfig(port=port, token=TOKEN))
    try:
        url = await second.start()
        assert url != first.url
        assert f"port {port} is taken" in caplog.text
        assert url in caplog.text
        assert TOKEN not in caplog.text
    finally:
        await first.close()
        await second.close()


async def test_an_address_of_another_machine_is_refused(world: World) -> None:
    """With what to do about it."""
    with pytest.raises(UserError, match=r"web\.host = '192\.0\.2\.1'"):
        await WebServer(world, WebConfig(host="192.0.2.1", token=TOKEN)).start()


async def test_closing_does_not_wait_for_anybody(world: World) -> None:
    """Streams, queries and connections that say nothing end within a bound; the port is free again."""
    web = WebServer(world, WebConfig(port=0), tick_seconds=0.02)
    url = await web.start()
    port = int(url.rpartition(":")[2])
    _, silent = await asyncio.open_connection("127.0.0.1", port)
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        asking = asyncio.create_task(
            client.post("/api/sql", json=question("SELECT sleep(60)"), headers=OWN, timeout=30)
        )
        await until(lambda: bool(world.queries))
        async with client.stream("GET", "/api/events") as response:
            lines = response.aiter_lines()
            await anext(lines)
            began = time.monotonic()
            await web.close()
            assert time.monotonic() - began < server.CLOSE_SECONDS_MAX
            with pytest.raises(httpx.TransportError):
                _ = [line async for line in lines]
        await asyncio.gather(asking, return_exceptions=True)
    silent.close()
    assert world.closed
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
    await web.close()
