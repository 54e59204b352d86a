"""The compiled JSON decoder against its reference: same columns, same faults, same counts, whatever the bytes."""

import ctypes
import json
import mmap
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Batch, from_rows
from engine.values import Decoded
from engine.values.fast import entry
from engine.values.fast.decoder import Kernel
from engine.values.fast.kernel import UNKNOWN_MAX
from engine.values.fast.nested import LEVELS_MAX, NAMES_MAX
from engine.values.json_decoder import JsonDecoder, ReferenceJsonDecoder
from engine.values.schema import declared
from tests.forms import examples
from tests.unit.test_values_oracle import NAMES, TYPES, json_texts, names, numbers, records, space, stamps, strings
from tests.unit.test_values_suite import BAD_STRINGS, BLNS, SAMPLE, SUITE, TRANSFORM

#: Generated batches for each property; HEADRACE_FUZZ=long tries many more.
EXAMPLES = examples(100, 3_000)

CLICK = {
    "event_id": "VARCHAR",
    "user_id": "BIGINT",
    "session": "VARCHAR",
    "page": "VARCHAR",
    "ts": "TIMESTAMP_MS",
    "duration": "DOUBLE",
    "converted": "BOOLEAN",
    "country": "VARCHAR",
}
EVENT = (
    b'{"event_id":"evt-000000000001","user_id":5412877,"session":"9f3c51d2a0b7","page":"/products/c-1/i-22",'
    b'"ts":1790000000001,"duration":312.07,"converted":false,"country":"DE"}'
)


def batch_of(values: Iterable[bytes | None]) -> Batch:
    rows = [(5 + at, 1000 + at, None, value, ()) for at, value in enumerate(values)]
    return from_rows("t", 3, rows, start=5, end=5 + len(rows))


def bits(array: pa.Array) -> pa.Array:
    """An array whose equality tells zeros by their sign."""
    if pa.types.is_floating(array.type):
        return array.view(pa.int64() if array.type.bit_width == 64 else pa.int32())
    return array


def assert_same(new: Decoded, old: Decoded) -> None:
    """Bit for bit the same columns, and the same faults, reasons included."""
    assert new.faults == old.faults
    assert new.dropped == old.dropped
    assert new.columns.schema.equals(old.columns.schema, check_metadata=True)
    new.columns.validate(full=True)
    assert new.columns.num_rows == old.columns.num_rows
    for name, left, right in zip(old.columns.schema.names, new.columns.columns, old.columns.columns, strict=True):
        assert bits(left).equals(bits(right)), (name, left.to_pylist(), right.to_pylist())


def taken(columns: Mapping[str, str], batch: Batch, *, rest: bool = True) -> int:
    """How many records the kernel takes by itself."""
    parsed = Kernel(declared(columns), rest=rest).parse(batch.records.column("value"))
    return len(batch) - len(parsed.slow) - len(parsed.nulls)


def check(columns: Mapping[str, str], values: Iterable[bytes | None], *, rest: bool = True) -> int:
    """Hold the decoder equal to the reference on these values, and give `taken`."""
    batch = batch_of(values)
    new, old = JsonDecoder(columns, rest=rest), ReferenceJsonDecoder(columns, rest=rest)
    assert_same(new.decode(batch), old.decode(batch))
    return taken(columns, batch, rest=rest)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    values=st.lists(st.one_of(st.none(), records), min_size=1, max_size=8),
    columns=st.dictionaries(st.sampled_from([name for name in NAMES if name]), st.sampled_from(TYPES), max_size=5),
    rest=st.booleans(),
    on_null_value=st.sampled_from(["fail", "drop"]),
    skipped=st.integers(0, 2),
)
def test_any_records(values, columns, rest, on_null_value, skipped) -> None:
    """Whatever the records, the columns and the options: what the reference gives."""
    batch = batch_of(values).tail(skipped)
    new = JsonDecoder(columns, rest=rest, on_null_value=on_null_value)
    old = ReferenceJsonDecoder(columns, rest=rest, on_null_value=on_null_value)
    assert_same(new.decode(batch), old.decode(batch))


