"""CRC-32C and xxHash32 in compiled code: the checksums of record batches, and of the LZ4 frames in them.

CRC-32C takes the processor's own instruction where it has one (x86 with SSE 4.2, ARM with CRC), three stretches
side by side, else tables. Not here: where checksums lie and what follows from a wrong one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from connectors.kafka.kernel.codes import Bytes
from connectors.kafka.kernel.primitives import inner, load8, load32, load64, merged

_BITS32, _BITS64 = ir.IntType(32), ir.IntType(64)

#: CRC-32C's polynomial, its lowest power at the highest bit.
POLYNOMIAL = 0x82F63B78

#: A stretch: what one of three lanes takes in turn.
LANE_BYTES = 512


def _product(left: int, right: int) -> int:
    """Of two polynomials, modulo CRC-32C's."""
    made = 0
    for bit in range(31, -1, -1):
        if right >> bit & 1:
            made ^= left
        left = left >> 1 ^ (POLYNOMIAL if left & 1 else 0)
    return made


def _appended(count: int) -> int:
    """What multiplies a checksum when ``count`` zero bytes follow: x to the power of their bits."""
    made, power = 1 << 31, 1 << 30
    bits = 8 * count
    while bits:
        if bits & 1:
            made = _product(made, power)
        power = _product(power, power)
        bits >>= 1
    return made


def _table(places: int, count: int) -> npt.NDArray[np.int64]:
    """For each of ``places`` bytes of a checksum: what it becomes when ``count`` bytes, and those below, follow."""
    factors = [_appended(count + (0 if places == 4 else place)) for place in range(places)]
    if places == 4:
        rows = [[_product(factors[at], byte << 8 * at) for byte in range(256)] for at in range(4)]
    else:
        rows = [[_product(factor, byte) for byte in range(256)] for factor in factors]
    return np.array(rows, np.int64)


#: A checksum before ``LANE_BYTES`` zeros, by its four bytes; and bytes at 1 to 8 places from the end.
_LANE = _table(4, LANE_BYTES)
_WORD = _table(8, 1)


def _instruction(context: Any) -> str:
    """The instruction's name in LLVM, where the processor that is compiled for has it."""
    triple, _name, features = context.codegen().magic_tuple()
    if triple.startswith("x86_64") and "+sse4.2" in features:
        return "llvm.x86.sse42.crc32.64.64"
    if triple.startswith(("aarch64", "arm64")) and "+crc" in features.split(","):
        return "llvm.aarch64.crc32cx"
    return ""


def _has_instruction(_typing: Any) -> Any:
    def generate(context: Any, _builder: Any, _signature: Any, _arguments: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(bool(_instruction(context))))

    return types.boolean(), generate


def _step(_typing: Any, crc: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        name = _instruction(context)
        if not name:  # where it is never called
            return ir.Constant(_BITS64, 0)
        crc_type = _BITS64 if "x86" in name else _BITS32
        function = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(crc_type, [crc_type, _BITS64]))
        if crc_type is _BITS64:
            return builder.call(function, arguments)
        made = builder.call(function, [builder.trunc(arguments[0], _BITS32), arguments[1]])
        return builder.zext(made, _BITS64)

    return types.int64(types.int64, types.int64), generate


has_instruction: Any = intrinsic(_has_instruction)  #: whether `step` is more than a placeholder
step: Any = intrinsic(_step)  #: the checksum after eight more bytes


@merged
def _over_lane(crc: Any) -> Any:
    return _LANE[0, crc & 255] ^ _LANE[1, crc >> 8 & 255] ^ _LANE[2, crc >> 16 & 255] ^ _LANE[3, crc >> 24 & 255]


@inner
def crc32c(source: Bytes, at: int, end: int) -> Any:
    """The checksum of the bytes from ``at`` to ``end``, which the caller has checked."""
    crc = np.int64(0xFFFFFFFF)
    if has_instruction():
        while end - at >= 3 * LANE_BYTES:
            second, third = np.int64(0), np.int64(0)
            for place in range(at, at + LANE_BYTES, 8):
                crc = step(crc, load64(source, place))
                second = step(second, load64(source, place + LANE_BYTES))
                third = step(third, load64(source, place + 2 * LANE_BYTES))
            crc = _over_lane(_over_lane(crc) ^ second) ^ third
            at += 3 * LANE_BYTES
        while end - at >= 8:
            crc = step(crc, load64(source, at))
            at += 8
    while end - at >= 8:
        low = crc ^ load32(source, at)
        high = load32(source, at + 4)
        crc = (
            _WORD[7, low & 255] ^ _WORD[6, low >> 8 & 255] ^ _WORD[5, low >> 16 & 255] ^ _WORD[4, low >> 24]
            ^ _WORD[3, high & 255] ^ _WORD[2, high >> 8 & 255] ^ _WORD[1, high >> 16 & 255] ^ _WORD[0, high >> 24]
        )  # fmt: skip
        at += 8
    while at < end:
        crc = _WORD[0, (crc ^ load8(source, at)) & 255] ^ (crc >> 8)
        at += 1
    return crc ^ 0xFFFFFFFF


def _mix(_typing: Any, lane: Any, word: Any, before: Any, left: Any, after: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        lane, word, before, left, after = (builder.trunc(each, _BITS32) for each in arguments)
        made = builder.add(lane, builder.mul(word, before))
        rotate = builder.module.declare_intrinsic("llvm.fshl.i32", fnty=ir.FunctionType(_BITS32, [_BITS32] * 3))
        return builder.zext(builder.mul(builder.call(rotate, [made, made, left]), after), _BITS64)

    return types.int64(*[types.int64] * 5), generate


#: ``mix(lane, word, before, left, after)``: the step that all of xxHash32 is made of, in 32 bits: the word times
#: ``before`` added to the lane, rotated ``left``, times ``after``.
mix: Any = intrinsic(_mix)

_P1, _P2, _P3, _P4, _P5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393
_BITS = 0xFFFFFFFF


@inner
def xxh32(source: Bytes, at: int, end: int) -> Any:
    """xxHash32 with seed 0 of the bytes from ``at`` to ``end``, which the caller has checked."""
    length = end - at
    made = np.int64(_P5)
    if length >= 16:
        one, two, three, four = np.int64(_P1 + _P2), np.int64(_P2), np.int64(0), np.int64(-_P1)
        while end - at >= 16:
            one = mix(one, load32(source, at), _P2, 13, _P1)
            two = mix(two, load32(source, at + 4), _P2, 13, _P1)
            three = mix(three, load32(source, at + 8), _P2, 13, _P1)
            four = mix(four, load32(source, at + 12), _P2, 13, _P1)
            at += 16
        made = mix(one, 0, 0, 1, 1) + mix(two, 0, 0, 7, 1) + mix(three, 0, 0, 12, 1) + mix(four, 0, 0, 18, 1)
    made += length
    while end - at >= 4:
        made = mix(made, load32(source, at), _P3, 17, _P4)
        at += 4
    while at < end:
        made = mix(made, load8(source, at), _P5, 11, _P1)
        at += 1
    made &= _BITS
    made = (made ^ made >> 15) * _P2 & _BITS
    made = (made ^ made >> 13) * _P3 & _BITS
    return made ^ made >> 16
