"""`headrace top`: what it shows of an engine's moments, how it asks for them, and how it lives in a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from engine.cli import top as command
from engine.cli.page import Page, PageUnavailable, page_of
from engine.cli.top import Moments, status_of
from engine.cli.top_lines import _PIPELINES, lines, measured
from engine.errors import UserError
from engine.protocols import Counts
from engine.status import (
    BATCH_BOUNDS,
    DURATION_BOUNDS,
    Distribution,
    EngineStatus,
    FunctionStatus,
    PipelineStatus,
    ShardStatus,
)
from engine.web import documents, runfile

TOKEN = "a-token-of-the-page"


def distribution(bounds: tuple[float, ...], **counts: int) -> Distribution:
    """``_3=7``: seven values in the class of bound number 3."""
    numbers = [0] * (len(bounds) + 1)
    for name, count in counts.items():
        numbers[int(name.removeprefix("_"))] = count
    return Distribution(bounds, tuple(numbers), 1.0)


def shard(partition: int = 0, **changes: Any) -> ShardStatus:
    return replace(
        ShardStatus(
            partition=partition,
            state="running",
            position=100,
            read=100,
            end=100,
            iterator_age_seconds=0.0,
            stalled_seconds=0.0,
            records=100,
            batches=1,
            rows=100,
            commits=1,
            counts=Counts(handled=100),
            held_bytes=0,
            undelivered=False,
            error=None,
        ),
        **changes,
    )


def pipeline(name: str, *shards: ShardStatus, **changes: Any) -> PipelineStatus:
    function = FunctionStatus(
        name="count",
        kind="kinesis",
        invocations=10,
        errors=1,
        throttles=0,
        retries=2,
        splits=0,
        billed_ms=1234,
        billed_gb_seconds=0.1,
        estimated_usd=0.0,
        duration=distribution(DURATION_BOUNDS, _3=10),
        batch_records=distribution(BATCH_BOUNDS, _2=10),
    )
    made = PipelineStatus(
        name=name,
        topic=f"topic-of-{name}",
        sink="parquet",
        target="/data",
        state="running",
        error=None,
        shards=shards,
        function=function,
        records=sum(each.records for each in shards),
        rows=0,
        commits=0,
        counts=Counts(),
        commit=distribution(DURATION_BOUNDS),
        partitions=len(shards),
    )
    return replace(made, **changes)


def engine(*pipelines: PipelineStatus, at: float = 1000.0, **changes: Any) -> dict[str, Any]:
    """The document of an engine, as the page's server writes it."""
    moment = EngineStatus(
        at=at,
        started_at=900.0,
        pid=7,
        version="1.2",
        cpu_seconds=at - 900.0,
        resident_bytes=300 * 2**20,
        budget_bytes=0,
        budget_bytes_max=2**27,
        loop_blocked_seconds_max=0.0,
        loop_blocked_count=0,
        pipelines=pipelines,
    )
    document: dict[str, Any] = json.loads(documents.encode(documents.status(replace(moment, **changes))))
    return document


def text(document: dict[str, Any], **size: int) -> str:
    return "\n".join(line.text for line in lines(document, **size))


def test_rates_and_quantiles_are_of_what_happened_between() -> None:
    """Not of the whole run: ten slow calls before do not hide that the last five are quick."""
    before = pipeline("web", shard(0, records=100), shard(1, records=0))
    function = replace(
        before.function, invocations=15, duration=distribution(DURATION_BOUNDS, _3=10, _0=5), billed_ms=2000
    )
    after = replace(pipeline("web", shard(0, records=150), shard(1, records=25)), function=function)
    found = measured(engine(before), engine(after, at=1005.0))
    (web,) = found["pipelines"]
    assert (web["records_per_second"], web["invocations_per_second"]) == (15.0, 1.0)
    assert [each["records_per_second"] for each in web["shards"]] == [10.0, 5.0]
    assert (web["duration_p50_seconds"], web["duration_p99_seconds"]) == (0.001, 0.001)
    assert found["cpu_share"] == 1.0
    shown = text(found)
    for part in ("web", "topic-of-web", "15", "≤1 ms", "≤100", "2,000", "cpu 100%", "web[1]"):
        assert part in shown


