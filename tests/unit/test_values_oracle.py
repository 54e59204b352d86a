"""The JSON decoder against an oracle: the coercion table once more, in plain Python, record by record."""

import json
import math
import re
import struct
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Batch, from_rows
from engine.values import DEPTH_MAX, JsonDecoder
from engine.values.documents import parse, repeated_member
from tests.forms import examples

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FAULT = object()


class Number(str):
    """A JSON number as written."""

    __slots__ = ()

    @property
    def whole(self) -> bool:
        return re.fullmatch(r"-?\d+", self) is not None

    @property
    def exact(self) -> tuple[bool, str, int]:
        """Sign, digits without zeros at the ends, and exponent: the value, without working it out."""
        sign, whole, fraction, exponent = re.fullmatch(r"(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?", self).groups(
            default=""
        )
        written = whole + fraction
        digits = written.strip("0")
        power = int(exponent or 0) - len(fraction) + len(written) - len(written.rstrip("0"))
        return (sign == "-", digits, power) if digits else (False, "", 0)


class BadError(Exception):
    pass


def no_repeats(pairs):
    """The object of the pairs; a name that comes again is refused."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise BadError
    return dict(pairs)


def constant(_text):
    raise BadError


def check(value, depth):
    """Refuse what is nested too deep, lone surrogates, and numbers beyond a double."""
    if isinstance(value, (dict, list)):
        if depth > DEPTH_MAX:
            raise BadError
        for name in value if isinstance(value, dict) else ():
            name.encode()
        for child in value.values() if isinstance(value, dict) else value:
            check(child, depth + 1)
    elif isinstance(value, Number):
        if math.isinf(float(value)):
            raise BadError
    elif isinstance(value, str):
        value.encode()


def oracle_document(raw: bytes):
    """The object of a record's value with its numbers as written, or FAULT."""
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=no_repeats,
            parse_int=Number,
            parse_float=Number,
            parse_constant=constant,
        )
        check(value, 1)
    except (ValueError, BadError):
        return FAULT
    return value if isinstance(value, dict) else FAULT


def same_json(text: str, value: object) -> bool:
    """Whether a JSON text holds a value, number for number."""

    def plain(one):
        if isinstance(one, Number):
            return ("int" if one.whole else "float", one.exact)
        if isinstance(one, list):
            return [plain(child) for child in one]
        if isinstance(one, dict):
            return {name: plain(child) for name, child in one.items()}
        return one

    return plain(json.loads(text, parse_int=Number, parse_float=Number)) == plain(value)


BITS = {"TINYINT": 8, "SMALLINT": 16, "INTEGER": 32, "BIGINT": 64}
STAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?(Z|([+-])(\d\d):(\d\d))?", re.ASCII
)


def oracle_time(value, name):
    if isinstance(value, Number):
        if not value.whole:
            return FAULT
        try:
            stamp = EPOCH + timedelta(milliseconds=int(value))
        except OverflowError:
            return FAULT
    else:
        match = STAMP.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            return FAULT
        if name == "TIMESTAMP_MS" and len(match[7] or "") > 3:
            return FAULT
        if name == "TIMESTAMPTZ" and match[8] is None:
            return FAULT
        micros = int((match[7] or "0").ljust(6, "0"))
        try:
            stamp = datetime(*(int(match[i] or 0) for i in range(1, 7)), micros, tzinfo=UTC)
            if match[9]:
                if int(match[10]) > 23 or int(match[11]) > 59:
                    return FAULT
                ahead = timedelta(hours=int(match[10]), minutes=int(match[11]))
                stamp = stamp - ahead if match[9] == "+" else stamp + ahead
        except (ValueError, OverflowError):
            return FAULT
    return stamp if name == "TIMESTAMPTZ" else stamp.replace(tzinfo=None)


