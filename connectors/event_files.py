"""Files whose lines or rows are events: NDJSON, text and Parquet, read in pieces of bounded size.

Lines are taken byte for byte, without their end; blank lines are events of text files only. A UTF-8 byte-order
mark at the very start of a file of lines (also a packed one, or a pipe) is no part of its first line. A Parquet
row becomes a JSON object: binary columns as base64, numbers that are not finite as null, everything else as
DuckDB's ``to_json`` writes it. ``.gz`` and ``.zst`` files are unpacked on the way.

Not here: where the events go.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import select
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

import duckdb
import orjson
import pyarrow as pa

from connectors.event_fields import Number, key_of, member, timestamp_of
from connectors.json_text import without_words
from engine.errors import UserError

Format = Literal["auto", "ndjson", "text", "parquet"]

STDIN = "-"

BLOCK_BYTES = 256 * 1024
RECORD_BYTES_MAX = 64 * 1024 * 1024
PARQUET_ROWS = 1_000
PARQUET_MEMORY_BYTES_MAX = 512 * 1024 * 1024

#: A pipe that is quiet for so long gets what has been read of it sent.
IDLE_SECONDS = 0.05

#: The UTF-8 byte-order mark that some editors and spreadsheets begin a file with.
MARK = b"\xef\xbb\xbf"

_PACKED = {".gz": "gzip", ".zst": "zstd"}
_FORMATS: dict[str, Format] = {
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "ndjson",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclass(frozen=True, slots=True)
class Events:
    """Some events in a row. ``numbers`` are of lines or rows, from 1; ``timestamps`` are in ms since the epoch."""

    source: str
    unit: str
    numbers: Sequence[int]
    values: Sequence[bytes]
    keys: Sequence[bytes | None] | None = None
    timestamps: Sequence[int] | None = None

    def where(self, index: int) -> str:
        return f"{self.source}, {self.unit} {self.numbers[index]}"


class EventFile:
    """One file, or standard input for ``-``.

    ``key`` and ``timestamp`` name members, of lines also by a path (``a.b``). Opening checks what can be
    checked without reading everything. Raises UserError that names the file and the line or row.
    """

    def __init__(self, name: str, value_format: Format, *, key: str | None, timestamp: str | None) -> None:
        self.name = "standard input" if name == STDIN else name
        self._path = None if name == STDIN else Path(name)
        self._key = key
        self._timestamp = timestamp
        self._packed = _PACKED.get(self._path.suffix.lower()) if self._path is not None else None
        self.bytes_read = 0
        mode = (os.fstat(0) if self._path is None else self._path.stat()).st_mode
        self._regular = stat.S_ISREG(mode)
        #: Bytes on disk, where that is known.
        self.bytes_total = self._path.stat().st_size if self._path is not None and self._regular else None
        self.format = self._chosen(value_format)
        if self.format == "text" and (key is not None or timestamp is not None):
            raise UserError(
                f"{self.name}: lines of text have no members to take a key or a timestamp from",
                hint="for JSON lines say --format ndjson",
            )
        if self.format == "parquet":
            self._parquet = _Parquet(self, self._path, key, timestamp)

    def events(self) -> Iterator[Events | None]:
        """All events in order. None means that there may be a while until the next ones."""
        if self.format == "parquet":
            yield from self._parquet.events()
            return
        number = 1
        for lines in self._lines():
            if lines is None:
                yield None
                continue
            yield from self._of_lines(lines, number)
            number += len(lines)

    def _of_lines(self, lines: list[bytes], number: int) -> Iterator[Events]:
        numbers: Sequence[int] = range(number, number + len(lines))
        if self.format == "ndjson" and (not all(lines) or any(map(bytes.isspace, lines))):
            kept = [(at, line) for at, line in zip(numbers, lines, strict=True) if line.strip()]
            numbers, lines = [at for at, _ in kept], [line for _, line in kept]
        if not lines:
            return
        if self._key is None and self._timestamp is None:
            yield Events(self.name, "line", numbers, lines)
            return
        keys: list[bytes | None] | None = [] if self._key is not None else None
        timestamps: list[int] | None = [] if self._timestamp is not None else None
        fault: UserError | None = None
        for at, line in zip(numbers, lines, strict=True):
            try:
                self._members(line, keys, timestamps)
            except ValueError as error:
                fault = UserError(f"{self.name}, line {at}: {error}")
                break
        count = len(keys if keys is not None else timestamps or ())
        if timestamps is not None:
            count = min(count, len(timestamps))
        if count:
            yield Events(self.name, "line", numbers[:count], lines[:count], keys, timestamps)
        if fault is not None:
            raise fault

    def _members(self, line: bytes, keys: list[bytes | None] | None, timestamps: list[int] | None) -> None:
        """Append the line's key and timestamp. Raises ValueError, with nothing appended but maybe the key."""
        try:
            document = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"not JSON, so it has no key or timestamp: {error}") from None
        if keys is not None:
            found = member(document, cast(str, self._key))
            if isinstance(found, float):  # also integers beyond 64 bits: the key is the number as it is written
                found = member(json.loads(line, parse_float=Number, parse_int=Number), cast(str, self._key))
            keys.append(key_of(found))
        if timestamps is not None:
            timestamps.append(
                timestamp_of(member(document, cast(str, self._timestamp)), cast(str, self._timestamp))
            )

    def _lines(self) -> Iterator[list[bytes] | None]:
        carry: list[bytes] = []
        carried = 0
        number = 1
        with self._opened() as read:
            while True:
                block = read()
                if block is None:
                    yield None
                    continue
                end = block.rfind(b"\n")
                if block and end < 0:
                    carry.append(block)
                    carried += len(block)
                    if carried > RECORD_BYTES_MAX:
                        raise UserError(
                            f"{self.name}, line {number}: longer than {RECORD_BYTES_MAX:,} bytes",
                            hint="no such record can be sent; is the file one event per line?",
                        )
                    continue
                if not block and not carried:
                    return
                lines = (b"".join(carry) + (block[:end] if block else b"")).split(b"\n")
                carry, carried = ([block[end + 1 :]], len(block) - end - 1) if block else ([], 0)
                if number == 1 and lines[0].startswith(MARK):
                    lines[0] = lines[0][len(MARK) :]
                    if not block and lines == [b""]:
                        return  # an empty file but for the mark
                number += len(lines)
                yield [line[:-1] if line.endswith(b"\r") else line for line in lines]
                if not block:
                    return

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Callable[[], bytes | None]]:
        """What gives the next bytes: empty at the end, None when there is nothing to read for now."""
        with contextlib.ExitStack() as stack:
            if self._path is None:
                descriptor = 0
            else:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
            if self._packed is not None:
                yield self._unpacked(stack, descriptor)
                return
            waited = False

            def read() -> bytes | None:
                nonlocal waited
                if not self._regular and not waited and not select.select([descriptor], [], [], IDLE_SECONDS)[0]:
                    waited = True
                    return None
                waited = False
                block = os.read(descriptor, BLOCK_BYTES)
                self.bytes_read += len(block)
                return block

            yield read

    def _unpacked(self, stack: contextlib.ExitStack, descriptor: int) -> Callable[[], bytes]:
        raw: IO[bytes] = stack.enter_context(os.fdopen(descriptor, "rb", closefd=False))
        stream = stack.enter_context(pa.CompressedInputStream(pa.PythonFile(raw, "r"), self._packed))

        def read() -> bytes:
            try:
                block: bytes = stream.read(BLOCK_BYTES)
            except OSError as error:
                raise UserError(f"{self.name}: not a whole {self._packed} file: {error}") from None
            with contextlib.suppress(OSError):
                self.bytes_read = os.lseek(descriptor, 0, os.SEEK_CUR)
            return block

        return read

    def _chosen(self, value_format: Format) -> Format:
        """The format that was asked for, or that the name or else the first bytes tell."""
        if value_format == "parquet" and self._path is None:
            raise UserError("Parquet cannot be read from standard input", hint="name the file")
        if value_format != "auto":
            return value_format
        if self._path is None:
            return "ndjson" if self._key is not None or self._timestamp is not None else "text"
        stem = self._path.with_suffix("") if self._packed is not None else self._path
        suffix = stem.suffix.lower()
        if suffix == ".json":
            self._check_first_line()
        if suffix in _FORMATS:
            return _FORMATS[suffix]
        if suffix in (".txt", ".log", ".csv", ".tsv") or not self._regular:
            return "ndjson" if self._key is not None or self._timestamp is not None else "text"
        return "ndjson" if self._first_line().lstrip()[:1] in (b"{", b"[") else "text"

    def _first_line(self) -> bytes:
        if not self._regular:
            return b""
        with self._opened() as read:
            block = read() or b""
        self.bytes_read = 0
        return next((line for line in block.removeprefix(MARK).split(b"\n") if line.strip()), b"")

    def _check_first_line(self) -> None:
        """A .json file may be one document over many lines, of which no line is an event."""
        line = self._first_line()
        if not line or len(line) >= BLOCK_BYTES - 1 - len(MARK):
            return
        try:
            orjson.loads(line)
        except orjson.JSONDecodeError:
            raise UserError(
                f"{self.name}: its first line is no JSON value; one event per line is expected",
                hint="to send its lines as they are, say --format ndjson or --format text",
            ) from None


