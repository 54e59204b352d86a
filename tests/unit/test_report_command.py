"""`headrace report`: sums and charges, out of metering files and of whatever logs hold REPORT lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from engine.cli.report import report
from engine.errors import UserError
from functions.environments.contract import Report
from functions.environments.logs import FunctionLogs
from functions.environments.metering import MeteringFile, Usage
from functions.environments.report import report_line

app = typer.Typer()
app.command()(report)


def run(*arguments: object, given: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], input=given)


def document(*arguments: object, given: str | None = None) -> dict:
    result = run(*arguments, "--json", given=given)
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


def refused(*arguments: object, given: str | None = None) -> str:
    error = run(*arguments, given=given).exception
    assert isinstance(error, UserError), error
    return str(error)


def one(**changes: object) -> Report:
    values = {"request_id": "1", "started_at": 0.0, "duration_ms": 999.5, "billed_ms": 1_000}
    sizes = {"memory_size_mb": 1_024, "memory_used_mb_max": 80}
    return Report(**{"function_name": "f", **values, **sizes, **changes})  # type: ignore[arg-type]


def used(count: int = 1, **changes: object) -> Usage:
    usage = Usage()
    for _ in range(count):
        usage.count(one(**changes))
    return usage


@pytest.fixture
def metered(tmp_path: Path) -> Path:
    path = tmp_path / "metering.jsonl"
    file = MeteringFile(path)
    file.append({("2026-02-28T23:59", "clicks"): used(2), ("2026-03-01T00:00", "clicks"): used(3)})
    slow = used(status="timeout", error_type="Sandbox.Timedout", billed_ms=3_000, init_ms=7.0)
    slow.throttles = 4
    file.append({("2026-03-01T00:01", "orders"): slow})
    return path


def test_sums_and_charges(metered: Path) -> None:
    """By function, the dearest first, and in total: GB-seconds and requests at AWS's prices."""
    found = document(metered)
    assert [each["function"] for each in found["functions"]] == ["clicks", "orders"]
    clicks, orders = found["functions"]
    assert (clicks["requests"], clicks["gb_seconds"], clicks["errors"]) == (5, 5.0, 0)
    assert clicks["usd"] == pytest.approx(5 * 0.0000166667 + 5 * 0.0000002)
    members = ("requests", "errors", "timeouts", "throttles", "cold_starts", "gb_seconds")
    assert [orders[name] for name in members] == [1, 1, 1, 4, 1, 3.0]
    assert found["total"]["gb_seconds"] == 8.0
    assert found["total"]["usd"] == pytest.approx(8 * 0.0000166667 + 6 * 0.0000002)
    assert found["first"] == "2026-02-28T23:59:00Z"


def test_arm_is_cheaper(metered: Path) -> None:
    """Each architecture has a price of its own."""
    assert document(metered, "--architecture", "arm64")["total"]["duration_usd"] == pytest.approx(8 * 0.0000133334)


def test_the_free_tier_is_that_of_each_month(tmp_path: Path) -> None:
    """It is taken off once a month, for all functions together, in proportion to what each used."""
    path = tmp_path / "metering.jsonl"
    usages = {
        ("2026-02-10", "a"): Usage(requests=3_000_000, billed_mb_ms=600_000 * 1_024_000),
        ("2026-02-11", "b"): Usage(requests=1_000_000, billed_mb_ms=200_000 * 1_024_000),
        ("2026-03-01", "a"): Usage(requests=1_000_000, billed_mb_ms=399_000 * 1_024_000),
    }
    MeteringFile(path).append(usages)
    found = document(path, "--free-tier")
    a, b = found["functions"]
    assert found["total"]["requests_usd"] == pytest.approx(3 * 0.20)
    assert found["total"]["duration_usd"] == pytest.approx(400_000 * 0.0000166667)
    assert (a["duration_usd"], b["duration_usd"]) == pytest.approx((300_000 * 0.0000166667, 100_000 * 0.0000166667))


@pytest.mark.parametrize(
    ("since", "until", "requests"),
    [
        (None, None, 6),
        ("2026-03-01", None, 4),
        (None, "2026-03-01", 2),
        ("2026-03-01T00:00Z", "2026-03-01T00:01Z", 3),
        ("2026-03-01T01:00+01:00", None, 4),
    ],
)
def test_a_period_is_taken(metered: Path, since: str | None, until: str | None, requests: int) -> None:
    """From a time on, and before another."""
    options = [*(["--since", since] if since else []), *(["--until", until] if until else [])]
    assert document(metered, *options)["total"]["requests"] == requests


@pytest.mark.parametrize("time", ["yesterday", "2026-03-01T08:00", "2026-13-01", ""])
def test_times_that_are_none_are_refused(metered: Path, time: str) -> None:
    """A time without a zone would be a guess."""
    assert "--since is" in refused(metered, "--since", time)


LINE = report_line(one())
STAMP = "2026-03-01T08:15:00.123Z"


