"""Where a function's output goes: lines, bounds, the engine's log, files."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.environments import logs
from functions.environments.logs import FunctionLogs, Line, LogStream

AT = 1_700_000_000.25
TIME = "2023-11-14T22:13:20.250Z"


class Kept:
    """A target that keeps what it gets."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def write(self, lines: list[Line]) -> None:
        self.lines += lines


def through(write: Callable[[LogStream], object], now: Callable[[], float] = lambda: AT) -> list[tuple[str, str]]:
    """Origin and text of the lines that come out of what ``write`` puts in."""
    kept = Kept()
    owner = FunctionLogs(now=now)
    started = owner.stream("f")
    stream = LogStream(owner, started.group_name, started.name, kept)
    write(stream)
    owner.close()
    return [(line.origin, line.text) for line in kept.lines]


def portions(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(at)]


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]))), st.lists(st.integers())
)
def test_lines_are_the_same_however_they_come(texts: list[str], cuts: list[int]) -> None:
    """Bytes may be cut anywhere, also inside of a character; what is not ended is a line at the next platform's."""

    def write(stream: LogStream) -> None:
        for portion in portions("\n".join(texts).encode(), cuts):
            stream.write(portion)
        stream.platform("END RequestId: 1")

    expected = [("function", text) for text in texts]
    if texts and texts[-1] == "":
        expected.pop()  # the last one ended with the line before
    assert through(write) == [*expected, ("platform", "END RequestId: 1")]


def test_bytes_that_are_no_text_are_replaced() -> None:
    """A line is text whatever a function prints."""
    assert through(lambda stream: stream.write(b"a\xffb\r\n\n")) == [("function", "a\ufffdb"), ("function", "")]


@pytest.mark.parametrize("character", ["x", "é", "€", "𝄞"])
def test_a_long_line_goes_on_in_the_next(character: str) -> None:
    """Nothing is lost of it, no piece is above the bound, and no character is cut."""
    text = "-" + character * 300_000
    found = through(lambda stream: stream.write(text.encode() + b"\nnext\n"))
    *pieces, last = [text for _, text in found]
    assert "".join(pieces) == text
    assert last == "next"
    assert all(logs.LINE_BYTES_MAX - 4 < len(piece.encode()) <= logs.LINE_BYTES_MAX for piece in pieces[:-1])


def test_an_invocations_output_is_bounded() -> None:
    """What is beyond is counted and said, and the next invocation starts anew."""

    def write(stream: LogStream) -> None:
        stream.platform("START RequestId: 1")
        for _ in range(70):
            stream.write((b"x" * 99_999) + b"\n")
        stream.platform("END RequestId: 1")
        stream.write(b"again\n")

    found = through(write)
    size = sum(len(text) + 1 for origin, text in found if origin == "function" and text != "again")
    assert logs.INVOCATION_BYTES_MAX <= size <= logs.INVOCATION_BYTES_MAX + 1
    left_out = 7_000_000 - logs.INVOCATION_BYTES_MAX
    assert found[-3:] == [
        ("notice", f"{left_out:,} bytes of the function's output before this are left out"),
        ("platform", "END RequestId: 1"),
        ("function", "again"),
    ]


def test_an_invocations_lines_are_bounded() -> None:
    """A flood of tiny lines costs no more than that many of them."""

    def write(stream: LogStream) -> None:
        stream.write(b"x\n" * 60_000 + b"open")
        stream.platform("END RequestId: 1")
        stream.write(b"again\n")

    found = through(write)
    assert found[: logs.INVOCATION_LINES_MAX] == [("function", "x")] * logs.INVOCATION_LINES_MAX
    assert found[logs.INVOCATION_LINES_MAX :] == [
        ("notice", "20,004 bytes of the function's output before this are left out"),
        ("platform", "END RequestId: 1"),
        ("function", "again"),
    ]


def test_the_rest_of_a_long_line_beyond_the_bound_is_counted() -> None:
    """What is held when the lines are used up is left out like what follows it."""

    def write(stream: LogStream) -> None:
        stream.write(b"x\n" * (logs.INVOCATION_LINES_MAX - 1) + b"y" * 300_000)
        stream.platform("END RequestId: 1")

    left_out = 300_000 - logs.LINE_BYTES_MAX
    assert through(write)[logs.INVOCATION_LINES_MAX - 1 :] == [
        ("function", "y" * logs.LINE_BYTES_MAX),
        ("notice", f"{left_out:,} bytes of the function's output before this are left out"),
        ("platform", "END RequestId: 1"),
    ]


