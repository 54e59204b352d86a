"""The options of `headrace run` and `check` for templates: what they take, and what they say of the rest."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from engine.cli.run import load_file, template_options
from engine.config import Config
from engine.errors import UserError

SAMPLE = Path(__file__).parents[1] / "samples" / "sam" / "orders" / "template.yaml"
MAPS = {"topic": ["replay-stream-arn=replays"], "on_failure": ["FailedOrders=kafka://failed"]}


def load(file: Path = SAMPLE, **given: Any) -> Config:
    arguments = {"parameter": None, "topic": None, "on_failure": None, "settings": None, "allow_unsupported": False}
    return load_file(file, template_options(**{**arguments, **given}), None)


REFUSALS: list[tuple[dict[str, object], str]] = [
    ({"parameter": ["Stage"]}, "valid is --parameter NAME=VALUE, and one of them has no ="),
    ({"topic": ["=t"]}, "valid is --topic STREAM=TOPIC, and one of them has no name"),
    ({"parameter": ["Stage=hush", "Stage=hush"]}, "--parameter Stage is given twice"),
    ({**MAPS, "parameter": ["Stage=hush"]}, "--parameter Stage: is none of its AllowedValues (dev, prod)"),
    ({**MAPS, "parameter": ["Stge=hush"]}, "did you mean Stage?"),
    ({**MAPS, "topic": ["Nothing=x"]}, "--topic Nothing: the template has nothing of that name"),
    ({"file": Path("missing.yaml")}, "there is no such file"),
    ({"file": Path("headrace.toml"), "allow_unsupported": True}, "headrace.toml is no template"),
    ({}, "asks for what headrace cannot honour"),
]


@pytest.mark.parametrize(("given", "said"), REFUSALS)
def test_options_that_make_no_sense(given: dict[str, Any], said: str) -> None:
    """Refused with what is valid; a value is never shown, for a parameter may be a secret."""
    with pytest.raises(UserError) as raised:
        load(**given)
    assert said in str(raised.value)
    assert "hush" not in str(raised.value)


def test_values_may_have_equals_signs() -> None:
    """The first one ends the name."""
    assert template_options(["A=b=c"], ["S=t"], None, None, False).parameters == {"A": "b=c"}


def test_what_is_unsupported_is_listed_when_it_is_allowed(caplog: pytest.LogCaptureFixture) -> None:
    """What is ignored is said, what is left out is a warning."""
    caplog.set_level(logging.INFO, "headrace.run")
    assert len(load(allow_unsupported=True).pipelines) == 5
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.split(": ")[1] for line in warnings] == [
        "OrdersFunction.Events.Orders.DestinationConfig.OnFailure.Destination",
        "OrdersFunction.Events.Replays.Stream",
    ]
    assert "ignored: OrdersFunction.Policies: " in caplog.text
    caplog.clear()
    assert len(load(**MAPS).pipelines) == 6
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
