"""The two forms of the tests: the short one of `make test`, and the long ones that are asked for.

HEADRACE_CRASH=long is for what kills processes and brokers (`make crash`), HEADRACE_FUZZ=long for generated input
(`make fuzz`). Both forms run the same code; the long one has more of the same.
"""

from __future__ import annotations

import os

IS_CRASH_LONG = os.environ.get("HEADRACE_CRASH") == "long"
IS_FUZZ_LONG = os.environ.get("HEADRACE_FUZZ") == "long"


def examples(short: int, long: int) -> int:
    """How many examples a property of generated input is tried on."""
    return long if IS_FUZZ_LONG else short
