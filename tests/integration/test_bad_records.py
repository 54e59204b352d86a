"""Records that no pipeline can take, through the real command and broker: reported whole, or a stop before them.

A record that is refused costs itself alone. Not here: what each column type refuses (tests/unit/test_values_*).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from connectors.kafka.broker import Broker
from tests.integration.support import SINKS, Project, Value, pipeline, toml, value_of

pytestmark = [pytest.mark.broker, pytest.mark.slow]

TopicFactory = Callable[..., Awaitable[str]]

COLUMNS = {"id": "BIGINT", "price": "DOUBLE", "small": "TINYINT", "day": "DATE"}

#: Topics for records of 5 MB; Kafka's own bound is one.
LARGE = {"max.message.bytes": str(8 * 1024 * 1024)}

#: Each kind of bad record, and what is said of it.
BAD: dict[str, tuple[Value, str]] = {
    "malformed JSON": (b'{"id": 1, "price":', r"malformed JSON at line 1, column 19"),
    "not JSON": (b"hello", r"malformed JSON at line 1, column 1"),
    "invalid UTF-8": (b'{"id": 1, "page": "\xff"}', r"invalid UTF-8 at byte 19 \(0xff\)"),
    "null": (None, r"the value is null"),
    "empty": (b"", r"the value is empty"),
    "an array": (b"[1, 2]", r"no JSON object but a JSON array of 2"),
    "text for a number": (b'{"id": "12"}', r'column "id" wants BIGINT, found string "12"'),
    "a fraction for a whole number": (b'{"id": 1.7}', r'column "id" wants BIGINT, found number 1\.7'),
    "no day of the calendar": (b'{"day": "2026-02-30"}', r'column "day" wants DATE, found string "2026-02-30"'),
    "beyond BIGINT": (b'{"id": 99999999999999999999}', r'column "id" .*found number 99999999999999999999.*range'),
    "beyond DOUBLE": (b'{"price": 1e400}', r'number 1e400 .*"price" is out of range'),
    "beyond TINYINT": (b'{"small": 300}', r'column "small" .*found number 300: out of range.* -128 to 127'),
    "5 MB": (b'{"page": "' + b"x" * 5_000_000 + b'"}', r"5,000,012 bytes, more than record_bytes_max = 4,718,592"),
    "deep": (b'{"a": ' + b"[" * 400 + b"]" * 400 + b"}", r"nesting too deep: more than 200 levels"),
    "a member twice": (b'{"id": 1, "id": 2}', r'member "id" stands more than once in one object'),
    "an inner member twice": (b'{"a": {"b": 1, "b": 1}}', r'member "b" stands more than once in one object'),
}


@pytest.fixture
def project(tmp_path: Path, broker: Broker) -> Project:
    return Project(tmp_path, broker.bootstrap)


def good(number: int) -> bytes:
    return b'{"id": %d, "page": "/p"}' % number


@pytest.mark.parametrize(("sink", "reports_to"), [("parquet", "file"), ("duckdb", "kafka"), ("duckdb", "file")])
async def test_bad_records_are_reported_and_the_rest_flows(
    project: Project, topic: TopicFactory, sink: str, reports_to: str
) -> None:
    """Each kind of bad record, all in one batch among good ones, is reported whole with its place and reason."""
    name = await topic(partitions=2, config=LARGE)
    values: list[Value] = [good(0)]
    for number, (value, _) in enumerate(BAD.values(), start=1):
        values += [value, good(number)]
    await project.produce(name, {0: values, 1: [good(1000), good(1001)]})
    failed = f"{name}-failed"
    project.configure(
        {
            "clicks": pipeline(
                name,
                sink,
                batch_size=1000,
                schema={"columns": COLUMNS},
                on_failure="failed.jsonl" if reports_to == "file" else f"kafka://{failed}",
            )
        }
    )
    ended = await project.run()
    assert ended.code == 0, ended.err
    expected = [(0, 2 * number, number) for number in range(len(BAD) + 1)]
    assert project.rows(sink, "_partition, _offset, id") == [*expected, (1, 0, 1000), (1, 1, 1001)]
    found = project.failures() if reports_to == "file" else await project.messages(failed)
    stream = await project.stream(name)
    assert [(each["partition"], each["offset"]) for each in found] == [(0, 2 * n + 1) for n in range(len(BAD))]
    for each, (value, reason) in zip(found, BAD.values(), strict=True):
        assert re.search(reason, each["reason"]), each["reason"]
        assert value_of(each) == value
        assert each["key"] == "aw=="
        assert each["attempts"] == 0, "it never reached a function"
        identity = [each[part] for part in ("pipeline", "cluster_id", "topic", "topic_id")]
        assert identity == ["clicks", stream.cluster_id, name, stream.topic_id]
    assert await project.positions(sink, "clicks", name) == [len(values), 2]
    assert f"{len(values) + 2} records, {len(BAD) + 3} rows, {len(BAD)} failed" in ended.err

    again = await project.run()
    assert again.code == 0, again.err
    assert len(project.rows(sink)) == len(BAD) + 3
    assert len(project.failures() if reports_to == "file" else await project.messages(failed)) == len(BAD)


@pytest.mark.parametrize("sink", list(SINKS))
async def test_without_a_destination_each_shard_stops_before_its_bad_record(
    project: Project, topic: TopicFactory, sink: str
) -> None:
    """Rows before it are committed, the position is its offset, others finish; with a destination it goes on."""
    count = len(BAD)
    name = await topic(partitions=count + 1, config=LARGE)
    partitions: dict[int, list[Value]] = {}
    for partition, (value, _) in enumerate(BAD.values()):
        before = partition % 3  # the first record, too, may be the bad one
        partitions[partition] = [*(good(n) for n in range(before)), value, good(before + 1), good(before + 2)]
    partitions[count] = [good(n) for n in range(5)]
    await project.produce(name, partitions)
    settings = {"schema": {"columns": COLUMNS}, "batch_size": 1000}
    project.configure({"clicks": pipeline(name, sink, **settings)})

    stopped = await project.run()
    assert stopped.code == 2, stopped.err
    whole = [(count, n, n) for n in range(5)]
    before_bad = [(partition, n, n) for partition in range(count) for n in range(partition % 3)]
    assert project.rows(sink, "_partition, _offset, id") == sorted([*before_bad, *whole])
    assert await project.positions(sink, "clicks", name) == [*(p % 3 for p in range(count)), 5]
    for partition, (_, reason) in enumerate(BAD.values()):
        where = rf"clicks: {name}-{partition} offset {partition % 3}: .*{reason}"
        assert re.search(where, stopped.err), f"no {where} in\n{stopped.err}"
    assert "set source.destination_config.on_failure" in stopped.err

    project.configure({"clicks": pipeline(name, sink, on_failure="failed.jsonl", **settings)})
    ended = await project.run()
    assert ended.code == 0, ended.err
    after_bad = [(p, p % 3 + n, p % 3 + n) for p in range(count) for n in (1, 2)]
    assert project.rows(sink, "_partition, _offset, id") == sorted([*before_bad, *after_bad, *whole])
    assert [(each["partition"], each["offset"]) for each in project.failures()] == [
        (p, p % 3) for p in range(count)
    ]
    assert [value_of(each) for each in project.failures()] == [value for value, _ in BAD.values()]
    assert await project.positions(sink, "clicks", name) == [*(p % 3 + 3 for p in range(count)), 5]


async def test_on_exhausted_drop_lets_bad_records_go_and_counts_them(project: Project, topic: TopicFactory) -> None:
    """What AWS does without a destination, when asked for: the bad record is gone, counted and logged."""
    name = await topic()
    await project.produce(name, {0: [good(0), b"hello", good(1)]})
    project.configure({"clicks": pipeline(name, "parquet", schema={"columns": COLUMNS}, on_exhausted="drop")})
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert project.rows("parquet", "_offset, id") == [(0, 0), (2, 1)]
    assert "3 records, 2 rows, 0 failed, 1 dropped" in ended.err
    assert re.search(r"dropped 1 records.*malformed JSON", ended.err)


async def test_null_values_are_dropped_when_told_so(project: Project, topic: TopicFactory) -> None:
    """Tombstones of a compacted topic can be let go, counted as dropped; an empty value is still a fault."""
    name = await topic()
    await project.produce(name, {0: [good(0), None, b"", good(1)]})
    schema = {"columns": COLUMNS, "on_null_value": "drop"}
    project.configure({"clicks": pipeline(name, "duckdb", schema=schema, on_failure="failed.jsonl")})
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert project.rows("duckdb", "_offset, id") == [(0, 0), (3, 1)]
    assert [each["offset"] for each in project.failures()] == [2]
    assert "4 records, 2 rows, 1 failed, 1 dropped" in ended.err


async def test_bad_records_before_any_good_one_do_not_spoil_the_inferred_columns(
    project: Project, topic: TopicFactory
) -> None:
    """Columns are inferred from the first records that can be read; a later misfit is reported against them."""
    name = await topic()
    await project.produce(name, {0: [b"hello", None, b"{", good(0), b'{"id": "x", "page": "/p"}', good(1)]})
    project.configure({"clicks": pipeline(name, "parquet", on_failure="failed.jsonl", batch_size=2)})
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert project.rows("parquet", "_offset, id, page") == [(3, 0, "/p"), (5, 1, "/p")]
    assert [each["offset"] for each in project.failures()] == [0, 1, 2, 4]
    assert 'column "id" wants BIGINT, found string "x"' in project.failures()[3]["reason"]


async def test_text_and_raw_values_refuse_only_what_they_must(project: Project, topic: TopicFactory) -> None:
    """Text refuses invalid UTF-8 and null; raw takes every value as it is but one that is too large."""
    name = await topic(config=LARGE)
    large = b"x" * 5_000_000
    await project.produce(name, {0: [b"plain", b"\xff\xfe", None, b"", large]})
    pipelines = {}
    for form in ("text", "raw"):
        sink = {"type": "parquet", "path": form, "file_age_max_seconds": 0.2}
        pipelines[form] = pipeline(name, sink, schema={"format": form}, on_failure=f"{form}.jsonl")
    project.configure(pipelines)
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert [each["offset"] for each in project.failures("text.jsonl")] == [1, 2, 4]
    assert "invalid UTF-8 at byte 0 (0xff)" in project.failures("text.jsonl")[0]["reason"]
    assert project.rows("parquet", "_offset, value", path="raw") == [
        (0, b"plain"),
        (1, b"\xff\xfe"),
        (2, None),
        (3, b""),
    ]
    assert [(each["offset"], value_of(each)) for each in project.failures("raw.jsonl")] == [(4, large)]
    assert [offset for (offset,) in project.rows("parquet", "_offset", path="text")] == [0, 3]


async def test_a_lambda_event_holds_every_record_but_the_too_large(project: Project, topic: TopicFactory) -> None:
    """Handlers of event kinds get bytes, so malformed ones too; 5 MB do not fit an event and are reported."""
    name = await topic(config=LARGE)
    await project.produce(name, {0: [good(0), b"\xff", None, b"", b"x" * 5_000_000, good(5)]})
    project.write(
        "handlers.py",
        "import base64\n"
        "def kinesis(event, context):\n"
        "    rows = [(r['kinesis']['sequenceNumber'], r['kinesis']['data']) for r in event['Records']]\n"
        "    return {'rows': [{'_offset': int(n[-19:]), 'size': len(base64.b64decode(d))} for n, d in rows]}\n"
        "def kafka(event, context):\n"
        "    [records] = event['records'].values()\n"
        "    size = lambda data: -1 if data is None else len(base64.b64decode(data))\n"
        "    return {'rows': [{'_offset': r['offset'], 'size': size(r['value'])} for r in records]}\n",
    )
    pipelines = {}
    for kind in ("kinesis", "kafka"):
        sink = {"type": "parquet", "path": kind, "file_age_max_seconds": 0.2}
        function = {"kind": kind, "handler": f"handlers.{kind}"}
        pipelines[kind] = pipeline(name, sink, function=function, on_failure=f"{kind}.jsonl")
    project.configure(pipelines)
    ended = await project.run()
    assert ended.code == 0, ended.err
    sizes = {0: len(good(0)), 1: 1, 3: 0, 5: len(good(5))}
    for kind, null in (("kinesis", 0), ("kafka", -1)):
        expected = sorted({**sizes, 2: null}.items())
        assert project.rows("parquet", "_offset, size", path=kind) == expected
        [failure] = project.failures(f"{kind}.jsonl")
        assert (failure["offset"], failure["attempts"], len(value_of(failure) or b"")) == (4, 0, 5_000_000)


async def test_without_a_sink_bad_records_are_delivered_before_the_checkpoint(
    project: Project, topic: TopicFactory
) -> None:
    """A handler with its own effects sees the good records; the bad one is passed after its report."""
    name = await topic()
    await project.produce(name, {0: [good(0), b"hello", good(1)]})
    project.write(
        "handlers.py",
        "def keep(rows, context):\n"
        "    with open('seen', 'a') as file:\n"
        "        file.writelines(f\"{row['id']}\\n\" for row in rows)\n",
    )
    function = {"kind": "rows", "handler": "handlers.keep"}
    settings = {"schema": {"columns": COLUMNS}, "function": function}
    project.configure({"clicks": pipeline(name, None, **settings)})
    stopped = await project.run()
    assert stopped.code == 2, stopped.err
    assert f"{name}-0 offset 1: malformed JSON" in stopped.err
    project.configure({"clicks": pipeline(name, None, on_failure="failed.jsonl", **settings)})
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert (project.directory / "seen").read_text().split() == ["0", "1"]
    assert [each["offset"] for each in project.failures()] == [1]


async def test_rows_that_a_sink_refuses_are_reported(project: Project, topic: TopicFactory) -> None:
    """A row without its key, and one of a partition too many, fail alone, as rows of their records."""
    name = await topic()
    values = [b'{"id": 1, "site": "a"}', b'{"site": "a"}', b'{"id": 2, "site": "b"}', b'{"id": 3, "site": "c"}']
    await project.produce(name, {0: [*values]})
    schema = {"columns": {"id": "BIGINT", "site": "VARCHAR"}}
    upsert = {**SINKS["duckdb"], "mode": "upsert", "key": ["id"]}
    hive = {**SINKS["parquet"], "partition_by": ["site"], "hive_partitions_open_max": 2}
    project.configure(
        {
            "upsert": pipeline(name, upsert, schema=schema, on_failure="upsert.jsonl"),
            "hive": pipeline(name, hive, schema=schema, on_failure="hive.jsonl"),
        }
    )
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert project.rows("duckdb", "id, site") == [(1, "a"), (2, "b"), (3, "c")]
    assert project.rows("parquet", "_offset") == [(0,), (1,), (2,)]
    [keyless], [beyond] = project.failures("upsert.jsonl"), project.failures("hive.jsonl")
    assert (keyless["offset"], beyond["offset"]) == (1, 3)
    assert "id" in keyless["reason"]
    assert "hive_partitions_open_max" in beyond["reason"]


def test_the_configuration_that_tests_write_is_read_back() -> None:
    """The TOML of these tests says what they mean."""
    import tomllib

    document = {"a": 1, "b": {"c": 'x\n"y"', "d": [1, 2], "e": {"f": True}}}
    assert tomllib.loads(toml(document)) == document
