"""Loads, stores and vector scans on plain addresses, in compiled code: the words that the kernel is made of.

An address is an ``int64``. Nothing here checks a bound: each function says which bytes it touches, and its
callers hold those to be inside the record. Not here: JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])

_BITS64, _BITS32, _BITS8 = ir.IntType(64), ir.IntType(32), ir.IntType(8)
_BLOCK = ir.VectorType(_BITS8, 32)
_HALF = ir.VectorType(_BITS8, 16)

BLOCK_BYTES = 32  #: what `scan` looks at


def compiled(function: F) -> F:
    """Compile for calls from other compiled functions: without the interpreter lock, dividing as NumPy does."""
    return cast(F, njit(nogil=True, error_model="numpy", boundscheck=False)(function))


def _intrinsic(arguments: int, build: Callable[[Any, list[Any]], Any]) -> Callable[..., int]:
    """A function of ``arguments`` int64, and of int64, whose body ``build`` writes."""
    returns = types.int64

    def codegen(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        value = build(builder, list(args))
        return ir.Constant(_BITS64, 0) if value is None else value

    if arguments == 1:

        def one(typing: Any, a: Any) -> Any:
            return returns(types.int64), codegen

        return cast(Callable[..., int], intrinsic(one))
    if arguments == 2:

        def two(typing: Any, a: Any, b: Any) -> Any:
            return returns(types.int64, types.int64), codegen

        return cast(Callable[..., int], intrinsic(two))
    raise AssertionError(arguments)


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _load(kind: Any) -> Callable[[Any, list[Any]], Any]:
    def build(builder: Any, args: list[Any]) -> Any:
        value = builder.load(_at(builder, args[0], kind), align=1)
        return value if kind is _BITS64 else builder.zext(value, _BITS64)

    return build


def _store(kind: Any) -> Callable[[Any, list[Any]], Any]:
    def build(builder: Any, args: list[Any]) -> Any:
        value = args[1] if kind is _BITS64 else builder.trunc(args[1], kind)
        builder.store(value, _at(builder, args[0], kind), align=1)

    return build


def _move(builder: Any, args: list[Any]) -> None:
    block = builder.load(_at(builder, args[1], _HALF), align=1)
    builder.store(block, _at(builder, args[0], _HALF), align=1)


def _scan(builder: Any, args: list[Any]) -> Any:
    block = builder.load(_at(builder, args[0], _BLOCK), align=1)

    def splat(octet: int) -> Any:
        return ir.Constant(_BLOCK, [octet] * BLOCK_BYTES)

    ends = builder.or_(
        builder.icmp_unsigned("<", block, splat(0x20)),
        builder.or_(
            builder.icmp_unsigned("==", block, splat(ord('"'))),
            builder.icmp_unsigned("==", block, splat(ord("\\"))),
        ),
    )
    high = builder.icmp_signed("<", block, splat(0))
    low_word = builder.zext(builder.bitcast(ends, _BITS32), _BITS64)
    high_word = builder.zext(builder.bitcast(high, _BITS32), _BITS64)
    return builder.or_(low_word, builder.shl(high_word, ir.Constant(_BITS64, 32)))


def _high_product(builder: Any, args: list[Any]) -> Any:
    wide = ir.IntType(128)
    product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
    return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), _BITS64)


load8 = _intrinsic(1, _load(_BITS8))  #: the byte at an address
load32 = _intrinsic(1, _load(_BITS32))  #: 4 bytes, unaligned
load64 = _intrinsic(1, _load(_BITS64))  #: 8 bytes, unaligned
store8 = _intrinsic(2, _store(_BITS8))  #: (to, value)
store32 = _intrinsic(2, _store(_BITS32))
store64 = _intrinsic(2, _store(_BITS64))
move16 = _intrinsic(2, _move)  #: (to, from): 16 bytes, unaligned

#: Of the 32 bytes at an address: a bit for each quote, backslash and control character in the lower half of
#: the result, a bit for each byte beyond ASCII in the upper half.
scan = _intrinsic(1, _scan)

high_product = _intrinsic(2, _high_product)  #: the upper 64 bits of the product of two unsigned numbers
shift_right = _intrinsic(2, lambda builder, args: builder.lshr(args[0], args[1]))  #: unsigned, by 0 to 63
below = _intrinsic(  #: 1 if the first is less than the second as unsigned numbers, else 0
    2, lambda builder, args: builder.zext(builder.icmp_unsigned("<", args[0], args[1]), _BITS64)
)
lowest_bit = _intrinsic(  #: the place of the lowest bit that is set, of a number that is not 0
    1, lambda builder, args: builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))
)
leading_zeros = _intrinsic(  #: of a number that is not 0, as 64 bits
    1, lambda builder, args: builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1))
)


@compiled
def get(array: int, place: int) -> int:
    """An element of an array of int64. Arrays that are passed on by address cost no reference counts."""
    return load64(array + 8 * place)


@compiled
def put(array: int, place: int, value: int) -> None:
    """Set an element of an array of int64."""
    store64(array + 8 * place, value)


@compiled
def copy(to: int, source: int, count: int) -> None:
    """Copy exactly ``count`` bytes between places that do not overlap."""
    if count >= 16:
        last = count - 16
        at = 0
        while at < last:
            move16(to + at, source + at)
            at += 16
        move16(to + last, source + last)
    elif count >= 8:
        store64(to, load64(source))
        store64(to + count - 8, load64(source + count - 8))
    elif count >= 4:
        store32(to, load32(source))
        store32(to + count - 4, load32(source + count - 4))
    else:
        for at in range(count):
            store8(to + at, load8(source + at))


@compiled
def same(left: int, right: int, count: int) -> bool:
    """Whether ``count`` bytes at two places are the same; touches no others."""
    if count >= 8:
        last = count - 8
        at = 0
        while at < last:
            if load64(left + at) != load64(right + at):
                return False
            at += 8
        return load64(left + last) == load64(right + last)
    if count >= 4:
        return bool(load32(left) == load32(right) and load32(left + count - 4) == load32(right + count - 4))
    for at in range(count):  # noqa: SIM110 - compiled
        if load8(left + at) != load8(right + at):
            return False
    return True
