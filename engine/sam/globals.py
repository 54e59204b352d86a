"""SAM's Globals: what every function has unless it says otherwise (SAM specification, "Globals section").

Mappings are merged by key, lists are joined with the global items first, anything else is the function's own.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.sam.intrinsics import intrinsic


def merged(common: object, own: object) -> object:
    """``own`` with what it leaves to ``common``. An intrinsic function is one value."""
    if isinstance(common, list) and isinstance(own, list):
        return [*common, *own]
    if not isinstance(common, Mapping) or not isinstance(own, Mapping):
        return own
    if intrinsic(common) is not None or intrinsic(own) is not None:
        return own
    return {**common, **{key: merged(common[key], value) if key in common else value for key, value in own.items()}}