def of_type(name: str) -> st.SearchStrategy[str]:
    """JSON texts that a column of a type mostly takes."""
    if name == "BOOLEAN":
        return st.sampled_from(["true", "false", "null"])
    if name == "VARCHAR":
        return strings
    if name == "DATE" or name.startswith("TIMESTAMP"):
        return st.one_of(stamps.map(json.dumps), st.integers(-(10**14), 10**15).map(str))
    return json_texts if name.startswith("JSON") or name.endswith("[]") else numbers


@st.composite
def streams(draw: st.DrawFn) -> tuple[dict[str, str], list[bytes]]:
    """Columns, and records of mostly one shape: some shuffled, some with members missing, repeated or unknown."""
    keys = ["id", "name", "é", "a somewhat longer name of a member", "t", "n"]
    columns = draw(st.dictionaries(st.sampled_from(keys), st.sampled_from(TYPES), min_size=1, max_size=5))
    gap = draw(space)
    values = []
    for _ in range(draw(st.integers(1, 12))):
        members = [(json.dumps(key, ensure_ascii=False), draw(of_type(kind))) for key, kind in columns.items()]
        change = draw(st.integers(0, 9))
        if change == 0:
            members = draw(st.permutations(members))
        elif change == 1:
            members = members[1:]
        elif change == 2:
            members.append(draw(st.sampled_from(members)))
        elif change <= 4:
            members.insert(draw(st.integers(0, len(members))), (draw(names), draw(json_texts)))
        text = f"{gap},{gap}".join(f"{name}:{gap}{value}" for name, value in members)
        raw = bytearray(f"{{{text}}}".encode())
        if draw(st.integers(0, 9)) == 0:
            raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
        if draw(st.integers(0, 19)) == 0:
            del raw[draw(st.integers(0, len(raw))) :]
        values.append(bytes(raw))
    return columns, values


@settings(max_examples=EXAMPLES, deadline=None)
@given(stream=streams(), rest=st.booleans())
def test_streams(stream: tuple[dict[str, str], list[bytes]], rest: bool) -> None:
    """Records of mostly one shape, where bets are won and lost: what the reference gives."""
    check(*stream, rest=rest)


def test_every_truncation_and_every_byte() -> None:
    """An event cut off anywhere, or with any one byte set to any of the telling ones: as the reference has it."""
    telling = b'\x00\x1f \n"\\/{}[]:,-+.0129eEtfnu\x7f\x80\xbf\xc2\xe0\xed\xf4\xff'
    values = [EVENT[:end] for end in range(len(EVENT) + 1)]
    values += [EVENT[:at] + bytes([octet]) + EVENT[at + 1 :] for at in range(len(EVENT)) for octet in telling]
    assert check(CLICK, values) > 500
    assert check({"duration": "JSON"}, values, rest=False) > 500


