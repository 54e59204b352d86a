"""Warnings that do not repeat themselves."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import cast

import pytest

from connectors.kafka.complaints import AGAIN_SECONDS, Complaints
from engine.protocols import Clock


@dataclass
class Hands:
    """A clock that is moved by hand."""

    now: float

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("start", [0.0, 0.1, 14_345.710633121, 1e9 + 1 / 3])
def test_the_same_is_said_once_in_a_while(caplog: pytest.LogCaptureFixture, start: float) -> None:
    """At once whatever the clock shows, then not for some seconds; another key, or one that settled, at once."""
    hands = Hands(start)
    complaints = Complaints(logging.getLogger("headrace.kafka"), cast(Clock, hands))
    for _ in range(3):
        complaints.warn(("no answer", 1), "%s is away", "broker 1")
    complaints.warn(("no answer", 2), "%s is away", "broker 2")
    assert [line.getMessage() for line in caplog.records] == ["broker 1 is away", "broker 2 is away"]
    hands.now = start + AGAIN_SECONDS + 0.1
    complaints.warn(("no answer", 1), "still")
    assert complaints.settle(("no answer", 1))
    assert not complaints.settle(("no answer", 1))
    complaints.warn(("no answer", 1), "again")
    assert [line.getMessage() for line in caplog.records[2:]] == ["still", "again"]
