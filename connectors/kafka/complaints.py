"""Warnings that do not repeat themselves: of what goes wrong again and again, a line every few seconds.

Not here: what is said, and what is done about it.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable

from engine.protocols import Clock

#: How often the same thing is said.
AGAIN_SECONDS = 5.0


class Complaints:
    """One reader's warnings, told apart by a key."""

    def __init__(self, log: logging.Logger, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._said: dict[Hashable, float] = {}

    def warn(self, key: Hashable, text: str, *values: object) -> None:
        """Log a warning, unless one with this key was logged within the last `AGAIN_SECONDS`."""
        now, said = self._clock.monotonic(), self._said.get(key)
        if said is None or now - said >= AGAIN_SECONDS:
            self._said[key] = now
            self._log.warning(text, *values)

    def settle(self, key: Hashable) -> bool:
        """It is over: whether it was ever warned of since it last was."""
        return self._said.pop(key, None) is not None