SPELLINGS = [
    *(
        "0",
        "-0",
        "-0.0",
        "0.0",
        "0e5",
        "-0e0",
        "1.0",
        "1.50",
        "1e3",
        "1E+2",
        "0.001",
        "0.0001",
        "0.00001",
        "0.0000012",
        "0.00000000012",
        "01",
        "1.",
    ),
    *("-", "1e", "+1", ".5", "1.e5", "00", "0x1", "1_0", "NaN", "1e400", "1e-400", "5e-324", "3.4028235e38"),
    *("3.4028235677973366e38", "3.4028235677973362e38", "1e39", "100000000000000.0", "1000000000000000.0"),
    *("1234567890123456.5", "12345678901234567.0", "0.10", "10.0", "9007199254740993", "9007199254740993.0"),
    *("1.7976931348623157e308", "1.7976931348623159e308", "17976931348623157e292", "2.2250738585072011e-308"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809"),
    *("18446744073709551615", "18446744073709551616", "9999999999999999999", "1" * 300, "1" * 310),
    *("0." + "1" * 30, "253402300799999", "253402300800000", "-62135596800000", "-62135596800001"),
]


@pytest.mark.parametrize("kind", sorted({*TYPES, "DECIMAL(18,3)"}))
def test_spellings_of_numbers(kind: str) -> None:
    """Numbers at the edges of types, and no numbers, alone and between others, in a column and in ``_rest``."""
    near = [
        str(sign * 2**power + off)
        for power in (7, 8, 15, 16, 31, 32, 63, 64)
        for sign in (1, -1)
        for off in (-1, 0, 1)
    ]
    for shape in (b'{"c":%s}', b'{"a":1,"c":%s ,"b":2}', b'{"c":[%s,{"x":%s}]}', b'{"a":%s}'):
        check({"c": kind}, [shape.replace(b"%s", text.encode()) for text in [*SPELLINGS, *near]])


def test_doubles_are_the_nearest() -> None:
    """Random decimals, halves between doubles, and what repr gives: the bits that float() gives, by the kernel."""
    chance = random.Random(20261123)
    texts = [repr(chance.uniform(-1, 1) * 10 ** chance.randrange(-200, 200)) for _ in range(20_000)]
    texts += [f"{chance.randrange(10**18)}e{chance.randrange(-290, 270)}" for _ in range(20_000)]
    texts += [f"{chance.randrange(10**9) / 100}" for _ in range(20_000)]
    for _ in range(20_000):
        power = chance.randrange(5)
        half = (chance.getrandbits(52) | 1 << 52) * 2 + 1
        texts.append(f"{half * 5**power}e-{power}")
    batch = batch_of(f'{{"d":{text}}}'.encode() for text in texts)
    decoded = JsonDecoder({"d": "DOUBLE"}, rest=False).decode(batch)
    expected = np.array([float(text) for text in texts])
    actual = decoded.columns.column("d").to_numpy()
    assert np.array_equal(actual.view(np.int64), expected.view(np.int64))
    assert taken({"d": "DOUBLE"}, batch) > 0.85 * len(texts)


STRINGS = [
    *BAD_STRINGS,
    *(
        "é",
        "漢字",
        "😀",
        "a" * 31,
        "a" * 32,
        "a" * 33,
        "é" * 40,
        "a" * 29 + "😀",
        "\x7f",
        "\ufffe\uffff",
        "\U0010ffff",
    ),
]
RAW_STRINGS = [
    rb"\"\\\/\b\f\n\r\t", rb"\u0041\u00e9\u6f22", rb"\ud83d\ude00", rb"\ud800", rb"\udc00", rb"\ud83d\u0041",
    rb"\u00", rb"\x", rb"\U0041", rb"\u12g4", b"\\", b"\x00", b"\x1f", b"\n", b"\xc0\xaf", b"\xc1\xbf",
    b"\xe0\x80\x80",
    b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xc3", b"\xe6\xbc", b"\xf0\x9f\x98", b"\x80",
    b"\xff", b"\xc3\xa9\xc3", b"a" * 40 + b"\xed\xbf\xbf" + b"a" * 40, b"a" * 31 + b"\\n" + b"b" * 31 + b"\\u00e9",
]  # fmt: skip


def test_strings() -> None:
    """Good and bad strings, at any distance from the record's start and end: in columns, names and ``_rest``."""
    whole = [*(json.dumps(text, ensure_ascii=False).encode()[1:-1] for text in STRINGS), *RAW_STRINGS]
    values = []
    for text in whole:
        for pad in (b"", b"x" * 9, b"x" * 30, b"x" * 64):
            values += [
                b'{"v":"' + text + b'"}',
                b'{"v":"' + pad + text + pad + b'","j":"' + text + b'","' + text + b'":"' + pad + text + b'"}',
                b'{"v":"' + pad + text,
                b'{"o":{"' + text + b'":["' + pad + text + b'"]}}',
            ]
    assert check({"v": "VARCHAR", "j": "JSON"}, values) > 0.3 * len(values)


def test_nested_values() -> None:
    """Arrays and objects, spaced, with repeats, at the kernel's limits: in a column and in ``_rest``."""
    texts = [
        *(
            "[]",
            "{}",
            "[ ]",
            "{ }",
            "[1,]",
            "[,1]",
            "{,}",
            '{"a":1,}',
            "[1 2]",
            '{"a" 1}',
            '{"a"::1}',
            "[1}",
            '{"a":1]',
        ),
        *(
            '{"a":1,"a":2}',
            '{"a":{"a":1},"b":{"a":2}}',
            '{"a":{"b":1,"b":2}}',
            '[{"a":1},{"a":1}]',
            '{"\\u0061":1,"a":2}',
        ),
        *(
            '{ "lat" : 52.5 , "lon" : [ 13.4 , null , true ] }',
            '{"s":"a b { \\" : ,"}',
            '[ "\\\\" , " " ]',
            "{1:2}",
            "[",
        ),
        *("[" * levels + "]" * levels for levels in (LEVELS_MAX - 1, LEVELS_MAX, LEVELS_MAX + 1, 199, 200, 201)),
        *('{"a":' * levels + "1" + "}" * levels for levels in (LEVELS_MAX, LEVELS_MAX + 1)),
        *(json.dumps({str(at): at for at in range(count)}) for count in (NAMES_MAX, NAMES_MAX + 1)),
    ]
    for shape in ('{"j":%s}', '{"u":%s}', '{"u":%s,"v":"x","w":%s}'):
        assert check({"j": "JSON", "v": "VARCHAR"}, [shape.replace("%s", text).encode() for text in texts]) == 13


def test_repeated_members() -> None:
    """A member that comes twice, of a column or unknown, null or not, beside or far away, is never taken."""
    values = [
        b'{"a":%s,"x":%s,"b":%s,"%s":%s}' % (one, one, one, again, other)
        for again in (b"a", b"x", b"b")
        for one in (b"1", b"null")
        for other in (b"1", b"null")
    ]
    for rest in (True, False):
        assert check({"a": "BIGINT", "b": "JSON"}, values, rest=rest) == 0


def test_escaped_names() -> None:
    """A name with escapes may be that of a column, or of another member: the kernel leaves it."""
    texts = [rb"\u0061", rb"\/", rb"a\n", rb"\"", rb"\u00e9", rb"\ud83d\ude00"]
    values = [b'{"a":1,"%s":2}' % text for text in texts] + [b'{"%s":1}' % text for text in texts]
    for columns in ({"a": "BIGINT"}, {"a": "BIGINT", "é": "BIGINT", '"': "BIGINT", "a\n": "JSON"}):
        assert check(columns, values) == 0
        assert check(columns, values, rest=False) == 0


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name: str) -> None:
    """Each input made to break parsers, whole and as a member, between good records."""
    raw = SAMPLE[name]
    values = [EVENT, raw, b'{"a":' + raw + b"}", b'{"x":' + raw + b',"a":1}', EVENT]
    check(CLICK, values)
    check({"a": "JSON"}, values, rest=False)


