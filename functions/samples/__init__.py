"""Small real data sets for the demo and the tests, with the answers that they must give.

Where each is from, and under what terms, is in the README beside this. Not here: the functions that run on them,
but for the two that the page views need (`functions.samples.handlers`).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["DESCRIPTIONS", "expected", "lines", "path"]

_FILES: Mapping[str, str] = {
    "msnbc-page-views": "msnbc-page-views.jsonl.gz",
    "nasa-access": "nasa-access.log.gz",
    "runways-changes": "runways.changes.jsonl.gz",
    "runways-final": "runways.final.csv.gz",
    "snowplow-events": "snowplow-events.jsonl.gz",
}

#: The samples by name, and what each is.
DESCRIPTIONS: Mapping[str, str] = {
    "msnbc-page-views": "46,033 page views of 8,000 visitors to msnbc.com; real sequences of pages, times made up",
    "nasa-access": "20,000 lines of the access log of NASA's Kennedy Space Center, 1 August 1995",
    "runways-changes": "8,559 changes to 2,434 runways of OurAirports, Debezium-shaped",
    "runways-final": "the 2,417 runways that are left after those changes, as the source's own file has them",
    "snowplow-events": "160 events of web sites that Snowplow's data model is tested with",
}


def path(name: str) -> Path:
    """The sample's file, compressed with gzip. Raises KeyError, naming the samples there are."""
    if name not in _FILES:
        raise KeyError(f"{name!r} is not a sample; there are {', '.join(_FILES)}")
    return Path(__file__).parent / _FILES[name]


def lines(name: str) -> list[str]:
    """The sample's lines, without their ends."""
    return gzip.decompress(path(name).read_bytes()).decode().split("\n")[:-1]


def expected(name: str) -> dict[str, Any]:
    """What must come of the sample: counted in plain Python from the sources, or published by them."""
    answers = json.loads((Path(__file__).parent / "expected.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = answers[name]
    return found
