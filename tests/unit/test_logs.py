"""Log lines: what a JSON object holds, what a line is about, how many there are, and secrets, which are in none."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import logs
from engine.config import Config
from engine.config_file import parse
from engine.errors import BrokerUnavailable, FunctionError, HeadraceError, SinkMismatch
from tests.clock import until
from tests.unit.engine_world import EngineWorld, FunctionHandler, copy


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test hides is shown in the next."""
    monkeypatch.setattr(logs, "_hidden", ())
    for name in logs.SECRET_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def configured() -> Iterator[None]:
    """Logging is set up anew by the test, and put back."""
    root, own = logging.getLogger(), logging.getLogger("headrace")
    before = (root.handlers[:], root.level, own.level, [logging.getLogger(name).level for name in logs.CHATTY])
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])
    for name, level in zip(logs.CHATTY, before[3], strict=True):
        logging.getLogger(name).setLevel(level)


def record(message: str, *arguments: object, name: str = "headrace.x", **members: Any) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.WARNING, __file__, 1, message, arguments, members.pop("exc_info", None))
    vars(made).update(members)
    return made


def line(message: str, *arguments: object, **members: Any) -> dict[str, Any]:
    text = logs.JsonFormatter().format(record(message, *arguments, **members))
    assert "\n" not in text
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def test_a_line_is_an_object_with_what_it_always_had() -> None:
    """Time, level, logger, message; nothing else where nothing else is known."""
    found = line("%d records\nand more", 7)
    assert found.pop("time").endswith("+00:00")
    assert found == {"level": "warning", "logger": "headrace.x", "message": "7 records\nand more"}


def test_what_a_call_says_beside_its_message_is_there() -> None:
    """Known fields alone; the function's name comes from its logger."""
    found = line("x", partition=3, offset=0, attempt=None, request_id="r", mine="?")
    assert {key: found.get(key) for key in ("partition", "offset", "attempt", "request_id", "mine")} == {
        "partition": 3,
        "offset": 0,
        "attempt": None,
        "request_id": "r",
        "mine": None,
    }
    assert line("x", name=f"{logs.FUNCTIONS}count")["function"] == "count"


async def test_what_runs_inside_is_about_the_same() -> None:
    """Tasks and threads too; a call's own word counts more, and afterwards it is as before."""

    async def inside() -> dict[str, Any]:
        return line("x", partition=9)

    with logs.about(pipeline="clicks"), logs.about(partition=3):
        both = {"pipeline": "clicks", "partition": 3}
        assert both.items() <= line("x").items()
        assert both.items() <= (await asyncio.to_thread(line, "x")).items()
        task = asyncio.create_task(inside())
    assert {"pipeline": "clicks", "partition": 9}.items() <= (await task).items()
    assert not {"pipeline", "partition"} & line("x").keys()
    with pytest.raises(AssertionError, match="pipelines"):
        logs.about(pipelines="clicks")


async def test_a_task_may_be_about_something_until_its_end() -> None:
    """Its own tasks too; the one that started it is not."""

    async def below() -> dict[str, Any]:
        return line("x")

    async def task() -> list[dict[str, Any]]:
        logs.task_is_about(pipeline="clicks")
        logs.task_is_about(partition=3)
        return [line("x"), await asyncio.create_task(below())]

    for found in await asyncio.create_task(task()):
        assert {"pipeline": "clicks", "partition": 3}.items() <= found.items()
    assert "pipeline" not in line("x")


@pytest.mark.parametrize("way", ["argument", "extra", "handled"])
def test_an_error_is_told_in_fields(way: str) -> None:
    """Its class, whose fault it is, whether to try again, and what to do, whichever way the line has it."""
    error = BrokerUnavailable("gone", hint="start one")
    if way == "argument":
        found = line("no: %s", error)
    elif way == "extra":
        found = line("no", error=error)
    else:
        try:
            raise error
        except HeadraceError:
            found = line("no", exc_info=sys.exc_info())
            assert "Traceback" in found["exception"]
    wanted = {
        "error_type": "BrokerUnavailable",
        "error_domain": "external",
        "error_retry": True,
        "hint": "start one",
    }
    assert wanted.items() <= found.items()