@pytest.mark.skipif(not SUITE, reason="the JSON parsing test suite is not there")
def test_suite() -> None:
    """The JSON parsing test suite, whole and as members; what it says is no JSON is never taken."""
    raws = {path.name: path.read_bytes() for path in [*SUITE, *TRANSFORM]}
    assert len(raws) > 300
    for shape in (b"%s", b'{"a":%s}', b'{"b":%s}', b'{"b":"x","a":%s,"c":%s}'):
        for columns in ({"a": "VARCHAR"}, {"a": "JSON"}, {"a": "DOUBLE"}):
            check(columns, [shape.replace(b"%s", raw) for raw in raws.values() if len(raw) < 10_000])
    for name, raw in raws.items():
        if name.startswith("n_"):
            assert taken({"a": "JSON"}, batch_of([raw])) == 0


@pytest.mark.skipif(not BLNS.exists(), reason="the list of naughty strings is not there")
def test_naughty_strings() -> None:
    """Strings that break programs are taken by the kernel, escaped or not, and come back the same."""
    texts = json.loads(BLNS.read_text())
    values = [
        json.dumps({"v": text, "j": text, "more": text}, ensure_ascii=ascii_only).encode()
        for text in texts
        for ascii_only in (False, True)
    ]
    assert check({"v": "VARCHAR", "j": "JSON"}, values) > 0.5 * len(values)
    only = [json.dumps({"v": text}, ensure_ascii=ascii_only).encode() for text in texts for ascii_only in (0, 1)]
    assert check({"v": "VARCHAR"}, only) == len(only)


