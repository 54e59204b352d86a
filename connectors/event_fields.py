"""Members of an event that Kafka has a place for: the key and the timestamp. Not here: how events are read."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson


class Number(str):
    """A number as the file writes it."""

    __slots__ = ()


def member(document: object, name: str) -> object:
    """A member by its name, or by the path ``a.b.c``. Raises ValueError."""
    if not isinstance(document, dict):
        raise ValueError(f"it is no JSON object, so it has no member {name!r}")
    if name in document:
        return document[name]
    found: object = document
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            names = ", ".join(list(document)[:10]) or "none"
            raise ValueError(f"there is no member {name!r}; it has {names}")
        found = found[part]
    return found


def key_of(value: object) -> bytes | None:
    """Strings as they are, null as no key, everything else as its JSON text."""
    if isinstance(value, str):
        return value.encode()
    if value is None:
        return None
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def timestamp_of(value: object, name: str) -> int:
    """Milliseconds since the epoch, from a number of them or from ISO 8601 (UTC where it names no zone)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"member {name!r} is no timestamp; valid are milliseconds since 1970 and ISO 8601")
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"member {name!r} is {value!r}, which is not ISO 8601") from None
        since = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - datetime(
            1970, 1, 1, tzinfo=UTC
        )
        value = (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
    if not 0 <= value < 2**63:
        raise ValueError(f"member {name!r} is {value}, which Kafka takes for no time")
    return int(value)