def test_an_error_of_others_has_its_class() -> None:
    """Nothing is known of it but that."""
    found = line("no: %s", ValueError("x"))
    assert found["error_type"] == "ValueError"
    assert "error_domain" not in found
    assert line("no: %s", SinkMismatch("x"))["error_domain"] == "user"
    assert line("no: %s", FunctionError("x", "Sandbox.Timedout"))["error_type"] == "Sandbox.Timedout"


def test_text_is_as_it_was() -> None:
    """A time, the level where it matters, a function's name, the message."""
    text = logs.TextFormatter().format(record("hello %s", "you", name=f"{logs.FUNCTIONS}count", partition=3))
    assert text[8:] == " warning: count: hello you"


SECRETS = {
    "sasl": "sasl-pass-1",
    "registry": "registry-pass-2",
    "web": "web-token-3-long-enough",
    "query": "query-token-4-long-enough",
    "function": "function-variable-5",
}


def secretive() -> Config:
    """A configuration with a secret wherever there may be one."""
    return parse(
        {
            "kafka": {"sasl_password": SECRETS["sasl"]},
            "registry": {"password": SECRETS["registry"]},
            "web": {"token": SECRETS["web"]},
            "query": {"token": SECRETS["query"]},
            "pipelines": {
                "clicks": {
                    "source": {"topic": "clicks"},
                    "function": {
                        "kind": "kinesis",
                        "handler": "app.handler",
                        "environment": {"KEY": SECRETS["function"]},
                    },
                }
            },
        }
    )


def test_every_secret_of_a_configuration_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all tables, and of the environment's variables, values inside of headers included."""
    monkeypatch.setenv("HEADRACE_WEB_TOKEN", "from-the-environment")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "a=header-one, b=header-two")
    found = set(logs.secrets_of(secretive()))
    assert found >= {*SECRETS.values(), "from-the-environment", "header-one", "header-two"}


@pytest.mark.parametrize("formatter", [logs.TextFormatter(), logs.JsonFormatter()])
def test_no_line_shows_a_secret(formatter: logging.Formatter) -> None:
    """In the message, its arguments, a traceback, a hint or a field; what is too short to tell stays."""
    logs.hide([*logs.secrets_of(secretive()), "short"])
    everything = " ".join(SECRETS.values())
    try:
        raise SinkMismatch(f"no {everything}", hint=f"use {everything}")
    except SinkMismatch as error:
        made = record(f"short {everything} %s", error, exc_info=sys.exc_info(), request_id=everything)
    text = formatter.format(made)
    assert not [secret for secret in SECRETS.values() if secret in text]
    assert logs.HIDDEN in text
    assert "short" in text


def test_the_manual_has_every_member() -> None:
    """Of a line with --json."""
    text = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    errors = line("no: %s", BrokerUnavailable("x", hint="y"))
    assert not [name for name in {*logs.FIELDS, *errors} if f"`{name}`" not in text]


@given(st.lists(st.text("ab", min_size=6, max_size=9), min_size=1, max_size=4), st.text("abc", max_size=60))
def test_a_secret_within_another_leaves_no_part_of_it(secrets: list[str], text: str) -> None:
    """Whatever they overlap with, none is left whole, and other text is as it was."""
    logs._hidden = ()
    logs.hide(secrets)
    shown = logs.shown(text)
    assert not [secret for secret in secrets if secret in shown]
    if not [secret for secret in secrets if secret in text]:
        assert shown == text


async def test_a_run_logs_a_line_for_each_batch_and_none_for_records(
    configured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """At debug; without it, as many lines for a thousand records as for none."""
    count, size = 1_000, 100
    lines: dict[tuple[bool, int], list[dict[str, Any]]] = {}
    for verbose in (False, True):
        for records in (0, count):
            logs.configure(json=True, verbose=verbose)
            world = EngineWorld()
            world.append(0, records)
            with logs.about(pipeline="p", partition=0):
                async with world.shard(FunctionHandler(copy), target=records, batch_size=size) as (shard, _):
                    await until(lambda shard=shard: shard.is_caught_up)  # type: ignore[misc]
            lines[verbose, records] = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert len(lines[False, count]) == len(lines[False, 0]) <= 3
    debug = [each for each in lines[True, count] if each["level"] == "debug"]
    assert len(debug) == count // size
    assert len(lines[True, count]) == len(debug) + len(lines[False, count])
    assert {(each["pipeline"], each["partition"]) for each in lines[True, count]} == {("p", 0)}
