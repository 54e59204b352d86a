"""Loads, copies and numbers, in compiled code: the words that the kernel is made of.

A function that is given an ``end`` reads nothing from there on. The loads and `put` check nothing: their callers
have. Not here: what the numbers mean.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from connectors.kafka.kernel.codes import Bytes

Function = TypeVar("Function", bound=Callable[..., Any])

assert sys.byteorder == "little", "numba has no others"

_BITS64 = ir.IntType(64)


def inner(function: Function) -> Function:
    """Compile for calls from other compiled functions."""
    # No fast-math, no bounds checks of numba's own: theirs raise, and cost a fifth.
    return cast(Function, njit(nogil=True, boundscheck=False, error_model="numpy")(function))


def inlined(function: Function) -> Function:
    """The same, put into its callers: for what is called several times for each record."""
    return cast(Function, njit(nogil=True, boundscheck=False, error_model="numpy", forceinline=True)(function))


def merged(function: Function) -> Function:
    """The same, put into its one caller before anything is compiled: for what is large.

    Each function is optimized again with every function that calls it, so that levels of calls cost seconds.
    """
    return cast(Function, njit(nogil=True, boundscheck=False, error_model="numpy", inline="always")(function))


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _load(bits: int, *, swapped: bool, signed: bool) -> Any:
    """``load(source, at)``: an int64 of ``bits`` at any address. It is as fast as reading a byte with a check."""
    kind = ir.IntType(bits)

    def load(_typing: Any, source: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _address(context, builder, signature.args[0], *arguments)
            value = builder.load(builder.bitcast(place, kind.as_pointer()), align=1)
            if swapped:
                value = builder.bswap(value)
            if bits == 64:
                return value
            return builder.sext(value, _BITS64) if signed else builder.zext(value, _BITS64)

        return types.int64(source, types.int64), generate

    return intrinsic(load)


load8 = _load(8, swapped=False, signed=False)
load32 = _load(32, swapped=False, signed=False)  #: little-endian, unsigned
load64 = _load(64, swapped=False, signed=True)
big16 = _load(16, swapped=True, signed=True)  #: big-endian, signed, as most of Kafka's numbers are
big32 = _load(32, swapped=True, signed=True)
big64 = _load(64, swapped=True, signed=True)
unsigned32 = _load(32, swapped=True, signed=False)


def _put(_typing: Any, source: Any, at: Any, length: Any, target: Any, used: Any) -> Any:
    """``put(source, at, length, target, used)``: copy ``length`` bytes. The caller has checked both ends.

    An assignment of slices is checked by numba as well, and costs a third of the whole decoding.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_at = _address(context, builder, signature.args[0], arguments[0], arguments[1])
        target_at = _address(context, builder, signature.args[3], arguments[3], arguments[4])
        memcpy: Any = cgutils.raw_memcpy
        memcpy(builder, target_at, source_at, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(source, types.int64, types.int64, target, types.int64), generate


put: Any = intrinsic(_put)


@inner
def long_varint(source: Bytes, at: int, end: int) -> tuple[Any, int]:
    """`varint` for numbers of any length."""
    result = np.uint64(0)
    shift = 0
    while shift <= 63:
        if at >= end:
            return np.int64(0), -1
        byte = load8(source, at)
        at += 1
        if shift == 63 and byte > 1:
            return np.int64(0), -1
        result |= np.uint64(byte & 127) << np.uint64(shift)
        if byte < 128:
            return np.int64(result >> np.uint64(1)) ^ -np.int64(result & np.uint64(1)), at
        shift += 7
    return np.int64(0), -1


@inlined
def varint(source: Bytes, at: int, end: int) -> tuple[Any, int]:
    """The zigzag number at ``at`` and the place behind it, which is -1 when it is malformed or reaches ``end``."""
    if at < end:
        byte = load8(source, at)
        if byte < 128:
            return (byte >> 1) ^ -(byte & 1), at + 1
        if at + 1 < end:
            more = load8(source, at + 1)
            if more < 128:
                byte = byte & 127 | more << 7
                return (byte >> 1) ^ -(byte & 1), at + 2
    return long_varint(source, at, end)


@inner
def is_utf8(source: Bytes, at: int, end: int) -> bool:
    """Whether the bytes are UTF-8: no overlong forms, no surrogates, nothing beyond U+10FFFF."""
    while at < end:
        lead = load8(source, at)
        at += 1
        if lead < 0x80:
            continue
        if lead < 0xC2 or lead > 0xF4:
            return False
        more = 1 if lead < 0xE0 else (2 if lead < 0xF0 else 3)
        if end - at < more:
            return False
        low, high = 0x80, 0xBF
        if lead == 0xE0:
            low = 0xA0
        elif lead == 0xED:
            high = 0x9F
        elif lead == 0xF0:
            low = 0x90
        elif lead == 0xF4:
            high = 0x8F
        for _ in range(more):
            byte = load8(source, at)
            at += 1
            if byte < low or byte > high:
                return False
            low, high = 0x80, 0xBF
    return True