@pytest.mark.parametrize(
    ("columns", "record"),
    [
        (CLICK, EVENT),
        (CLICK, json.dumps(json.loads(EVENT), indent=2).encode()),
        (CLICK, EVENT[:-1] + b',"agent":"x","ip":"10.0.0.1"}'),
        (CLICK, EVENT[:-1] + b',"geo":{"lat":52.5,"lon":13.4,"tags":["a",null,true]}}'),
        ({**CLICK, "geo": "JSON"}, EVENT[:-1] + b', "geo": {"lat": 52.5, "lon": 13.4}}'),
        (CLICK, EVENT.replace(b"/products", "/prödukte/漢字".encode())),
        (CLICK, EVENT.replace(b"/products", rb"\/pr\u00f6dukte \"\ud83d\ude00\"")),
        (CLICK, EVENT.replace(b"312.07", b"52.520008000000004")),
        ({"ts": "TIMESTAMP", "day": "DATE"}, b'{"ts":"2024-02-29T12:00:00.123456+02:00","day":"2024-02-29"}'),
        ({"ts": "TIMESTAMPTZ"}, b'{"ts":"2024-02-29 12:00:00Z"}'),
        ({"p": "DECIMAL(9,2)", "f": "FLOAT", "s": "TINYINT", "u": "UBIGINT"}, b'{"p":-12.5,"f":1e3,"s":-7,"u":1}'),
        ({"a": "BIGINT", "b": "VARCHAR[]"}, b'{"b":null,"a":null}'),
        ({"a": "BIGINT"}, b" { } "),
    ],
)
def test_is_taken(columns: Mapping[str, str], record: bytes) -> None:
    """What streams are made of is taken by the kernel itself: every record of them."""
    assert check(columns, [record] * 20) == 20


def test_names_of_a_batch_are_limited() -> None:
    """With more unknown names than the kernel keeps, records are slow, not wrong."""
    values = [b'{"a":1,"n%d":2}' % at for at in range(UNKNOWN_MAX + 50)]
    assert check({"a": "BIGINT"}, values) == UNKNOWN_MAX


def test_names_that_hash_alike() -> None:
    """Thousands of columns, a record with all of them, and unknown names beside: each value in its column."""
    columns = {f"c{at}": "BIGINT" for at in range(1_500)}
    everything = json.dumps({name: at for at, name in enumerate(columns)}).encode()
    assert check(columns, [everything, b'{"c1499":7,"c0":8,"c1500":9}', everything]) == 3


def test_slow_and_fast_take_turns() -> None:
    """Good, slow, bad and null records of every type, each kind in its place, in one batch."""
    good = {
        "v": '"text"', "j": '{"a":1}', "n": "12", "d": "1.5", "f": "2.5", "b": "true",
        "t": '"2024-01-01T00:00:00Z"', "day": '"2024-01-01"', "p": "1.25", "l": "null", "u": "18446744073709551614",
    }  # fmt: skip
    slow = {
        **good,
        "v": '"' + "long" * 30 + '"',
        "l": "[1,2]",
        "p": "-1.500",
        "d": "5e-324",
        "n": "-9223372036854775808",
    }
    columns = {
        "v": "VARCHAR", "j": "JSON", "n": "BIGINT", "d": "DOUBLE", "f": "FLOAT", "b": "BOOLEAN", "t": "TIMESTAMPTZ",
        "day": "DATE", "p": "DECIMAL(30,2)", "l": "BIGINT[]", "u": "UBIGINT",
    }  # fmt: skip

    def written(values: Mapping[str, str], more: str = "") -> bytes:
        return ("{" + ",".join(f'"{name}":{value}' for name, value in values.items()) + more + "}").encode()

    short = {name: value for name, value in good.items() if name != "u"}
    chance = random.Random(3)
    kinds = [
        written(short), written(slow), written(slow, ',"x":"\\u00e9"'), written(short, ',"x":[1, 2]'), b"{}",
        b'{"v":"\\ud800"}', b'{"n":"x"}', None,
    ]  # fmt: skip
    values = [chance.choice(kinds) for _ in range(2_000)]
    fast = check(columns, values)
    assert 0.3 * len(values) < fast < 0.6 * len(values)
    for kind in kinds:
        check(columns, [kind] * 3)
        check(columns, [kind, kinds[0], kind], rest=False)


