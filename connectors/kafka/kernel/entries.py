"""The compiled functions that Python calls, kept on disk between processes.

numba looks at the file of the cached function alone to tell whether it is still the same, so the text of all of
the kernel's modules is part of what these are kept under. They lie beside this module, in the user's cache folder
where that is not writable, or in ``NUMBA_CACHE_DIR``; the first process that needs them spends some seconds on
compiling. Not here: what they do (`.frames`, `.records`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from connectors.kafka.kernel import frames as frames_module
from connectors.kafka.kernel import records as records_module

log = logging.getLogger("headrace.kafka")

Function = TypeVar("Function", bound=Callable[..., Any])

MODULES = ("codes.py", "primitives.py", "checksums.py", "frames.py", "records.py")


def compiled(function: Function) -> Function:
    """``function`` as machine code, kept on disk where there is a place for it."""
    made: Any
    try:
        made = numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")(function)
    except RuntimeError as error:  # neither this directory nor the user's cache can be written to
        log.warning("compiling anew in every process, set NUMBA_CACHE_DIR to keep the result: %s", error)
        made = numba.njit(cache=False, nogil=True, boundscheck=False, error_model="numpy")(function)
    return cast(Function, made)


def _digest() -> int:
    """A number that changes with the text of the kernel's modules; 1 where there is no text."""
    text = hashlib.sha256()
    try:
        for name in MODULES:
            text.update(Path(__file__).with_name(name).read_bytes())
    except OSError:  # installed without sources
        return 1
    return int.from_bytes(text.digest()[:7], "big") | 1


def _entries(digest: int) -> tuple[Any, Any, Any]:
    """The digest is in their closures, which numba keeps them under too."""

    def walk(source, position, frames):  # type: ignore[no-untyped-def]
        assert digest
        return frames_module.walk(source, position, frames)

    def plan(source, frames, first, checked, clock, special, bytes_max, places, blocks):  # type: ignore[no-untyped-def]
        assert digest
        return frames_module.plan(source, frames, first, checked, clock, special, bytes_max, places, blocks)

    def decode(response, inflated, frames, places, offset_min, bytes_max, cursors, outputs):  # type: ignore[no-untyped-def]
        assert digest
        return records_module.decode(response, inflated, frames, places, offset_min, bytes_max, cursors, outputs)

    return compiled(walk), compiled(plan), compiled(decode)


walk, plan, decode = _entries(_digest())
