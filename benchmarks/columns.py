"""The fields of the benchmark's click events. Standard library only: systems read it before other imports."""

from __future__ import annotations

from collections.abc import Mapping

#: Names in their order, and their types in DuckDB.
CLICKS: Mapping[str, str] = {
    "event_id": "BIGINT",
    "user_id": "VARCHAR",
    "session": "VARCHAR",
    "page": "VARCHAR",
    "event_type": "VARCHAR",
    "ts": "BIGINT",
    "referrer": "VARCHAR",
    "ua": "VARCHAR",
    "price": "DOUBLE",
    "ip": "VARCHAR",
}
