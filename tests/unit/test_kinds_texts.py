"""JSON text without losing digits: as Python's own parser and writer have it, whichever way it takes."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.kinds import texts

NUMBERS = st.integers() | st.integers(-(10**40), 10**40) | st.integers(2**62, 2**66) | st.floats(allow_nan=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | st.integers(0, 10**60).map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(value=VALUES, indent=st.none() | st.just(1), plain=st.booleans())
def test_texts_are_read_as_python_reads_them(value: object, indent: int | None, plain: bool) -> None:
    """Whole numbers of any size, in any place; digits inside of strings; infinity."""
    text = json.dumps(value, indent=indent, ensure_ascii=plain)
    assert texts.loads(text.encode()) == json.loads(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_is_written_is_read_back(value: object) -> None:
    """Compact, in UTF-8, and the same value."""
    text = texts.dumps(value)
    assert texts.loads(text) == value
    assert b"\\u00e9" not in texts.dumps(["é", 2**80, value])


@pytest.mark.parametrize("text", [b"", b"{", b"nul", b"1 2", b"\xff", b"9" * 5000, b"[1," * 200_000])
def test_what_is_no_json_is_a_value_error(text: bytes) -> None:
    """Never anything else: these bytes come from other processes."""
    with pytest.raises(ValueError, match=r"."):
        texts.loads(text)


def test_nan_is_read() -> None:
    """AWS's Python runtime writes it."""
    found = texts.loads(b'{"n": [NaN, Infinity, 12345678901234567890]}')
    assert isinstance(found, dict)
    assert math.isnan(found["n"][0])
    assert found["n"][1:] == [math.inf, 12345678901234567890]
