"""AWS's REPORT line: what one invocation took, as a line of text, and back again.

Written tab separated and with two decimals, as on CloudWatch; read from whatever becomes of such lines: spaces in
place of tabs, X-Ray's members, a snapshot's restore times, the order of the Runtime Interface Emulator. Nothing
here adds anything up (`functions.environments.metering`) or keeps a line (`functions.environments.logs`).
Needs the standard library alone.
"""

from __future__ import annotations

import math
import re
from typing import Final, Literal

from functions.environments.contract import Report

REPORT: Final = "REPORT RequestId: "

#: What AWS calls the fault of an invocation that took too long; its REPORT line says "Status: timeout" alone.
TIMED_OUT: Final = "Sandbox.Timedout"

#: A REPORT line has some 250 characters; what is longer is not read as one.
LINE_CHARACTERS_MAX: Final = 2_048

#: Of a request's id or an error's type in a line.
NAME_CHARACTERS_MAX: Final = 256

_REQUEST = re.compile(r"\bREPORT RequestId:[ \t]+(\S{1,256})")
_MEMBER = re.compile(r"([A-Z][A-Za-z]*(?: [A-Z][A-Za-z]*){0,3}):[ \t]+([^ \t]+)(?:[ \t]+(?:ms|MB)(?![^ \t]))?")
_DECIMAL = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")


def report_line(report: Report) -> str:
    """The line of one invocation, without a line end; source: the developer guide's REPORT lines.

    ``Init Duration`` stands in it on a cold start only. White space in an error's type becomes "_", so that what
    a function calls its errors can neither end the line nor pretend to be another member of it.
    """
    parts = [
        f"{REPORT}{_one_word(report.request_id)}",
        f"Duration: {report.duration_ms:.2f} ms",
        f"Billed Duration: {report.billed_ms} ms",
        f"Memory Size: {report.memory_size_mb} MB",
        f"Max Memory Used: {report.memory_used_mb_max} MB",
    ]
    if report.init_ms is not None:
        parts.append(f"Init Duration: {report.init_ms:.2f} ms")
    return "\t".join([*parts, *_ending(report.status, report.error_type)])


def init_report_line(
    init_ms: float,
    status: Literal["error", "timeout"],
    error_type: str | None = None,
    *,
    phase: Literal["init", "invoke"] = "init",
) -> str:
    """The line of an initialisation that failed or took too long, without a line end; ``init_ms`` in milliseconds.

    ``phase`` is "invoke" where it is done over inside of the first invocation.
    """
    start = [f"INIT_REPORT Init Duration: {init_ms:.2f} ms", f"Phase: {phase}"]
    return "\t".join([*start, *_ending(status, error_type)])


def _ending(status: str, error_type: str | None) -> list[str]:
    if status == "success":
        return []
    if status == "timeout" or not error_type:
        return [f"Status: {status}"]
    return [f"Status: {status}", f"Error Type: {_one_word(error_type)}"]


def _one_word(text: str) -> str:
    word = "".join(char if char.isprintable() and char != " " else "_" for char in text[:NAME_CHARACTERS_MAX])
    return word or "_"


def parse_report_line(text: str, *, function_name: str = "", started_at: float = 0.0) -> Report | None:
    """The Report in a line of a log, or None where there is none; it may stand behind a time or a stream's name.

    The line names neither the function nor the time: both are the caller's to give. An error without a type
    gets AWS's "Unhandled". Restore times, of environments that AWS restored from a snapshot, are not taken.
    """
    # A part of a longer line: a JSON line of a log holds more than the message.
    found = _REQUEST.search(text)
    if found is None:
        return None
    rest = text[found.end() : found.end() + LINE_CHARACTERS_MAX].split("\n", 1)[0]
    members: dict[str, str] = {}
    for name, value in _MEMBER.findall(rest):
        members.setdefault(name, value)
    duration = _decimal(members.get("Duration"))
    billed = _decimal(members.get("Billed Duration"))
    size, used = _decimal(members.get("Memory Size")), _decimal(members.get("Max Memory Used"))
    if duration is None or billed is None or size is None or used is None:
        return None
    status = members.get("Status", "success")
    if status not in ("success", "error", "timeout"):
        status = "error"  # "failure" is what AWS's JSON logs call an error that the function raised
    error_type = members.get("Error Type", "Unhandled")
    return Report(
        function_name=function_name,
        request_id=found.group(1),
        started_at=started_at,
        duration_ms=duration,
        billed_ms=math.ceil(billed),
        memory_size_mb=int(size),
        memory_used_mb_max=int(used),
        init_ms=_decimal(members.get("Init Duration")),
        status=status,  # type: ignore[arg-type]
        error_type=None if status == "success" else TIMED_OUT if status == "timeout" else error_type,
    )


def _decimal(text: str | None) -> float | None:
    return float(text) if text is not None and _DECIMAL.fullmatch(text) else None