def oracle_value(value, name):
    """What a column of a type holds for a value, or FAULT; of JSON columns the value itself."""
    if value is None or name == "JSON":
        return value
    if name.endswith("[]"):
        if not isinstance(value, list):
            return FAULT
        elements = [oracle_value(child, name[:-2]) for child in value]
        return FAULT if FAULT in elements else elements
    if name == "BOOLEAN":
        return value if isinstance(value, bool) else FAULT
    if name.startswith("TIMESTAMP"):
        return oracle_time(value, name)
    if name in ("VARCHAR", "DATE"):
        if not isinstance(value, str) or isinstance(value, Number):
            return FAULT
        if name == "VARCHAR":
            return value
        try:
            return date.fromisoformat(value) if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value) else FAULT
        except ValueError:
            return FAULT
    if not isinstance(value, Number):
        return FAULT
    return oracle_number(value, name)


def oracle_number(value, name):
    if name.lstrip("U") in BITS:
        bits = BITS[name.lstrip("U")]
        low, high = (0, 2**bits - 1) if name[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return int(value) if value.whole and low <= int(value) <= high else FAULT
    if name == "DOUBLE":
        return float(value)
    if name == "FLOAT":
        try:
            return struct.unpack("f", struct.pack("f", float(value)))[0]
        except OverflowError:
            return FAULT
    digits, scale = map(int, name[8:-1].split(","))
    negative, figures, power = value.exact
    if figures and (power < -scale or len(figures) + power > digits - scale):
        return FAULT
    return Decimal(f"{'-' if negative else ''}{figures or 0}e{power}")


NAMES = ["a", "b", "c", "é", '"', ""]
TYPES = [
    *("BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
    *("FLOAT", "DOUBLE", "DECIMAL(9,2)", "DECIMAL(38,0)", "DECIMAL(38,38)", "VARCHAR", "DATE", "JSON", "JSON"),
    *("TIMESTAMP", "TIMESTAMP_MS", "TIMESTAMPTZ", "BIGINT[]", "DECIMAL(4,1)[]", "JSON[]", "VARCHAR[][]"),
]
EDGES = [
    sign + str(2**bits + off) for bits in (7, 8, 15, 16, 31, 32, 53, 63, 64) for off in (-1, 0, 1) for sign in "- "
]
numbers = st.one_of(
    st.sampled_from([edge.strip() for edge in EDGES]),
    st.sampled_from(
        [
            "0",
            "-0",
            "-0.0",
            "1.7",
            "1.0",
            "1e3",
            "1E+2",
            "1e400",
            "-1e400",
            "1e-400",
            "5e-324",
            "1.2e-323",
            "2.2250738585072011e-308",
            "1e-0",
            "0e400",
            "0E+9999",
            "1e39",
            "3.4028235677973366e38",
            "3.4028236e38",
            "1e15",
            "1e16",
            "1e22",
            "1e23",
            "123456789012345678901234567890",
            "0.1",
            "1.255",
            "1.500",
            "1.000000000000000005",
            "9999999.99",
            "9999999.999",
            "10000000",
            "0.1000000000000000055511151231257827",
            "1e-99999999999999999999",
            "0e-99999999999999999999",
            "-62135596800000",
            "-62135596800001",
            "253402300799999",
            "253402300800000",
            "1700000000000",
            "1700000000000000",
            "12345678901234567e-25",
            "123456789012345e-130",
        ]
    ),
    st.integers().map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(allow_nan=False, allow_infinity=False, places=2).map(lambda number: f"{number:f}"),
    st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)
zones = st.sampled_from(["", "Z", "+02:00", "-23:59", "+24:00", "z", "+0200", "+01:60"])
stamps = st.one_of(
    st.builds(lambda when, sep, zone: when.isoformat(sep) + zone, st.datetimes(), st.sampled_from("T "), zones),
    st.builds(lambda when, zone: when.isoformat()[:16] + zone, st.datetimes(), zones),
    st.builds(lambda when, zone: when.isoformat(timespec="milliseconds") + zone, st.datetimes(), zones),
    st.sampled_from(
        [
            "0000-01-01T00:00:00",
            "0001-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
            "2024-02-30T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:60Z",
            "2024-13-01T00:00",
            "2024-01-01",
            "0000-01-01",
            "2023-02-29",
            "2024-01-01T00:00:00.1234567Z",
            "2024-1-1",
            "20240101",
            "2024-W01-1",
            "2024-01-01T00",
            "２０２４-01-01",
        ]
    ),
    st.dates().map(str),
    st.just("2024-01-01\n"),
)
nasty_text = st.one_of(
    st.text(max_size=8),
    st.lists(st.sampled_from(['":', '" :', '"', ":", "\\", "é", "a", "{", "[", "\x00", "\U0001f600", " :"])).map(
        "".join
    ),
)
strings = st.builds(
    lambda text, ascii_only: json.dumps(text, ensure_ascii=ascii_only), st.one_of(nasty_text, stamps), st.booleans()
)
escapes = st.sampled_from(
    [r'"\u0022:"', r'"\u0022\u003a"', r'"\"\u003a"', r'"\":"', r'"\" :"', r'"\ud83d\ude00"', r'"\/"']
)
lone = st.sampled_from([r'"\ud800"', r'"\udc00x"', r'"\ud800\ud800"'])
space = st.sampled_from(["", "", "", " ", "\n", "\t\r "])
names = st.sampled_from([*(json.dumps(name) for name in NAMES), r'"\u0061"', r'"\u0022"', '"zz"'])


def containers(child):
    members = st.lists(st.tuples(names, space, space, child), max_size=4)
    return st.one_of(
        st.lists(child, max_size=4).map(lambda children: f"[{','.join(children)}]"),
        st.tuples(space, members).map(
            lambda both: "{" + both[0] + ",".join(f"{n}{a}:{b}{v}" for n, a, b, v in both[1]) + "}"
        ),
    )


atoms = st.one_of(st.sampled_from(["null", "true", "false"]), numbers, numbers, strings, strings, escapes)
json_texts = st.recursive(atoms, containers, max_leaves=12)
objects = st.builds(
    lambda members, gap: "{" + ",".join(f"{name}{before}:{gap}{value}" for name, before, value in members) + "}",
    st.one_of(
        st.lists(
            st.tuples(names, st.just(""), json_texts), max_size=6, unique_by=lambda member: json.loads(member[0])
        ),
        st.lists(st.tuples(names, space, json_texts), max_size=6),
    ),
    space,
).map(str.encode)
damaged = st.builds(
    lambda raw, at, junk: raw[: at % (len(raw) + 1)] + junk + raw[at % (len(raw) + 1) :],
    objects,
    st.integers(0, 200),
    st.one_of(
        st.binary(max_size=2), st.sampled_from([b"\xef\xbb\xbf", b"\xed\xa0\x80", b"NaN", b",", b"}", b"\x00"])
    ),
)
wrapped = st.one_of(lone, json_texts).map(lambda text: f'{{"a":{text}}}'.encode())
records = st.one_of(objects, objects, objects, wrapped, damaged, json_texts.map(str.encode), st.binary(max_size=6))


def batch_of(values) -> Batch:
    rows = [(offset, 1000, None, value, ()) for offset, value in enumerate(values)]
    return from_rows("t", 0, rows, start=0, end=len(rows))


def compare(row: dict[str, object], value: dict[str, object], columns: dict[str, str]) -> None:
    """One decoded row against the document of its record."""
    for name, type_name in columns.items():
        expected, actual = oracle_value(value.get(name), type_name), row[name]
        if type_name == "JSON":
            assert expected is None if actual is None else same_json(actual, expected)
        elif type_name == "JSON[]":
            assert (actual is None) == (expected is None)
            for text, child in zip(actual or [], expected or [], strict=True):
                assert child is None if text is None else same_json(text, child)
        else:
            assert actual == expected
    unknown = {name: member for name, member in value.items() if name not in columns}
    assert (row["_rest"] is None) == (not unknown)
    if unknown:
        assert same_json(row["_rest"], unknown)


@settings(max_examples=examples(150, 3_000), deadline=None)
@given(
    values=st.lists(records, min_size=1, max_size=8),
    columns=st.dictionaries(st.sampled_from([name for name in NAMES if name]), st.sampled_from(TYPES), max_size=5),
)
def test_oracle(values: list[bytes], columns: dict[str, str]) -> None:
    """Whatever the records and the columns: each record is the oracle's row or, alone, a fault."""
    decoded = JsonDecoder(columns, rest=True).decode(batch_of(values))
    documents = [oracle_document(raw) for raw in values]
    good = [
        offset
        for offset, value in enumerate(documents)
        if value is not FAULT
        and FAULT not in [oracle_value(value.get(name), kind) for name, kind in columns.items()]
    ]
    assert decoded.columns.column("_offset").to_pylist() == good
    assert [fault.offset for fault in decoded.faults] == sorted(set(range(len(values))) - set(good))
    for row, offset in zip(decoded.columns.to_pylist(), good, strict=True):
        compare(row, documents[offset], columns)


@settings(max_examples=examples(100, 3_000), deadline=None)
@given(values=st.lists(objects, min_size=1, max_size=5))
def test_repeated_members_are_proven_absent(values: list[bytes]) -> None:
    """The count that proves that no member stands twice agrees with the exact check, whatever the strings."""
    documents = parse(pa.array(values, pa.binary()), {})
    for row, raw in enumerate(values):
        reason = documents.wrong.get(row)
        if reason is not None and "more than once" not in reason:
            continue
        assert (reason is not None) == (repeated_member(raw) is not None)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":1,"s":"\\u0022:"}',
        b'{"a":1,"a":1,"s":"\\"\\u003a"}',
        b'{"a" :1,"a":1,"s":"\\":"}',
        b'{"a":1,"\\u0061":1}',
        b'{"x":{"a":1,"a":{"":1}}}',
        b'{"a":"\\":","a":2}',
        b'{"x":[[{"a":1},{"a":1,"a":1}]],"b":"\\" :"}',
    ],
)
def test_repeated_members_are_found(raw: bytes) -> None:
    """Repeats are found where escapes or blanks could make up for the lost count."""
    assert "more than once" in parse(pa.array([raw]), {}).wrong[0]


