"""What an event source mapping promises, whatever the function does: a model beside the engine.

Records are produced, functions raise, report, are throttled or succeed as a script says, owners die at any moment
and the next one has other settings. After each run the sink is held to what the function was really given.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from connectors.memory.log import FIRST_TIMESTAMP_MS
from engine.errors import DataError, HandlerError, Throttled
from engine.failing import AGE_EXCEEDED, ITEM_FAILURES
from engine.lanes import lane_of
from engine.protocols import Invocation, Result
from tests.clock import ManualClock
from tests.forms import IS_CRASH_LONG
from tests.unit.engine_world import EngineWorld, FunctionHandler, policy, rows_of

NOW_SECONDS = FIRST_TIMESTAMP_MS / 1000 + 1_000
AGE_SECONDS = 5_000
LONG_AGO_MS = FIRST_TIMESTAMP_MS - 10_000_000

DECISIONS = ("handle", "handle", "raise", "report", "report-first", "malformed", "throttle")


@dataclass(frozen=True)
class Rules:
    """How one owner of the shard works."""

    lanes: int
    bisects: bool
    retries: int
    batch_size: int
    fate: str  # of what fails for good: report, drop, stop
    ages: bool


class Reported(HandlerError):
    @property
    def error_type(self) -> str:
        return ITEM_FAILURES


@dataclass
class Function:
    """The user's function: does what the script says, fails for poison always, and notes what it was given."""

    rules: Rules
    script: list[str]
    crash_after: int | None
    handled: set[int]
    attempts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    running: set[bytes | None] = field(default_factory=set)
    floors: dict[int, int] = field(default_factory=dict)
    crashed: asyncio.Event = field(default_factory=asyncio.Event)
    broken: list[str] = field(default_factory=list)  #: promises; raised here they would be the function's failures
    calls: int = 0

    async def __call__(self, invocation: Invocation) -> Result:
        batch = invocation.batch
        offsets = batch.offsets.tolist()
        keys = batch.records.column("key").to_pylist()
        self._check_order(offsets, keys)
        self.calls += 1
        decision = self.script.pop(0) if self.script else "handle"
        if decision == "throttle":
            raise Throttled("no environment")
        for offset in offsets:
            self.attempts[offset] += 1
        self.running |= set(keys)
        try:
            for _ in range(self.calls % 5):
                await asyncio.sleep(0)
        finally:
            self.running -= set(keys)
        if self.crash_after is not None and self.calls >= self.crash_after:
            self.crashed.set()
            await asyncio.sleep(3600)
        return self._decide(decision, invocation, offsets)

    def _check_order(self, offsets: list[int], keys: list[bytes | None]) -> None:
        self._expect(offsets == sorted(offsets), "records out of order")
        self._expect(not self.running & set(keys), "two invocations have a key at the same time")
        lanes = {lane_of(key, self.rules.lanes) for key in keys}
        self._expect(len(lanes) == 1, "one batch holds records of two lanes")
        lane = min(lanes)
        self._expect(offsets[0] >= self.floors.get(lane, 0), "a record came after a later one of its lane")
        self.floors[lane] = offsets[0]

    def _expect(self, holds: bool, promise: str) -> None:
        if not holds:
            self.broken.append(promise)

    def _decide(self, decision: str, invocation: Invocation, offsets: list[int]) -> Result:
        values = invocation.batch.records.column("value").to_pylist()
        poisoned = [offset for offset, value in zip(offsets, values, strict=True) if value == b"poison"]
        if decision == "raise" or (poisoned and decision == "handle"):
            raise ValueError("as the script says")
        if decision == "malformed":
            raise Reported("whole")
        failed_from = None
        if decision == "report":
            failed_from = min([*poisoned, offsets[len(offsets) // 2]])
        if decision == "report-first":
            failed_from = offsets[0]
        done = [offset for offset in offsets if failed_from is None or offset < failed_from]
        self.handled |= set(done)
        rest = [offset for offset in offsets if offset not in done]
        return Result(rows=rows_of(invocation.batch, rest), failed_from=failed_from)


class Mapping(RuleBasedStateMachine):
    """One shard, its owners one after the other, and what they left in the sink."""

    @initialize()
    def begin(self) -> None:
        logging.getLogger("headrace").setLevel(logging.CRITICAL)
        self.loop = asyncio.new_event_loop()
        self.world = EngineWorld(clock=ManualClock(NOW_SECONDS))
        self.log = self.world.topic.partitions[0]
        self.handled: set[int] = set()
        self.old: set[int] = set()
        self.dropped: set[int] = set()
        self.position = 0

    def teardown(self) -> None:
        self.loop.close()
        logging.getLogger("headrace").setLevel(logging.NOTSET)

    @rule(
        records=st.lists(
            st.tuples(
                st.sampled_from([None, b"a", b"b", b"c", b"\xff", b"null"]),
                st.sampled_from(["fine", "fine", "fine", "fine", "poison", "old", "gap"]),
            ),
            min_size=1,
            max_size=30,
        )
    )
    def produce(self, records: list[tuple[bytes | None, str]]) -> None:
        for key, kind in records:
            if kind == "gap":
                self.log.mark()
                continue
            timestamp = LONG_AGO_MS if kind == "old" else None
            offset = self.log.append(kind.encode(), key=key, timestamp_ms=timestamp)
            if kind == "old":
                self.old.add(offset)

    @rule(
        rules=st.builds(
            Rules,
            lanes=st.sampled_from([1, 1, 2, 4]),
            bisects=st.booleans(),
            retries=st.integers(0, 3),
            batch_size=st.integers(1, 12),
            fate=st.sampled_from(["report", "report", "report", "drop", "stop"]),
            ages=st.booleans(),
        ),
        script=st.lists(st.sampled_from(DECISIONS), max_size=25),
        crash_after=st.one_of(st.none(), st.integers(1, 12)),
    )
    def own(self, rules: Rules, script: list[str], crash_after: int | None) -> None:
        function = Function(rules, list(script), crash_after, self.handled)
        self.loop.run_until_complete(self._own(rules, function))
        self._check(rules, function)

    async def _own(self, rules: Rules, function: Function) -> None:
        given = policy(
            retries_max=rules.retries,
            bisects=rules.bisects,
            reports=rules.fate == "report",
            drops=rules.fate == "drop",
            age_seconds_max=AGE_SECONDS if rules.ages else -1,
            backoff_seconds=0.0001,
            backoff_seconds_max=0.0001,
        )
        options = {"batch_size": rules.batch_size, "lanes": rules.lanes, "lane_bytes_max": 1_000_000}
        sink = {"commit_interval_max_seconds": 0.0}
        destination = self.world.destination if rules.fate == "report" else None
        async with self.world.shard(
            FunctionHandler(function),
            target=self.log.end,
            rules=given,
            destination=destination,
            sink=sink,
            **options,
        ) as (shard, task):
            crashing = asyncio.ensure_future(function.crashed.wait())
            clock = self.world.clock
            assert isinstance(clock, ManualClock)
            async with asyncio.timeout(20):
                while not (task.done() or crashing.done() or shard.is_caught_up):
                    await asyncio.sleep(0)
                    await clock.advance(0.5)
            crashing.cancel()
            if task.done():
                error = task.exception()
                assert isinstance(error, DataError | HandlerError), error
                assert rules.fate == "stop", error

    def _check(self, rules: Rules, function: Function) -> None:
        position = self.world.position() or 0
        assert position >= self.position, "the committed position went back"
        assert not function.broken, function.broken
        splits = rules.batch_size if rules.bisects else 0  # a report may set one record apart each time
        most = max(function.attempts.values(), default=0)
        assert most <= rules.retries + 1 + splits, "a record was tried more often than it may be"
        if rules.fate == "drop":
            kept = set(self.world.rows()) | set(self.world.failures())
            self.dropped |= set(self._records(self.position, position)) - kept
        for failure in self.world.store.shard(0).failures:
            if self.position <= failure.offset < position:
                tried = function.attempts[failure.offset]
                assert failure.attempts == tried, "the report counts other attempts than there were"
                if failure.error_type == AGE_EXCEEDED:
                    assert failure.offset in self.old
                else:
                    assert tried >= rules.retries + 1, "given up before its retries were used"
        if rules.ages:
            assert not [offset for offset in self.old if function.attempts[offset]], "an old record was handled"
        self.position = position

    def _records(self, start: int, end: int) -> list[int]:
        rows, _ = self.log.read(start, 10_000, read_committed=True)
        return [row[0] for row in rows if row[0] < end]

    @invariant()
    def every_record_is_accounted_for_once(self) -> None:
        if not hasattr(self, "log") or self.world.store.stream is None:
            return
        shard = self.world.store.shard(0)
        rows, failures = self.world.rows(), self.world.failures()
        assert len(rows) == len(set(rows)), "a row was written twice"
        assert len(failures) == len(set(failures)), "a failure was written twice"
        assert not set(rows) & set(failures)
        assert set(rows) <= self.handled, "a row of a record that the function never took"
        everything = set(rows) | set(failures) | self.dropped
        assert everything == set(self._records(0, shard.position or 0)), "a committed record is unaccounted for"
        ranges = [(start, end) for start, end, _ in shard.commits]
        assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))


Mapping.TestCase.settings = settings(
    max_examples=1_500 if IS_CRASH_LONG else 60,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestMapping = Mapping.TestCase