class Guarded:
    """Memory whose neighbours on both sides end the process when they are read."""

    def __init__(self, pages: int) -> None:
        page = mmap.PAGESIZE
        self._map = mmap.mmap(-1, (pages + 2) * page)
        self._view = (ctypes.c_char * len(self._map)).from_buffer(self._map)
        self.start = ctypes.addressof(self._view) + page
        self.size = pages * page
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for wall in (self.start - page, self.start + self.size):
            assert protect(ctypes.c_void_p(wall), ctypes.c_size_t(page), 0) == 0, os.strerror(ctypes.get_errno())

    def values(self, raw: bytes, *, at_end: bool) -> pa.BinaryArray:
        """An array of one value, which touches the one wall or the other."""
        address = self.start + self.size - len(raw) if at_end else self.start
        ctypes.memmove(address, raw, len(raw))
        offsets = pa.py_buffer(np.array([0, len(raw)], np.int32))
        data = pa.foreign_buffer(address, len(raw), self)
        return pa.Array.from_buffers(pa.binary(), 1, [None, offsets, data])


def read_at_the_walls() -> None:
    """Every truncation, and many mutations, of records of all kinds, in guarded memory; run in its own process."""
    guarded, chance = Guarded(2), random.Random(11)
    columns = {**CLICK, "day": "DATE", "at": "TIMESTAMP", "p": "DECIMAL(9,2)", "geo": "JSON"}
    seeds = [
        EVENT,
        EVENT[:-1] + ', "geo": {"lat": 52.5, "é": ["漢字", null, -1.5e-7]}, "x": "😀"}'.encode(),
        b'{"at":"2024-02-29T12:00:00.123456+02:00","day":"2024-02-29","p":-12.50,"u":[true,false,null,"\\ud83d\\ude00"]}',
        b'{"page":"\\u00e9\\n\\/","user_id":-12,"duration":1e-5,"u":{"a":"\\\\"}}',
    ]
    values = [seed[:end] for seed in seeds for end in range(len(seed) + 1)]
    for _ in range(6_000):
        raw = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 4)):
            raw[chance.randrange(len(raw))] = chance.choice([chance.randrange(256), *b'"\\{}[],: \xe6\xf0'])
        values.append(bytes(raw[: chance.randrange(len(raw) + 1)] if chance.random() < 0.5 else raw))
    for rest in (True, False):
        kernel = Kernel(declared(columns), rest=rest)
        for raw in values:
            for at_end in (False, True):
                parsed = kernel.parse(guarded.values(raw, at_end=at_end))
                if not len(parsed.slow):
                    kernel.columns(parsed, [], None)


@pytest.mark.slow
def test_nothing_beside_the_record_is_read() -> None:
    """No load touches a byte before or behind the values: pages there may not be read, and nothing dies."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import read_at_the_walls as read; read()"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_walls_hold() -> None:
    """Reading one byte too far does end a process, so that the test above can fail."""
    script = f"import ctypes; from {__name__} import Guarded; g = Guarded(1); ctypes.string_at(g.start + g.size, 1)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, timeout=240, check=False
    )
    assert done.returncode < 0


def test_threads_share_a_decoder() -> None:
    """One decoder in several threads at once gives each its own batch's result."""
    decoder = JsonDecoder(CLICK, rest=True)
    batches = [batch_of([EVENT[:-1] + b',"n%d":%d}' % (thread, at) for at in range(2_000)]) for thread in range(4)]
    found: dict[int, Decoded] = {}

    def work(thread: int) -> None:
        for _ in range(5):
            found[thread] = decoder.decode(batches[thread])

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread, batch in enumerate(batches):
        assert_same(found[thread], ReferenceJsonDecoder(CLICK, rest=True).decode(batch))


def test_is_compiled_once() -> None:
    """Whatever the columns and the values, each entry has one compiled form: nothing compiles in mid-stream."""
    check(CLICK, [EVENT, None, b"{}", b"[", EVENT[:-1] + b',"x":1}'])
    check({"l": "BIGINT[]"}, [b'{"l":[1]}', b'{"l":null}'], rest=False)
    check({}, [b'{"a":1}'])
    assert [len(entry.parse.signatures), len(entry.gather.signatures)] == [1, 1]