def test_notices_are_few_unless_much_is_left_out() -> None:
    """A little is said once a second with all that was before it, much at once."""
    lines = b"x\n" * (logs.INVOCATION_LINES_MAX + 10)

    def notices(seconds: float, data: bytes) -> list[str]:
        """Of four invocations, so many seconds apart."""
        times = iter([AT + seconds * (number // 2) for number in range(20)])

        def write(stream: LogStream) -> None:
            for _ in range(4):
                stream.write(data)
                stream.platform("END RequestId: 1")

        next(times)  # the stream's own name
        next(times)
        return [text.split()[0] for origin, text in through(write, lambda: next(times)) if origin == "notice"]

    assert notices(0.6, lines) == ["20", "40"]
    assert notices(1.0, lines) == ["20"] * 4
    assert notices(0.0, b"x\n" * (logs.INVOCATION_LINES_MAX + 40_000)) == ["80,000"] * 4


def test_what_waits_is_bounded() -> None:
    """A target that does not come after costs memory up to the bound, never the caller's time."""
    gate = threading.Event()
    kept = Kept()

    class Slow:
        def write(self, lines: list[Line]) -> None:
            assert gate.wait(30)
            kept.write(lines)

    owner = FunctionLogs()
    streams = [LogStream(owner, "g", str(number), Slow()) for number in range(20)]
    owner.stream("f")
    began = time.monotonic()
    for stream in streams:
        for _ in range(100):
            stream.write(b"y" * 50_000 + b"\n")
    assert time.monotonic() - began < 5
    for stream in streams:
        stream.platform("END RequestId: 1")
    gate.set()
    owner.close(30)
    sizes = {
        origin: sum(len(line.text) for line in kept.lines if line.origin == origin) for origin in ("function",)
    }
    assert logs.WAITING_BYTES_MAX * 0.9 < sizes["function"] <= logs.WAITING_BYTES_MAX
    assert sum(line.origin == "notice" for line in kept.lines) > 10


def test_what_is_written_makes_room() -> None:
    """A stream may go on for ever where its target comes after."""
    arrived = threading.Event()

    class Told:
        def write(self, lines: list[Line]) -> None:
            assert all(line.origin != "notice" for line in lines)
            if lines and lines[-1].origin == "platform":
                arrived.set()

    owner = FunctionLogs()
    owner.stream("f")
    stream = LogStream(owner, "g", "1", Told())
    for _ in range(5):
        arrived.clear()
        stream.write(b"x" * 5_000_000)
        stream.platform("END RequestId: 1")
        assert arrived.wait(30)
    owner.close()


def test_a_target_that_raises_costs_its_lines_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The thread goes on with the other streams, and says what happened."""
    kept = Kept()

    class Broken:
        def write(self, lines: list[Line]) -> None:
            raise ValueError("broken")

    owner = FunctionLogs()
    owner.stream("f")
    LogStream(owner, "broken", "1", Broken()).write(b"a\n")
    LogStream(owner, "good", "2", kept).write(b"b\n")
    owner.close()
    assert [line.text for line in kept.lines] == ["b"]
    assert "broken: output is lost" in caplog.text


def test_the_engines_log_has_the_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Under the function's name; the platform's lines are for --verbose; a traceback's CR becomes a line end."""
    with caplog.at_level(logging.DEBUG, "headrace.function"):
        owner = FunctionLogs()
        stream = owner.stream("clicks")
        stream.platform("START RequestId: 1 Version: $LATEST")
        stream.write(b"[ERROR] KeyError: 'a'\rTraceback %s\n")
        owner.close()
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("headrace.function.clicks", "DEBUG", "START RequestId: 1 Version: $LATEST"),
        ("headrace.function.clicks", "INFO", "[ERROR] KeyError: 'a'\nTraceback %s"),
    ]


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_a_streams_file_is_what_cloudwatch_exports(tmp_path: Path) -> None:
    """Group and stream are folders; each line has its time, in UTC, and stays one line."""
    owner = FunctionLogs(tmp_path, now=lambda: AT)
    stream = owner.stream("clicks")
    stream.platform("START RequestId: 1 Version: $LATEST")
    stream.write("one\rtwo é\nthree".encode())
    stream.platform("END RequestId: 1")
    owner.close()
    assert stream.group_name == "/aws/lambda/clicks"
    assert stream.name.startswith("2023/11/14/[$LATEST]")
    (path,) = files(tmp_path)
    assert path == tmp_path / "aws" / "lambda" / "clicks" / f"{stream.name}.log"
    assert path.read_bytes().decode() == (
        f"{TIME} START RequestId: 1 Version: $LATEST\n{TIME} one\rtwo é\n{TIME} three\n{TIME} END RequestId: 1\n"
    )


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "a/../../../b"])
def test_no_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    """A name is one folder below the group's, whatever is in it."""
    owner = FunctionLogs(tmp_path / "logs")
    owner.stream(name).write(b"x\n")
    owner.close()
    (path,) = files(tmp_path)
    assert path.relative_to(tmp_path / "logs" / "aws" / "lambda").parts[0] not in ("..", "")
    assert len(path.relative_to(tmp_path / "logs").parts) == 7


