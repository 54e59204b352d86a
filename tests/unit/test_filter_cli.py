"""`headrace filter`: prints what matches as it stands, says what is no event, and tells by its exit code."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from engine.cli import filter as command
from engine.cli.filter import filter_events
from engine.errors import UserError
from engine.filters import InvalidPattern

app = typer.Typer()
app.command()(filter_events)

CLICK = b'{ "type" : "click", "n": 1.50 }'
VIEW = b'{"type":"view","n":2}'
PATTERN = '{"type":["click"]}'


def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


@pytest.fixture
def events(tmp_path: Path) -> str:
    path = tmp_path / "events.jsonl"
    path.write_bytes(CLICK + b"\n" + VIEW + b"\n\n" + CLICK)
    return str(path)


def test_matching_lines_come_unchanged(events: str) -> None:
    """Lines are printed byte for byte, the last one with a line end that it did not have."""
    result = run(PATTERN, events)
    assert (result.exit_code, result.stdout_bytes, result.stderr) == (0, CLICK + b"\n" + CLICK + b"\n", "")


def test_exit_codes(events: str) -> None:
    """1 says that nothing matched."""
    result = run('{"type":["buy"]}', events)
    assert (result.exit_code, result.stdout) == (1, "")


def test_inverted_and_counted(events: str) -> None:
    """The others instead, and numbers instead of lines; the exit code is of what was chosen."""
    assert run(PATTERN, events, "--invert-match").stdout_bytes == VIEW + b"\n"
    assert run(PATTERN, events, "-v", "-c").stdout == "1\n"
    assert run(PATTERN, events, "--count").stdout == "2\n"
    result = run('{"type":["buy"]}', events, "--count")
    assert (result.exit_code, result.stdout) == (1, "0\n")
    assert run('{"type":[{"exists":true}]}', events, "-v").exit_code == 1


def test_standard_input() -> None:
    """- reads standard input."""
    assert run(PATTERN, "-", stdin=VIEW + b"\n" + CLICK + b"\n").stdout_bytes == CLICK + b"\n"


@pytest.mark.parametrize(
    "bad", [b"nope", b'{"type":', b"\xff", b"[]", b'"x"', b"{'a':1}", b'{"a":NaN}', b'{"kinesis":{"data":"%"}}']
)
@pytest.mark.parametrize("option", [[], ["-v"]])
def test_a_line_that_is_no_event_costs_itself(bad: bytes, option: list[str]) -> None:
    """It is named by file and line on standard error; the others are judged."""
    result = run(PATTERN, "-", *option, stdin=CLICK + b"\n" + bad + b"\n" + VIEW + b"\n" + CLICK + b"\n")
    expected = [VIEW] if option else [CLICK, CLICK]
    assert result.exit_code == 0
    assert result.stdout_bytes == b"".join(line + b"\n" for line in expected)
    assert result.stderr.startswith("-:2: ")
    assert result.stderr.count("\n") == 1


def test_a_line_that_is_too_long_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read and forgotten piece by piece."""
    monkeypatch.setattr(command, "LINE_BYTES_MAX", 64)
    for size in (10, 64 - 15, 64, 200):
        long = b'{"type":"click","x":"' + b"y" * size + b'"}'
        result = run(PATTERN, "-", stdin=long + b"\n" + CLICK + b"\n" + long)
        lines = [long + b"\n"] if len(long) < 64 else []
        assert result.stdout_bytes == b"".join([*lines, CLICK + b"\n", *lines])
        assert result.stderr.count("more than 64 bytes") == (0 if lines else 2)


@pytest.mark.parametrize(
    "pattern", ["{", '{"type":"click"}', '{"type":[]}', "click", "[1]", '{"type":[{"x":1}]}', "x" * 5000, "a\0b"]
)
def test_an_invalid_pattern_has_awss_words(pattern: str, events: str) -> None:
    """Exit code 2 follows from the error, whose message is AWS's."""
    result = run(pattern, events)
    assert isinstance(result.exception, InvalidPattern)
    assert result.exception.domain == 2
    assert result.exception.message.startswith(
        "InvalidParameterValueException: Invalid filter pattern definition. "
    )
    assert result.stdout == ""


def test_patterns_from_files(events: str, tmp_path: Path) -> None:
    """A file may hold a pattern or AWS's filter criteria, with or without a byte order mark."""
    path = tmp_path / "pattern.json"
    path.write_text("\ufeff" + '{\n  "type": ["click"]\n}\n')
    assert run(str(path), events, "-c").stdout == "2\n"
    both = {"Filters": [{"Pattern": '{"type":["view"]}'}, {"Pattern": PATTERN}]}
    path.write_text(json.dumps(both))
    assert run(str(path), events, "-c").stdout == "3\n"
    assert run(json.dumps(both), events, "-c").stdout == "3\n"
    path.write_text(json.dumps({"Filters": [{"Pattern": '{"type":1}'}]}))
    assert isinstance(run(str(path), events).exception, InvalidPattern)
    path.write_text(json.dumps({"Filters": [{"Pattern": PATTERN}] * 11}))
    assert "at most 10" in str(run(str(path), events).exception)


def test_wrong_places_are_named(events: str, tmp_path: Path) -> None:
    """What cannot be read is named, with what would do."""
    missing = run(PATTERN, str(tmp_path / "none.jsonl")).exception
    assert isinstance(missing, UserError)
    assert "none.jsonl" in str(missing)
    assert "cannot read the pattern" in str(run(str(tmp_path), events).exception)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in str(run(str(binary), events).exception)
    binary.write_bytes(b" " * (command.PATTERN_FILE_BYTES_MAX + 1))
    assert "bytes" in str(run(str(binary), events).exception)


def test_records_as_they_stand_in_events() -> None:
    """Payloads of Kinesis and Kafka records are found decoded; a plain string does for Kafka alone."""
    data = base64.b64encode(CLICK).decode()
    of_kinesis = json.dumps({"kinesis": {"data": data, "partitionKey": "k"}, "eventSource": "aws:kinesis"}).encode()
    of_kafka = json.dumps({"topic": "t", "partition": 0, "offset": 5, "value": data, "key": None}).encode()
    whole = json.dumps({"Records": [json.loads(of_kinesis)]}).encode()
    lines = b"\n".join([of_kinesis, of_kafka, whole, CLICK]) + b"\n"
    assert run('{"data":{"type":["click"]}}', "-", stdin=lines).stdout_bytes == of_kinesis + b"\n" + whole + b"\n"
    assert run('{"value":{"n":[1.5]},"offset":[5]}', "-", stdin=lines).stdout_bytes == of_kafka + b"\n"
    assert run('{"partitionKey":["k"]}', "-", stdin=lines).stdout_bytes == of_kinesis + b"\n" + whole + b"\n"
    assert isinstance(run('{"data":["click"]}', "-", stdin=lines).exception, InvalidPattern)


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """The program ends quietly when nobody reads on, though there is more to print than a pipe holds."""
    path = tmp_path / "events.jsonl"
    path.write_bytes((CLICK + b"\n") * 20_000)
    program = "import typer; from engine.cli.filter import filter_events; typer.run(filter_events)"
    arguments = [sys.executable, "-c", program, PATTERN, str(path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == CLICK + b"\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