#: The columns of the path are left out: they are not the file's.
_FROM = "FROM read_parquet(?, hive_partitioning = false)"


class _Parquet:
    """The rows of a Parquet file, through DuckDB; its schema is checked at once."""

    def __init__(self, file: EventFile, path: Path | None, key: str | None, timestamp: str | None) -> None:
        assert path is not None
        self._file = file
        self._pattern = glob.escape(str(path.absolute()))
        with self._connected() as connection:
            try:
                described = connection.execute(f"DESCRIBE {_FROM}", [self._pattern]).fetchall()
                counted = connection.execute(f"SELECT count(*) {_FROM}", [self._pattern]).fetchone()
            except duckdb.Error as error:
                raise UserError(f"{file.name} is not Parquet: {str(error).splitlines()[0]}") from None
        self._rows = counted[0] if counted else 0
        types = {str(row[0]): str(row[1]) for row in described}
        for option, name in (("--key", key), ("--timestamp", timestamp)):
            if name is not None and name not in types:
                raise UserError(f"{file.name} has no column {name!r} for {option}; it has {', '.join(types)}")
        members = ", ".join(f"{_quoted(name)}: {_json_of(name, kind)}" for name, kind in types.items())
        moment = _timestamp_sql(timestamp, types, file.name)
        self._query = f"SELECT to_json({{{members}}})::VARCHAR, {_key_sql(key, types)}, {moment} {_FROM}"
        self._keyed = key is not None
        self._timed = timestamp

    @contextlib.contextmanager
    def _connected(self) -> Iterator[duckdb.DuckDBPyConnection]:
        config: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": False,
            "memory_limit": f"{PARQUET_MEMORY_BYTES_MAX}B",
        }
        with duckdb.connect(config=config) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET enable_progress_bar = false")  # on standard output, in some interpreters
            yield connection

    def events(self) -> Iterator[Events]:
        number = 1
        with self._connected() as connection:
            connection.execute(self._query, [self._pattern])
            try:
                while rows := connection.fetchmany(PARQUET_ROWS):
                    yield self._of_rows(rows, number)
                    number += len(rows)
                    if self._file.bytes_total and self._rows:
                        self._file.bytes_read = self._file.bytes_total * (number - 1) // self._rows
            except duckdb.Error as error:
                raise UserError(
                    f"{self._file.name}, after row {number - 1}: {str(error).splitlines()[0]}"
                ) from None

    def _of_rows(self, rows: list[tuple[str, str | bytes | None, int | None]], number: int) -> Events:
        numbers = range(number, number + len(rows))
        timestamps: list[int] | None = None
        if self._timed is not None:
            timestamps = []
            for at, row in zip(numbers, rows, strict=True):
                try:
                    timestamps.append(timestamp_of(row[2], self._timed))
                except ValueError as error:
                    raise UserError(f"{self._file.name}, row {at}: {error}") from None
        keys = [row[1].encode() if isinstance(row[1], str) else row[1] for row in rows] if self._keyed else None
        values = [without_words(row[0], quoted=False).encode() for row in rows]
        return Events(self._file.name, "row", numbers, values, keys, timestamps)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _json_of(name: str, kind: str) -> str:
    return f"base64({_quoted(name)})" if kind == "BLOB" else _quoted(name)


