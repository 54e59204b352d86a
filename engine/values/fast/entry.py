"""The two compiled functions that Python calls, kept on disk between processes.

numba looks at the file of the cached function alone to tell whether it is still the same. So the text of all
kernel modules is part of what it keeps these two under.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from numba import njit

from engine.values.fast import kernel

_MODULES = ("primitives.py", "scalars.py", "nested.py", "kernel.py")


def _digest() -> int:
    """A number that changes with the text of the kernel's modules; 1 where there is no text."""
    text = hashlib.sha256()
    try:
        for name in _MODULES:
            text.update(Path(__file__).with_name(name).read_bytes())
    except OSError:  # installed without sources
        return 1
    return int.from_bytes(text.digest()[:7], "big") | 1


def _entries(digest: int) -> tuple[Any, Any]:
    """`kernel.parse` and `kernel.gather`; the digest is in their closures, which numba keeps them under too."""

    def parse(plan, bets, slots, base, size, offsets, valid, rest):  # type: ignore[no-untyped-def]
        assert digest
        return kernel.parse(plan, bets, slots, base, size, offsets, valid, rest)

    def gather(jobs, count, rows, source):  # type: ignore[no-untyped-def]
        assert digest
        kernel.gather(jobs, count, rows, source)

    try:
        return njit(nogil=True, cache=True)(parse), njit(nogil=True, cache=True)(gather)
    except RuntimeError:  # no folder to keep anything in: each process compiles for itself
        return njit(nogil=True)(parse), njit(nogil=True)(gather)


parse, gather = _entries(_digest())
