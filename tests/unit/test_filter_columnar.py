"""The column-wise path of the filters against the straightforward evaluator: the same records are kept."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import random
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.batch import Batch, from_rows
from engine.filters import FilterCriteria, codes, entry
from engine.filters.columnar import Columnar, Conditions, ordered
from engine.filters.json_text import DEPTH_MAX
from engine.filters.pattern import Pattern
from tests.forms import examples
from tests.unit.filter_worlds import world

#: Generated filters with a batch each, of a fixed seed; HEADRACE_FUZZ=long tries many more.
WORLDS = examples(500, 100_000)

CLICK = (
    b'{"event_id":"evt-000000000001","user_id":5412877,"session":"9f3c51d2a0b7","type":"click",'
    b'"page":"/products/c-1/i-22","duration":312.07,"converted":false,"country":"DE","device":{"os":"ios","version":17}}'
)


def batch_of(values: Iterable[bytes | None]) -> Batch:
    rows = [(at, 1000 + at, None, value, ()) for at, value in enumerate(values)]
    return from_rows("t", 0, rows, start=0, end=len(rows))


def judge(pattern: str, values: Iterable[bytes | None], *, lenient: bool = False) -> list[int]:
    """What the compiled path says of payloads by itself."""
    columnar = Columnar([Conditions(branch, None, ()) for branch in Pattern.of(pattern).branches], lenient=lenient)
    records = batch_of(values).records.column("value")
    verdicts = np.zeros(len(records), np.uint8)
    asked = columnar.judge(records, np.ones((1, len(records)), np.uint8), verdicts)
    found: list[int] = verdicts.tolist()
    assert asked == found.count(codes.ASK)
    return found


def check(criteria: FilterCriteria, batch: Batch) -> tuple[int, int]:
    """Records and those that are kept, when both ways agree."""
    expected, found = criteria.select_by_reference(batch), criteria.select(batch)
    assert found.dtype == np.bool_
    wrong = [
        (value, bool(want))
        for value, want, got in zip(batch.records.column("value").to_pylist(), expected, found, strict=True)
        if want != got
    ]
    assert not wrong, (criteria.kind, [pattern.text for pattern in criteria.patterns], wrong)
    return len(found), int(found.sum())


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_both_ways_keep_the_same_records(chance: random.Random) -> None:
    """Generated patterns, and events that match them or nearly do, are judged alike by both ways."""
    check(*world(chance))


def test_both_ways_keep_the_same_records_of_many_seeds() -> None:
    """The same of many worlds, among which both kinds of answers are frequent."""
    records = kept = 0
    for seed in range(WORLDS):
        try:
            more = check(*world(random.Random(seed)))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
        records, kept = records + more[0], kept + more[1]
    assert 0.15 < kept / records < 0.6


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ('{"type":["click"]}', codes.YES),
        ('{"type":["view"]}', codes.NO),
        ('{"type":["view","click"],"country":["DE"]}', codes.YES),
        ('{"converted":[false]}', codes.YES),
        ('{"converted":["false",null]}', codes.NO),
        ('{"user_id":[5412877]}', codes.YES),
        ('{"user_id":[5412877.0]}', codes.YES),
        ('{"user_id":["5412877"]}', codes.NO),
        ('{"duration":[{"numeric":[">",312.06,"<=",312.07]}]}', codes.YES),
        ('{"duration":[{"numeric":[">",312.07]}]}', codes.NO),
        ('{"duration":[{"numeric":["<",312.07]}]}', codes.NO),
        ('{"page":[{"prefix":"/products"}]}', codes.YES),
        ('{"page":[{"suffix":"/i-22"}]}', codes.YES),
        ('{"page":[{"suffix":"/i-2"}]}', codes.NO),
        ('{"page":[{"wildcard":"/*/c-*/i-*"}]}', codes.YES),
        ('{"page":[{"wildcard":"/*/c-*/j-*"}]}', codes.NO),
        ('{"page":[{"prefix":{"equals-ignore-case":"/PRO"}}]}', codes.YES),
        ('{"country":[{"equals-ignore-case":"de"}]}', codes.YES),
        ('{"country":[{"anything-but":["FR","US"]}]}', codes.YES),
        ('{"country":[{"anything-but":{"prefix":"D"}}]}', codes.NO),
        ('{"nope":[{"anything-but":["FR"]}]}', codes.NO),
        ('{"nope":[{"exists":false}]}', codes.YES),
        ('{"type":[{"exists":true}]}', codes.YES),
        ('{"device":[{"exists":true}]}', codes.NO),
        ('{"device":{"os":["ios"],"version":[{"numeric":[">=",17]}]}}', codes.YES),
        ('{"device.os":["ios"]}', codes.YES),
        ('{"device":{"os":{"name":[{"exists":false}]}}}', codes.YES),
        ('{"type":["view"],"$or":[{"country":["DE"]},{"country":["FR"]}]}', codes.NO),
        ('{"type":["click"],"$or":[{"country":["DE"]},{"country":["FR"]}]}', codes.YES),
        ('{"country":[{"cidr":"10.0.0.0/8"}]}', codes.ASK),
        ('{"country":[{"equals-ignore-case":"dé"}]}', codes.ASK),
        ('{"user_id":[{"cidr":"10.0.0.0/8"}]}', codes.NO),
    ],
)
def test_common_operators_need_no_python(pattern: str, expected: int) -> None:
    """On an ordinary event the compiled path answers by itself; it asks for two operators on strings only."""
    assert judge(pattern, [CLICK, None, CLICK]) == [expected, codes.NO, expected]


@pytest.mark.parametrize(
    "text",
    [
        '{"a":[1]}',
        '{"a":"\\u0031"}',
        '{"\\u0061":1}',
        '{"a":1,"a":2}',
        '{"a":{"b":1},"a.b":1}',
        '{"a":12345678901234567}',
        '[{"a":1}]',
        '{"x":' + "[" * 20 + "]" * 20 + "}",
        '{"a":1',
        '{"a":-0}',
    ],
)
def test_what_is_not_simple_is_asked(text: str) -> None:
    """Arrays, escapes, repeated paths, long numbers, deep and broken JSON are left to the evaluator."""
    assert judge('{"a":[1,"1"],"a.b":[1,{"exists":false}]}', [text.encode()]) == [codes.ASK]


@pytest.mark.parametrize(
    "text",
    [
        '{"b":[1],"a":"x"}',
        '{"b":{"c":[{"a":2}]},"a":"x"}',
        '{"c":"\\u0031","a":"x"}',
        '{"a":"x","n":1234567890123456789}',
        '{"d":[],"a":"x"}',
        '{"a":"x","d":{}}',
        '{"a.c":[1],"a":"x"}',
        ' { "a" : "x" } ',
    ],
)
def test_what_no_filter_names_asks_for_nothing(text: str) -> None:
    """The rest of an event may be as it likes, and empty arrays and objects are no leaves."""
    assert judge('{"a":["x"],"d":[{"exists":false}]}', [text.encode()]) == [codes.YES]


@pytest.mark.parametrize("depth", [10, 200, DEPTH_MAX, DEPTH_MAX + 1, 100_000])
def test_depth_is_bounded(depth: int) -> None:
    """JSON of any depth is judged, beyond the bound as what is no JSON; brackets in strings are no depth."""
    deep = b'{"a":"x","b":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    flat = b'{"a":"x","b":"' + b"[{" * depth + b'"}'
    criteria = FilterCriteria.of(['{"data":{"a":["x"]}}'], kind="kinesis")
    batch = batch_of([deep, flat])
    assert criteria.select(batch).tolist() == [depth <= DEPTH_MAX, True]
    check(criteria, batch)


def test_doubles_are_in_order() -> None:
    """The whole numbers that stand for doubles rise with them, step by step, and zero is one."""
    values = [-math.inf, -1e308, -1.0, -5e-324, 0.0, 5e-324, 1.0, math.nextafter(1.0, 2.0), 1e308, math.inf]
    found = [ordered(value) for value in values]
    assert found == sorted(set(found))
    assert ordered(-0.0) == 0
    assert ordered(math.nextafter(1.0, 2.0)) == ordered(1.0) + 1
    assert ordered(math.nextafter(-1.0, -2.0)) == ordered(-1.0) - 1


def test_slices_nulls_and_none() -> None:
    """Batches that are parts of others, have no value, or no record, are judged at their own places."""
    values = [None, CLICK, b"", None, CLICK.replace(b"click", b"view"), CLICK]
    criteria = FilterCriteria.of(['{"data":{"type":["click"]}}'], kind="kinesis")
    expected = [False, True, False, False, False, True]
    whole = batch_of(values)
    for start in range(len(values) + 1):
        for count in range(len(values) - start + 1):
            part = whole.tail(start).head(count) if count else whole.head(0)
            assert criteria.select(part).tolist() == expected[start : start + count]
    empty = Batch("t", 0, 0, 5, whole.records.slice(0, 0))
    assert criteria.select(empty).tolist() == []


def test_nothing_is_read_beyond_the_values() -> None:
    """A value that ends where readable memory ends is judged: whatever its cut, no byte behind it is touched."""
    page = mmap.PAGESIZE
    room = mmap.mmap(-1, 2 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(room))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(base + page), page, 0):
        pytest.skip("memory cannot be protected here")
    pattern = (
        '{"device":{"os":[{"wildcard":"*i*o*s"}],"version":[17,{"anything-but":3}]},"country":[{"suffix":"DE"}]}'
    )
    columnar = Columnar([Conditions(branch, None, ()) for branch in Pattern.of(pattern).branches], lenient=False)
    for size in range(len(CLICK) + 1):
        octets = CLICK[:size]
        ctypes.memmove(base + page - size, octets, size)
        buffer = pa.foreign_buffer(base + page - size, size, None)
        bounds = pa.py_buffer(np.array([0, size], np.int32))
        values = pa.Array.from_buffers(pa.binary(), 1, [None, bounds, buffer])
        verdicts = np.zeros(1, np.uint8)
        columnar.judge(values, np.ones((1, 1), np.uint8), verdicts)
        assert verdicts[0] == (codes.YES if size == len(CLICK) else codes.NO if size == 0 else codes.ASK)
    libc.mprotect(ctypes.c_void_p(base + page), page, 3)


def test_threads_share_one_criteria() -> None:
    """Batches judged at once by the same filters come out as those judged alone."""
    criteria = FilterCriteria.of(['{"data":{"type":["click"],"n":[{"numeric":[">=",50]}]}}'], kind="kinesis")
    values = [json.dumps({"type": "click" if at % 3 else "view", "n": at % 100}).encode() for at in range(5000)]
    batch = batch_of(values)
    expected = [at % 3 != 0 and at % 100 >= 50 for at in range(5000)]
    found: list[list[bool]] = []

    def run() -> None:
        found.extend(criteria.select(batch).tolist() for _ in range(5))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 20


def test_no_machine_code_without_filters(tmp_path: Path) -> None:
    """Importing and making filters, and judging by metadata alone, loads no numba."""
    program = (
        "import sys\n"
        "from engine.filters import FilterCriteria\n"
        "from engine.batch import from_rows\n"
        "FilterCriteria.of(['{\"data\":{\"a\":[1]}}'], kind='kinesis')\n"
        "batch = from_rows('t', 0, [(0, 0, b'k', b'{}', ())], start=0, end=1)\n"
        "keys = FilterCriteria.of(['{\"partitionKey\":[\"k\"]}'], kind='kinesis')\n"
        "keys.warm()\n"
        "assert keys.select(batch).tolist() == [True]\n"
        "assert 'numba' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=tmp_path)


def test_what_is_kept_depends_on_all_of_the_kernel() -> None:
    """Code that is kept on disk is made anew when any module that it is made of changes."""
    from engine.filters import kernel

    names = {vars(kernel)[name].__module__ for name in ("value", "get", "number", "same")}
    assert names == {f"engine.values.fast.{name}" for name in ("nested", "primitives", "scalars")}
    assert {f"{name.removesuffix('.py')}" for name in entry.SHARED_MODULES} == {"nested", "primitives", "scalars"}
    assert set(entry.OWN_MODULES) == {"codes.py", "kernel.py"}
