"""The compiled function that Python calls, kept on disk between processes.

numba looks at the file of the cached function alone to tell whether it is still the same. So the text of all
modules that it is made of is part of what it keeps it under.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from numba import njit

from engine.filters import kernel
from engine.values.fast import nested

OWN_MODULES = ("codes.py", "kernel.py")
SHARED_MODULES = ("primitives.py", "scalars.py", "nested.py")


def _digest() -> int:
    """A number that changes with the text of the modules; 1 where there is no text."""
    text = hashlib.sha256()
    try:
        for path in [Path(__file__).with_name(name) for name in OWN_MODULES]:
            text.update(path.read_bytes())
        for path in [Path(nested.__file__).with_name(name) for name in SHARED_MODULES]:
            text.update(path.read_bytes())
    except OSError:  # installed without sources
        return 1
    return int.from_bytes(text.digest()[:7], "big") | 1


def _entry(digest: int) -> Any:
    """`kernel.judge`; the digest is in its closure, which numba keeps it under too."""

    def judge(plan, work, base, size, offsets, valid, rows, groups, verdicts):  # type: ignore[no-untyped-def]
        assert digest
        return kernel.judge(plan, work, base, size, offsets, valid, rows, groups, verdicts)

    try:
        return njit(nogil=True, cache=True)(judge)
    except RuntimeError:  # no folder to keep anything in: each process compiles for itself
        return njit(nogil=True)(judge)


judge = _entry(_digest())