def _key_sql(key: str | None, types: dict[str, str]) -> str:
    if key is None:
        return "NULL"
    return _quoted(key) if types[key] == "BLOB" else f"{_quoted(key)}::VARCHAR"


def _timestamp_sql(name: str | None, types: dict[str, str], source: str) -> str:
    if name is None:
        return "NULL"
    kind = types[name]
    if kind == "DATE" or kind.startswith("TIMESTAMP"):
        return f"epoch_ms({_quoted(name)})"
    if kind.endswith("INT") or kind in ("INTEGER", "UINTEGER", "DOUBLE", "VARCHAR"):
        return _quoted(name)
    raise UserError(f"{source}: column {name!r} is {kind}; --timestamp takes a timestamp, a date, ms or ISO 8601")


def open_files(
    names: Sequence[str], value_format: Format, *, key: str | None, timestamp: str | None
) -> list[EventFile]:
    """The files in order. Every one that cannot be read is named, in one UserError, before anything else."""
    faults = []
    for name in names:
        if name == STDIN:
            continue
        path = Path(name)
        try:
            if path.is_dir():
                faults.append(f"{name}: is a directory")
            elif path.is_file():
                path.open("rb").close()
            else:
                path.stat()
        except OSError as error:
            faults.append(f"{name}: {error.strerror}")
    if list(names).count(STDIN) > 1:
        faults.append("- : standard input can be read once only")
    if faults:
        raise UserError("\n  ".join(["these files cannot be read:", *faults]))
    return [EventFile(name, value_format, key=key, timestamp=timestamp) for name in names]