@pytest.mark.parametrize("change", [{"pid": 8}, {"started_at": 999.0}])
def test_there_are_no_rates_across_a_restart(change: dict[str, Any]) -> None:
    """Counts of two runs have nothing to do with each other."""
    found = measured(engine(pipeline("web", shard())), engine(pipeline("web", shard()), at=1001.0, **change))
    assert found["pipelines"][0]["records_per_second"] is None
    assert found["pipelines"][0]["shards"][0]["records_per_second"] is None
    assert found["pipelines"][0]["duration_p50_seconds"] == 0.01  # of all its calls


def test_a_shard_that_came_back_has_no_rate() -> None:
    """Its counts begin anew; a negative rate would be nonsense."""
    found = measured(
        engine(pipeline("web", shard(records=9))), engine(pipeline("web", shard(records=3)), at=1001.0)
    )
    assert found["pipelines"][0]["shards"][0]["records_per_second"] is None


def test_what_no_owned_shard_tells_is_unknown() -> None:
    """A pipeline that ended, or a standby, has no lag of its own: not zero."""
    names = [column.title for column in _PIPELINES]
    without: dict[str, Any] = {"shards": [], "offset_lag": 0, "iterator_age_seconds": 0.0}
    assert [_PIPELINES[names.index(each)].value(without) for each in ("lag", "late")] == ["-", "-"]


def test_the_shards_with_the_most_lag_are_shown() -> None:
    """Of a thousand those that fit, and how many more there are."""
    shards = [shard(number, end=100 + number) for number in range(1_000)]
    document = measured(engine(pipeline("web", *shards)), engine(pipeline("web", *shards), at=1001.0))
    shown = lines(document, width=120, height=24)
    assert len(shown) <= 24
    numbers = [int(found[1]) for line in shown if (found := re.match(r"web\[(\d+)\]", line.text))]
    assert len(numbers) > 10
    assert numbers == list(range(999, 999 - len(numbers), -1))
    assert shown[-1].text == f"{1_000 - len(numbers)} more shards, none with more lag"
    started = time.perf_counter()
    lines(document, width=120, height=24)
    assert time.perf_counter() - started < 0.5


def test_an_error_is_shown_in_red_and_obeyed_by_no_terminal() -> None:
    """Control characters of a record that a message quotes do nothing."""
    bad = shard(3, state="stopped", error="no \x1b[31mred\x07 value\nat all\u202e", stalled_seconds=99.0)
    document = engine(pipeline("web", bad), pipeline("etl", shard(), error="gone"))
    shown = lines(measured(document, document))
    assert [line.text for line in shown if line.style == "red"][:2] == [
        "etl: gone",
        "web[3]: no ·[31mred· value at all·",
    ]
    assert not any("\x1b" in line.text for line in shown)


@given(st.integers(1, 300), st.integers(1, 60), st.integers(0, 40))
def test_it_fits_whatever_the_terminal(width: int, height: int, count: int) -> None:
    """No line is wider, there are no more of them, and the lag is the last to go."""
    document = engine(pipeline("web", *(shard(number, end=100 + number) for number in range(count))))
    shown = lines(measured(document, document), width=width, height=height)
    assert len(shown) <= height
    assert all(len(line.text) <= width for line in shown)
    if width >= 40 and height >= 5:
        assert any("lag" in line.text for line in shown)


def test_moments_are_of_the_last_seconds_and_of_one_run() -> None:
    """However often it is asked, and whatever the engine did before."""
    moments = Moments()
    assert moments.document() is None
    for second in range(100):
        moments.add(engine(pipeline("web", shard(records=100 + second * 7)), at=1000.0 + second))
        moments.add(engine(pipeline("web", shard(records=100 + second * 7)), at=1000.0 + second))
    assert len(moments._kept) <= 7
    document = moments.document()
    assert document is not None
    assert document["pipelines"][0]["records_per_second"] == 7.0
    moments.add(engine(pipeline("web", shard(records=1)), at=2000.0, started_at=1999.0))
    document = moments.document()
    assert document is not None
    assert document["pipelines"][0]["records_per_second"] is None


