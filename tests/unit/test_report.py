"""AWS's REPORT line, written and read."""

from __future__ import annotations

import dataclasses
import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.environments.contract import Report
from functions.environments.report import TIMED_OUT, init_report_line, parse_report_line, report_line

REQUEST = "8f5ec7bb-5e3c-4a38-8e0a-000000000001"
WARM = Report("clicks", REQUEST, 7.0, 15.741, 16, 128, 56)


def with_(**changes: object) -> Report:
    return dataclasses.replace(WARM, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (WARM, ""),
        (with_(init_ms=130.494), "\tInit Duration: 130.49 ms"),
        (with_(status="timeout", error_type=TIMED_OUT), "\tStatus: timeout"),
        (
            with_(status="error", error_type="Runtime.ExitError", init_ms=1.0),
            "\tInit Duration: 1.00 ms\tStatus: error\tError Type: Runtime.ExitError",
        ),
        (with_(status="error"), "\tStatus: error"),
    ],
)
def test_the_line_is_that_of_aws(report: Report, line: str) -> None:
    """Tab separated, two decimals, Init Duration on a cold start only, the status of a failure at the end."""
    assert report_line(report) == (
        f"REPORT RequestId: {REQUEST}\tDuration: 15.74 ms\tBilled Duration: 16 ms\tMemory Size: 128 MB\t"
        f"Max Memory Used: 56 MB{line}"
    )


def test_a_failed_initialisation_has_a_line_of_its_own() -> None:
    """INIT_REPORT names the phase, and the error's type except for a timeout."""
    assert (
        init_report_line(1236.04, "timeout")
        == "INIT_REPORT Init Duration: 1236.04 ms\tPhase: init\tStatus: timeout"
    )
    assert init_report_line(206.718, "error", "Runtime.ExitError", phase="invoke") == (
        "INIT_REPORT Init Duration: 206.72 ms\tPhase: invoke\tStatus: error\tError Type: Runtime.ExitError"
    )
    assert parse_report_line(init_report_line(1.0, "timeout")) is None


