"""The bound on bytes in flight, and deadlines."""

from __future__ import annotations

import asyncio

from engine.budget import ByteBudget
from engine.deadline import Deadline
from tests.clock import ManualClock, turns


def test_the_total_is_what_holders_report_now() -> None:
    """A report replaces the holder's last one; nothing held is nothing kept."""
    budget = ByteBudget(100)
    budget.report("a", 60)
    budget.report("b", 30)
    assert (budget.total, budget.is_exceeded) == (90, False)
    budget.report("a", 70)
    assert (budget.total, budget.is_exceeded) == (100, True)
    budget.report("a", 0)
    budget.report("a", 0)
    assert (budget.total, budget.is_exceeded) == (30, False)


async def test_waiters_go_on_together_when_it_is_within_the_bound() -> None:
    """Giving back a little wakes nobody for good; giving back enough wakes all."""
    budget = ByteBudget(100)
    budget.report("a", 150)
    waiters = [asyncio.create_task(budget.wait(60.0)) for _ in range(5)]
    await turns(3)
    budget.report("a", 120)
    await turns(5)
    assert not any(waiter.done() for waiter in waiters)
    budget.report("a", 99)
    await asyncio.wait_for(asyncio.gather(*waiters), 5)


async def test_a_wait_within_the_bound_is_none() -> None:
    """Nothing to wait for, nothing waited."""
    budget = ByteBudget(100)
    await asyncio.wait_for(budget.wait(1_000.0), 1)


async def test_a_wait_has_its_end() -> None:
    """A shard's own timers come first, however long the others hold on."""
    budget = ByteBudget(100)
    budget.report("a", 150)
    await asyncio.wait_for(budget.wait(0.0), 5)
    assert budget.is_exceeded


async def test_a_deadline_is_one_for_a_whole_path() -> None:
    """What is left shrinks with time, never below nothing; a share leaves the rest for what comes after."""
    clock = ManualClock()
    deadline = Deadline(clock, 10.0)
    assert (deadline.seconds_left, deadline.share(0.75)) == (10.0, 7.5)
    await clock.advance(6.0)
    assert (deadline.seconds_left, deadline.share(0.75)) == (4.0, 1.5)
    await clock.advance(2.0)
    assert (deadline.seconds_left, deadline.share(0.75)) == (2.0, 0.0)
    await clock.advance(5.0)
    assert (deadline.seconds_left, deadline.share(1.0)) == (0.0, 0.0)


def test_only_the_largest_holder_gives_back() -> None:
    """Over the bound one holder is named, so that pressure makes one large commit and not many small ones."""
    budget = ByteBudget(100)
    budget.report("large", 60)
    budget.report("small", 30)
    assert not budget.is_largest("large")
    budget.report("small", 40)
    assert [budget.is_largest(holder) for holder in ("large", "small", "none")] == [True, False, False]


async def test_what_is_handled_waits_for_room_but_one_is_always_let_in() -> None:
    """A batch larger than the bound is handled alone; others wait until it is done, and then go on."""
    budget = ByteBudget(100)
    assert budget.admits("a", 300)
    assert not budget.admits("b", 1)
    waiting = asyncio.create_task(budget.admit("b", 60))
    await turns(3)
    assert not waiting.done()
    budget.done("a")
    assert await asyncio.wait_for(waiting, 5)
    assert budget.total == 60
    assert not budget.admits("c", 41)
    assert budget.admits("c", 40)
    for each in ("b", "c", "c"):
        budget.done(each)
    assert budget.total == 0


async def test_what_shards_keep_counts_against_what_is_handled() -> None:
    """Rows that wait for their commit leave less room; giving them back lets a waiter in."""
    budget = ByteBudget(100)
    assert budget.admits("a", 50)
    budget.report("a", 50)
    waiting = asyncio.create_task(budget.admit("b", 20))
    await turns(3)
    assert not waiting.done()
    assert budget.is_exceeded
    budget.report("a", 0)
    assert await asyncio.wait_for(waiting, 5)