class Server:
    """A page that answers /api/status by ``answer``, to those who know ``token``."""

    def __init__(self, port: int = 0, token: str | None = None) -> None:
        self.answer: Callable[[], tuple[int, bytes]] = lambda: (200, b"null")
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = token is None or self.headers["Authorization"] == f"Bearer {token}"
                status, body = server.answer() if known else (401, b"{}")
                self.send_response(status if self.path == "/api/status" else 404)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[Server]:
    server = Server(**settings)
    try:
        yield server
    finally:
        server.close()


def growing(name: str = "web", **changes: Any) -> Callable[[], tuple[int, bytes]]:
    """Answers of an engine that reads on."""
    started = time.monotonic()

    def answer() -> tuple[int, bytes]:
        seconds = time.monotonic() - started
        made = pipeline(name, shard(records=100 + int(seconds * 1000), end=123_456))
        return 200, json.dumps(engine(made, at=1000.0 + seconds, **changes)).encode()

    return answer


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_WEB_TOKEN", raising=False)


def run(*arguments: str) -> None:
    app = typer.Typer()
    app.command()(command.top)
    app(args=list(arguments), standalone_mode=False)


def test_once_prints_a_table_of_a_moment(capsys: pytest.CaptureFixture[str]) -> None:
    """With rates, between two statuses of which the second is a later one; plain where there is no terminal."""
    with serving() as server:
        server.answer = growing()
        run("--url", server.url)
        shown = capsys.readouterr().out
        run("--url", server.url, "--once", "--json")
        document = json.loads(capsys.readouterr().out)
    assert "\x1b" not in shown
    assert re.search(r"^web\[0\]\s+running\s+[\d,]+\s+123,356\s", shown, re.MULTILINE)
    assert document["url"] == server.url
    assert 500 < document["pipelines"][0]["records_per_second"] < 2000
    assert document["pipelines"][0]["offset_lag"] == 123_356


@pytest.mark.parametrize(("given", "said"), [(None, "none is set"), ("another-token", "another one is set")])
def test_a_wrong_token_is_said(monkeypatch: pytest.MonkeyPatch, given: str | None, said: str) -> None:
    """Which variable has it, and never what it is."""
    if given is not None:
        monkeypatch.setenv("HEADRACE_WEB_TOKEN", given)
    with serving(token=TOKEN) as server:
        with pytest.raises(UserError, match=said) as raised:
            run("--url", server.url)
        assert "HEADRACE_WEB_TOKEN" in (raised.value.hint or "")
        assert (given or TOKEN) not in str(raised.value)
        monkeypatch.setenv("HEADRACE_WEB_TOKEN", TOKEN)
        server.answer = growing()
        run("--url", server.url)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>", "no JSON"),
        (200, b'{"a": 1}', "no status"),
        (302, b"", "status 302"),
        (500, b"{}", "status 500"),
    ],
)
def test_an_address_that_is_no_page_is_said(status: int, body: bytes, said: str) -> None:
    """A redirect is not followed: a token would go with it."""
    with serving() as server:
        server.answer = lambda: (status, body)
        with pytest.raises(UserError, match=said):
            status_of(Page(server.url))


@pytest.mark.parametrize("answer", [(503, b'{"reasons": ["starting"]}'), (200, b"null")])
def test_an_engine_that_has_said_nothing_yet_is_no_error(answer: tuple[int, bytes]) -> None:
    """It is asked again."""
    with serving() as server:
        server.answer = lambda: answer
        assert status_of(Page(server.url)) is None


def test_nobody_there_is_an_error_to_try_again() -> None:
    """As while an engine is restarted; what has begun and does not end is one too."""
    with serving() as server:
        url = server.url
    with pytest.raises(PageUnavailable, match="does not answer"):
        status_of(Page(url))


@pytest.mark.parametrize(
    "url", ["127.0.0.1:80", "ftp://a", "http://", "http://a/b", "http://a?token=x", "http://a:99999", "http://[::1"]
)
def test_an_url_that_is_none_is_refused(url: str) -> None:
    """Before anything is asked."""
    with pytest.raises(UserError, match="--url"):
        page_of(None, url)