COLD = with_(function_name="", started_at=0.0, duration_ms=15.74, init_ms=130.49)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # From CloudWatch's console: spaces, and X-Ray's members on the same line.
        (
            f"REPORT RequestId: {REQUEST} Duration: 15.74 ms Billed Duration: 16 ms Memory Size: 128 MB "
            "Max Memory Used: 56 MB Init Duration: 130.49 ms XRAY TraceId: 1-5d9d007f-0a8c7fd02xmpl480aed55ef0 "
            "SegmentId: 3d752xmpl1bbe37e Sampled: true",
            COLD,
        ),
        # From the stream: a tab at the end, a space before one, a time before all.
        (
            f"2023-11-14T22:13:20.123Z REPORT RequestId: {REQUEST}\tDuration: 15.74 ms\tBilled Duration: 16 ms \t"
            "Memory Size: 128 MB\tMax Memory Used: 56 MB\tInit Duration: 130.49 ms\t\r\n",
            COLD,
        ),
        # From the Runtime Interface Emulator: Init Duration first.
        (
            f"REPORT RequestId: {REQUEST}\tInit Duration: 130.49 ms\tDuration: 15.74 ms\tBilled Duration: 16 ms\t"
            "Memory Size: 128 MB\tMax Memory Used: 56 MB\t",
            COLD,
        ),
        # Restored from a snapshot.
        (
            f"REPORT RequestId: {REQUEST}\tDuration: 15.74 ms\tBilled Duration: 97 ms\tMemory Size: 128 MB\t"
            "Max Memory Used: 56 MB\tRestore Duration: 300.10 ms\tBilled Restore Duration: 81 ms\t",
            dataclasses.replace(COLD, init_ms=None, billed_ms=97),
        ),
        (
            f"REPORT RequestId: {REQUEST} Duration: 15.74 ms Billed Duration: 16 ms Memory Size: 128 MB "
            "Max Memory Used: 56 MB Status: error Error Type: Runtime.InvalidEntrypoint",
            dataclasses.replace(COLD, init_ms=None, status="error", error_type="Runtime.InvalidEntrypoint"),
        ),
        (
            f"REPORT RequestId: {REQUEST}\tDuration: 15.74 ms\tBilled Duration: 16 ms\tMemory Size: 128 MB\t"
            "Max Memory Used: 56 MB\tStatus: timeout\nXRAY TraceId: 1-2\tSegmentId: 3\tSampled: true",
            dataclasses.replace(COLD, init_ms=None, status="timeout", error_type=TIMED_OUT),
        ),
        (
            f"REPORT RequestId: {REQUEST}\tDuration: 15.74 ms\tBilled Duration: 16 ms\tMemory Size: 128 MB\t"
            "Max Memory Used: 56 MB\tStatus: failure",
            dataclasses.replace(COLD, init_ms=None, status="error", error_type="Unhandled"),
        ),
    ],
)
def test_lines_of_aws_are_read(line: str, expected: Report) -> None:
    """Whatever tools make of the line's white space, order and further members."""
    assert parse_report_line(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        f"START RequestId: {REQUEST} Version: $LATEST",
        f"END RequestId: {REQUEST}",
        "REPORT RequestId: ",
        f"REPORT RequestId: {REQUEST}",
        f"REPORT RequestId: {REQUEST}\tDuration: 15.74 ms\tBilled Duration: 16 ms\tMemory Size: 128 MB",
        f"REPORT RequestId: {REQUEST}\tDuration: nan ms\tBilled Duration: 1 ms\tMemory Size: 1 MB\t"
        "Max Memory Used: 1 MB",
        f"REPORT RequestId: {REQUEST}\tDuration: 1 ms\tBilled Duration: -1 ms\tMemory Size: 1 MB\t"
        "Max Memory Used: 1 MB",
        f"REPORT RequestId: {REQUEST}\tDuration: {'9' * 400} ms\tBilled Duration: 1 ms\tMemory Size: 1 MB\t"
        "Max Memory Used: 1 MB",
        f"the handler saw REPORT RequestId: {'x' * 5_000}\tDuration: 1 ms",
    ],
)
def test_other_lines_are_no_reports(line: str) -> None:
    """A member that is missing or no number makes it somebody else's line."""
    assert parse_report_line(line) is None


WORD = st.text(string.ascii_letters + string.digits + "-._:$é", min_size=1, max_size=60)
STATUS = st.one_of(st.just(("success", None)), st.just(("timeout", TIMED_OUT)), st.tuples(st.just("error"), WORD))
MILLISECONDS = st.floats(0, 1e8)


@given(WORD, MILLISECONDS, st.integers(0, 10**9), st.integers(0, 10**5), st.integers(0, 10**5),
       st.none() | MILLISECONDS, STATUS)  # fmt: skip
def test_what_is_written_is_read(
    request_id: str, duration: float, billed: int, size: int, used: int, init: float | None, status: tuple[str, str]
) -> None:
    """Reading a line gives its report back, times within two decimals."""
    report = Report("f", request_id, 5.0, duration, billed, size, used, init, *status)  # type: ignore[arg-type]
    read = parse_report_line(report_line(report), function_name="f", started_at=5.0)
    assert read is not None
    assert math.isclose(read.duration_ms, duration, abs_tol=0.005000001, rel_tol=1e-12)
    if init is not None:
        assert math.isclose(read.init_ms or 0.0, init, abs_tol=0.005000001, rel_tol=1e-12)
    assert dataclasses.replace(read, duration_ms=duration, init_ms=init) == report


@given(st.text(max_size=400), st.text(max_size=400))
def test_no_error_type_can_forge_a_member(error_type: str, request_id: str) -> None:
    """Names that a function chooses stay one member of one line, whatever they hold."""
    line = report_line(with_(status="error", error_type=error_type, request_id=request_id))
    assert len(line.splitlines()) == 1
    read = parse_report_line(line)
    assert read is not None
    assert (read.duration_ms, read.billed_ms, read.memory_used_mb_max, read.status) == (15.74, 16, 56, "error")


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing behind the word REPORT raises."""
    parse_report_line(f"REPORT RequestId: {text}")