@pytest.mark.parametrize(
    ("text", "function"),
    [
        (LINE, "given"),
        (f"{STAMP} {LINE}\t\n", "given"),
        (f"START RequestId: 1 Version: $LATEST\n{LINE}\nend", "given"),
        (f"2026-03-01T08:15:00.123000+00:00 2026/03/01/[$LATEST]0a {LINE.replace(chr(9), ' ')}\n", "given"),
        (f"/aws/lambda/clicks 2026/03/01/[$LATEST]0a {LINE}", "clicks"),
        # Of CloudWatch's interface, laid out over several lines, and of its query results.
        ('            "message": ' + json.dumps(LINE + "\n") + ",\n", "given"),
        (f'2026-03-01 08:15:00.123,"{LINE}"\n', "given"),
        # JSON lines: events of the interface, headrace's --json, AWS's own format.
        (json.dumps({"timestamp": 1_772_352_900_123, "message": LINE, "logGroup": "/aws/lambda/clicks"}), "clicks"),
        (json.dumps({"time": STAMP, "logger": "headrace.function.my.fn", "message": LINE}), "my.fn"),
        (
            json.dumps(
                {
                    "time": STAMP,
                    "type": "platform.report",
                    "record": {
                        "requestId": "1",
                        "metrics": {
                            "durationMs": 999.5,
                            "billedDurationMs": 1000,
                            "memorySizeMB": 1024,
                            "maxMemoryUsedMB": 80,
                        },
                        "status": "success",
                    },
                }
            ),
            "given",
        ),
    ],
)
def test_logs_of_any_origin_are_read(tmp_path: Path, text: str, function: str) -> None:
    """REPORT lines are found wherever they are, with the function's name where the line has it."""
    path = tmp_path / "given.log"
    path.write_text(text)
    (found,) = document(path)["functions"]
    assert (found["function"], found["requests"], found["gb_seconds"], found["errors"]) == (function, 1, 1.0, 0)
    assert found["duration_ms"] == 999.5
    if "2026-03-01" in text or "timestamp" in text:
        assert document(path)["first"].startswith("2026-03-01T08:15:00.123")
        assert document(path, "--until", "2026-03-02")["total"]["requests"] == 1
        assert "in that period" in refused(path, "--since", "2026-03-02")


def test_a_failure_in_json_is_an_error(tmp_path: Path) -> None:
    """AWS's JSON names the status and the error's type like the line of text."""
    metrics = {"durationMs": 3000.0, "billedDurationMs": 3000, "memorySizeMB": 128, "maxMemoryUsedMB": 30}
    record = {"requestId": "1", "metrics": {**metrics, "initDurationMs": 114.31}, "status": "timeout"}
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps({"time": STAMP, "type": "platform.report", "record": record}))
    (found,) = document(path)["functions"]
    assert (found["errors"], found["timeouts"], found["cold_starts"], found["init_ms"]) == (1, 1, 1, 114.31)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no report here\n",
        "REPORT RequestId: 1\tDuration: ms\n",
        '{"at":"2026-03-01T08:15","function":\n',
        '{"type":"platform.report"}\n{"type":"platform.report","record":{"metrics":[]}}\n["platform.report"]\n',
        json.dumps({"type": "platform.report", "record": {"metrics": {"durationMs": "x"}}}),
        "{REPORT RequestId: nothing",
        '{"message":{"REPORT RequestId:":1}}',
    ],
)
def test_files_without_a_report_are_refused(tmp_path: Path, text: str) -> None:
    """Nothing to add up is an error that says what was looked for."""
    path = tmp_path / "other.log"
    path.write_text(text)
    message = refused(path)
    assert f"{path}: no REPORT line and no metering line" in message
    assert "metering_path" in message


def test_lines_without_a_time_are_in_no_period(tmp_path: Path) -> None:
    """They are left out and counted; with nothing else there is no answer."""
    path = tmp_path / "f.log"
    path.write_text(f"{LINE}\n{LINE}\n")
    assert "2 REPORT lines, none with a time" in refused(path, "--since", "2026-03-01")
    path.write_text(f"{LINE}\n{STAMP} {LINE}\n")
    result = run(path, "--since", "2026-03-01")
    assert result.exit_code == 0
    assert "1 REPORT lines have no time" in result.stderr


def test_standard_input_is_read() -> None:
    """`-` takes what another program prints."""
    (found,) = document("-", given=f"{LINE}\n{LINE}\n")["functions"]
    assert (found["function"], found["requests"]) == ("(unnamed)", 2)


def test_directories_are_read_with_the_names_of_their_groups(tmp_path: Path) -> None:
    """What the engine writes under function_log_path is read back, each function under its name."""
    logs = FunctionLogs(tmp_path / "logs")
    for name in ("clicks", "orders", "clicks"):
        logs.stream(name).platform(LINE)
    logs.close()
    (tmp_path / "logs" / "notes.bin").write_text(LINE)
    found = document(tmp_path / "logs")
    assert {each["function"]: each["requests"] for each in found["functions"]} == {"clicks": 2, "orders": 1}


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A name that is wrong, or a compressed file, is no silent zero."""
    assert "nowhere.jsonl: No such file" in refused(tmp_path / "nowhere.jsonl")
    path = tmp_path / "f.gz"
    path.write_bytes(gzip.compress(LINE.encode()))
    assert "is compressed" in refused(path)


def test_the_table_is_for_people(metered: Path) -> None:
    """Aligned columns with a last line of sums; what the prices are is said beside it."""
    result = run(metered)
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["function", "requests", "errors"]
    assert [line.split()[0] for line in lines[2:]] == ["clicks", "orders", "total"]
    assert lines[-1].split()[-2:] == ["8.000", "0.00013453"]
    assert "x86_64 at $0.0000166667 for each GB-second and $0.20 for a million requests" in result.stderr
    assert "2026-02-28 23:59" in result.stderr