def test_credentials_in_an_url_are_refused_unseen() -> None:
    """They would be in the list of processes."""
    with pytest.raises(UserError, match="credentials") as raised:
        page_of(None, "http://user:hunter22@127.0.0.1")
    assert "hunter22" not in str(raised.value)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with configurations; nobody else's runs are seen."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def running(config: Path, url: str | None = "http://127.0.0.1:1", pid: int = 0, token: str | None = None) -> None:
    """A process runs that configuration, as it tells of itself."""
    runfile.write(runfile.RunFile(pid or os.getpid(), url, str(config), 1.0, token))


def test_the_engine_of_a_file_is_found_with_its_token(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, in this directory, or the only one that runs; its own token counts, else the variable's."""
    config = runs / "shop.toml"
    with pytest.raises(UserError, match="no engine of this user runs for") as raised:
        page_of(config, None)
    assert "headrace run" in (raised.value.hint or "")
    running(config, token=TOKEN)
    assert page_of(config, None) == Page("http://127.0.0.1:1", TOKEN, os.getpid())
    assert page_of(None, None).token == TOKEN
    running(config)
    monkeypatch.setenv("HEADRACE_WEB_TOKEN", "of-the-environment")
    assert page_of(config, None).token == "of-the-environment"
    assert "of-the-environment" not in repr(page_of(config, None))
    (runs / "headrace.toml").write_text("")
    with pytest.raises(UserError, match=r"runs for headrace\.toml\n  one does for .*shop\.toml"):
        page_of(None, None)
    (runs / "headrace.toml").unlink()
    running(runs / "other.toml")
    with pytest.raises(UserError, match="2 engines run here"):
        page_of(None, None)


def test_a_run_without_a_page_or_that_is_over_is_told(runs: Path) -> None:
    """What to do is said; a file that a killed process left is none."""
    config = runs / "headrace.toml"
    running(config, url=None)
    with pytest.raises(UserError, match="its page is off") as raised:
        page_of(config, None)
    assert "web.enabled" in (raised.value.hint or "")
    over = subprocess.Popen([sys.executable, "-c", ""])
    over.wait()
    config = runs / "over.toml"
    running(config, pid=over.pid)
    with pytest.raises(UserError, match="no engine of this user runs for"):
        page_of(config, None)


class Terminal:
    """The command in a pseudo terminal."""

    def __init__(self, *arguments: str, columns: int = 100, rows: int = 30) -> None:
        self._main, other = pty.openpty()
        self.resize(columns, rows)
        # Ctrl-C is a signal only to those whose controlling terminal it is.
        program = "import fcntl, termios, typer; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
        program += "; from engine.cli.top import top; typer.run(top)"
        env = {**os.environ, "TERM": "xterm"} | {"COLUMNS": "", "LINES": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            env=env,
            start_new_session=True,
        )
        os.close(other)
        self.seen = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._main, keys)

    def until(self, pattern: str) -> None:
        """Read on until what is new matches."""
        self.seen, deadline = "", time.monotonic() + 20
        while not re.search(pattern, self.seen):
            assert time.monotonic() < deadline, f"{pattern!r} is not in {self.seen[-2000:]!r}"
            if select.select([self._main], [], [], 0.1)[0]:
                self.seen += os.read(self._main, 65_536).decode("utf-8", "replace")

    def ended(self) -> int:
        """The exit code; what is still written is read."""
        deadline = time.monotonic() + 20
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError):
                if select.select([self._main], [], [], 0.05)[0]:
                    os.read(self._main, 65_536)
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [b"q", b"\x03"])
def test_a_terminal_shows_it_live_and_goes_on_after_a_restart(keys: bytes) -> None:
    """It says that the engine is away, shows the new one, fits another size, and ends by q and by Ctrl-C."""
    server = Server()
    server.answer = growing("clicks")
    terminal = Terminal("--url", server.url)
    try:
        terminal.until(r"clicks\[0\]")
        server.close()
        terminal.until("still trying")
        server = Server(port=server.port)
        server.answer = growing("orders", started_at=950.0)
        terminal.until(r"orders\[0\]")
        terminal.resize(30, 8)
        terminal.until(r"orders\[0\]")
        assert "topic-of-orders" not in terminal.seen.split("orders[0]")[-1]
        terminal.type(keys)
        assert terminal.ended() == 0
    finally:
        terminal.close()
        server.close()