def test_a_functions_files_are_bounded_and_the_newest_stay(tmp_path: Path) -> None:
    """Many environments, one of them long: the sum is never beyond the bound, and the last lines are there."""
    bound = 100_000
    group = logs.FileGroup(tmp_path, "f", bound)
    keeper = logs.FileTarget(group, "2023/11/14/[$LATEST]keeper")
    for number in range(400):
        brief = logs.FileTarget(group, f"2023/11/{number % 28 + 1:02}/[$LATEST]{number:032x}")
        for target in (brief, keeper):
            target.write([Line(AT, "function", f"{number}: {'z' * 700}")])
        assert sum(path.stat().st_size for path in files(tmp_path)) <= bound
    kept = "".join(path.read_text() for path in files(tmp_path))
    assert kept.count("399: ") == 2
    assert len(kept) > bound * 0.8
    assert max(path.stat().st_size for path in files(tmp_path)) <= bound // 8
    assert " 0: " not in kept
    # Nothing is left of days without files.
    assert all(any(folder.rglob("*.log")) for folder in tmp_path.rglob("*") if folder.is_dir())


def test_nothing_is_older_than_what_went(tmp_path: Path) -> None:
    """A small file does not outlive a large one that was written after it."""
    group = logs.FileGroup(tmp_path, "f", 1_000)
    group.path.mkdir(parents=True)
    for name, size, age in (("old", 10, 3), ("large", 900, 2), ("new", 200, 1)):
        path = group.path / f"{name}.log"
        path.write_bytes(b"x" * size)
        os.utime(path, (AT - age, AT - age))
    group.admit(100, is_new=True)
    assert files(tmp_path) == [group.path / "new.log"]


def test_a_large_portion_is_spread_over_files(tmp_path: Path) -> None:
    """Also when all of it comes at once no file exceeds its share, but for one line that does."""
    target = logs.FileTarget(logs.FileGroup(tmp_path, "f", 80_000), "s")
    target.write([Line(AT, "function", f"{number:04} {'z' * 970}") for number in range(60)])
    sizes = [path.stat().st_size for path in files(tmp_path)]
    assert max(sizes) <= 10_000
    assert sum(sizes) == 60 * 1_001
    target.write([Line(AT, "function", "w" * 50_000)])
    assert max(path.stat().st_size for path in files(tmp_path)) == 50_000 + len(TIME) + 2
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 80_000


def test_a_disk_that_refuses_costs_the_output_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and the stream takes more."""
    (tmp_path / "aws").write_text("a file where the folder would be")
    owner = FunctionLogs(tmp_path)
    stream = owner.stream("f")
    for _ in range(3):
        stream.write(b"x\n")
    owner.close()
    assert caplog.text.count("function output cannot be kept") == 1


def test_after_the_end_nothing_is_taken() -> None:
    """Closing twice is fine, and a late environment neither waits nor raises."""
    owner = FunctionLogs()
    stream = owner.stream("f")
    owner.close()
    owner.close()
    stream.write(b"late\n")
    stream.platform("END RequestId: 1")
    assert not any(
        thread.name == "headrace-function-logs" and thread.is_alive() for thread in threading.enumerate()
    )