LEGAL = {
    "BOOLEAN": st.booleans(),
    "SMALLINT": st.integers(-(2**15), 2**15 - 1),
    "BIGINT": st.integers(-(2**63), 2**63 - 1),
    "UBIGINT": st.integers(0, 2**64 - 1),
    "DOUBLE": st.floats(-1e200, 1e200),
    "VARCHAR": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12),
    "DATE": st.dates().map(str),
    "TIMESTAMP": st.datetimes().map(datetime.isoformat),
}


@settings(max_examples=examples(40, 600), deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries({name: st.one_of(st.none(), legal) for name, legal in LEGAL.items()}),
        min_size=1,
        max_size=20,
    )
)
def test_agrees_with_duckdb(rows: list[dict[str, object]]) -> None:
    """Where a value is legal for its column, DuckDB's json_transform gives the same value."""
    texts = [json.dumps(row) for row in rows]
    decoded = JsonDecoder({name: name for name in LEGAL}, rest=False, trace=False).decode(
        batch_of([text.encode() for text in texts])
    )
    assert decoded.faults == ()
    documents = pa.table({"document": texts})
    structure = json.dumps({name: name for name in LEGAL})
    with duckdb.connect() as connection:
        connection.register("documents", documents)
        theirs = connection.execute(
            "SELECT unnest(json_transform(document, ?)) FROM documents", [structure]
        ).to_arrow_table()
    assert decoded.columns.to_pylist() == theirs.to_pylist()
