"""Columns of parsed JSON members turned into Arrow arrays: the coercion table of ``docs/values.md``, strict.

Each type has a fast way, a few passes over the whole column, and a slow one, value by value, that says what
is wrong. The slow way runs only for a column whose fast way refused. Not here: parsing
(`engine.values.documents`), and which columns there are (`engine.values.schema`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.values.documents import exact, has_float, may_be_rounded, to_decimal, to_text
from engine.values.reasons import Literal, Refused, describe
from engine.values.types import type_name_of

_NONE = type(None)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

#: Instants are of the years 1 to 9999, as in ISO 8601 and in Python. Microseconds since the epoch.
_MICROS_MIN = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_MICROS_MAX = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_DAYS_MIN = date.min.toordinal() - date(1970, 1, 1).toordinal()

# No year 0000: a zone could lead out of it into year 1, and whether that is seen would depend on the neighbours.
_YEAR = r"(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_DAY = rf"{_YEAR}-[0-9]{{2}}-[0-9]{{2}}"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:[.][0-9]{1,%d})?)?"
_ZONE = r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"


class Column:
    """One column: its field, the Python types that its values may have, and how they become an array.

    ``fast`` takes values of these types only and gives the array, or None if one does not fit.
    ``slow`` takes one value that is not None, and gives what ``finish`` makes an array of, or raises Refused.
    """

    def __init__(
        self,
        field: pa.Field,
        kinds: set[type],
        fast: Callable[[Sequence[Any], set[type]], pa.Array | None],
        slow: Callable[[Any], object],
        finish: Callable[[list[Any]], pa.Array] | None = None,
        *,
        keeps_digits: bool = False,
    ) -> None:
        self.field = field
        self.type_name = type_name_of(field)
        self.keeps_digits = keeps_digits
        self._kinds = {*kinds, _NONE}
        self._fast = fast
        self._slow = slow
        self._finish = finish if finish is not None else lambda values: pa.array(values, field.type)

    def array(self, values: Sequence[Any], raws: Sequence[bytes]) -> tuple[pa.Array, dict[int, str]]:
        """The array, with NULL where a value is refused, and the reasons by row.

        ``values`` are of parsed documents, ``raws`` the texts that they are from.
        """
        name = self.field.name
        if self.keeps_digits:
            values = [
                exact(raw)[name] if value is not None and has_float(value) and may_be_rounded(raw) else value
                for value, raw in zip(values, raws, strict=True)
            ]
        array, wrong = self.convert(values)
        reasons = {}
        for row, why in wrong.items():
            value = values[row]
            if has_float(value):  # a number of 20 digits is a float by now: show it as it was written
                value = exact(raws[row])[name]
            reasons[row] = f'column "{name}" wants {self.type_name}, found {describe(value)}{why}'
        return array, reasons

    def convert(self, values: Sequence[Any]) -> tuple[pa.Array, dict[int, str]]:
        """The array, with NULL where a value is refused; by row, what to say after naming the value."""
        wrong: dict[int, str] = {}
        kinds = set(map(type, values))
        if not kinds <= self._kinds:
            values = list(values)
            for row, value in enumerate(values):
                if type(value) not in self._kinds:
                    wrong[row] = self._why(value)
                    values[row] = None
            kinds &= self._kinds
        array = self._fast(values, kinds)
        if array is not None:
            return array, wrong
        fitting: list[object] = []
        for row, value in enumerate(values):
            try:
                fitting.append(None if value is None else self._slow(value))
            except Refused as refused:
                wrong[row] = f": {refused}"
                fitting.append(None)
        return self._finish(fitting), wrong

    def _why(self, value: object) -> str:
        """Words for a value whose type is wrong; a number of another kind deserves some."""
        if type(value) is float and int in self._kinds and float not in self._kinds:
            return f": {'out of range or ' if abs(value) >= 2**63 else ''}not written as an integer"
        return ""


class ListColumn(Column):
    """A column of lists. One element that does not fit refuses its record."""

    def __init__(self, field: pa.Field, element: Column) -> None:
        super().__init__(field, {list}, lambda _values, _kinds: None, lambda value: value, keeps_digits=True)
        self._element = element

    def convert(self, values: Sequence[Any]) -> tuple[pa.Array, dict[int, str]]:
        values = list(values)
        wrong: dict[int, str] = {}
        for row, value in enumerate(values):
            if type(value) is not list and value is not None:
                wrong[row] = ""
                values[row] = None
        flat: list[object] = []
        ends: list[int] = []
        rows: list[int] = []
        for row, value in enumerate(values):
            if value is not None:
                flat += value
                rows += [row] * len(value)
            ends.append(len(flat))
        array, refused = self._element.convert(flat)
        for place, why in refused.items():
            row = rows[place]
            index = place - (ends[row - 1] if row else 0)
            wrong.setdefault(row, f" with {describe(flat[place])} at index {index}{why}")
        offsets = pa.array([0, *ends], pa.int32())
        mask = pa.array([value is None for value in values], pa.bool_())
        return pa.ListArray.from_arrays(offsets, array, type=self.field.type, mask=mask), wrong


def column(field: pa.Field) -> Column:
    """How the column of a field is filled. Raises ValueError for a type that no column type stands for."""
    name = type_name_of(field)
    if name.endswith("[]"):
        metadata = field.metadata if name.startswith("JSON") else None
        if metadata is not None:
            metadata = {key: value.removesuffix(b"[]") for key, value in metadata.items()}
        return ListColumn(field, column(pa.field("element", field.type.value_type, metadata=metadata)))
    if name == "JSON":
        return _json(field)
    if name.startswith("DECIMAL"):
        return _decimal(field)
    if pa.types.is_integer(field.type):
        return _integer(field)
    if pa.types.is_floating(field.type):
        return _floating(field)
    if pa.types.is_timestamp(field.type):
        return _timestamp(field)
    if name == "DATE":
        return _date(field)
    return Column(field, {bool if name == "BOOLEAN" else str}, _plain(field.type), _itself)


def _itself(value: object) -> object:
    return value


def _plain(arrow: pa.DataType) -> Callable[[Sequence[Any], set[type]], pa.Array | None]:
    def fast(values: Sequence[Any], kinds: set[type]) -> pa.Array | None:
        try:
            return pa.array(values, arrow)
        except (pa.ArrowInvalid, OverflowError):
            return None

    return fast


def _integer(field: pa.Field) -> Column:
    bits = field.type.bit_width
    signed = pa.types.is_signed_integer(field.type)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def slow(value: int) -> int:
        if not low <= value <= high:
            raise Refused(f"out of range, which is {low} to {high}")
        return value

    return Column(field, {int}, _plain(field.type), slow)


def _floating(field: pa.Field) -> Column:
    single = field.type.bit_width == 32

    def fast(values: Sequence[Any], kinds: set[type]) -> pa.Array | None:
        if int in kinds:  # Arrow refuses integers that a double has to round; float() takes the nearest
            values = [float(value) if type(value) is int else value for value in values]
        array = pa.array(values, pa.float64())
        if single:
            array = array.cast(pa.float32())
            if pc.any(pc.is_inf(array)).as_py():
                return None
        return array

    def slow(value: float) -> float:
        if pc.is_inf(pa.scalar(float(value), pa.float64()).cast(pa.float32())).as_py():
            raise Refused("out of range, which is -3.4028235e38 to 3.4028235e38")
        return float(value)

    def finish(values: list[Any]) -> pa.Array:
        return pa.array(values, pa.float64()).cast(field.type)

    return Column(field, {int, float}, fast, slow, finish)


def _decimal(field: pa.Field) -> Column:
    digits, scale = field.type.precision, field.type.scale

    def slow(value: object) -> Decimal:
        sign, figures, exponent = to_decimal(value).as_tuple()
        assert isinstance(exponent, int), "orjson lets no NaN or infinity pass"
        written = "".join(map(str, figures))
        number = written.strip("0")  # of any length: never made an int
        exponent += len(written) - len(written.rstrip("0"))
        if not number:
            return Decimal(0)
        if exponent < -scale:
            raise Refused(f"more than {scale} digits after the point")
        if len(number) + exponent > digits - scale:
            raise Refused(f"more than {digits - scale} digits before the point")
        return Decimal((sign, tuple(map(int, number)), exponent))

    def fast(values: Sequence[Any], kinds: set[type]) -> pa.Array | None:
        try:
            return pa.array([None if value is None else to_decimal(value) for value in values], field.type)
        except pa.ArrowInvalid:
            return None

    return Column(field, {int, float, Literal}, fast, slow, keeps_digits=True)


def _json(field: pa.Field) -> Column:
    def fast(values: Sequence[Any], kinds: set[type]) -> pa.Array:
        if kinds == {_NONE}:
            return pa.nulls(len(values), field.type)
        return pa.array([None if value is None else to_text(value) for value in values], field.type)

    return Column(field, {bool, int, float, Literal, str, list, dict}, fast, to_text, keeps_digits=True)


def _date(field: pa.Field) -> Column:
    plain = re.compile(_DAY)

    def slow(value: str) -> date:
        try:
            if plain.fullmatch(value):
                return date.fromisoformat(value)
        except ValueError:
            pass
        raise Refused("not a date of the calendar as YYYY-MM-DD")

    def fast(values: Sequence[Any], kinds: set[type]) -> pa.Array | None:
        texts = pa.array(values, pa.string())
        if not pc.all(pc.match_substring_regex(texts, rf"\A{_DAY}\z"), min_count=0).as_py():
            return None
        try:
            days = texts.cast(field.type)
        except pa.ArrowInvalid:
            return None
        first = pc.min(days.cast(pa.int32())).as_py()
        return days if first is None or first >= _DAYS_MIN else None

    return Column(field, {str}, fast, slow)


def _timestamp(field: pa.Field) -> Column:
    unit, zoned_only = field.type.unit, field.type.tz is not None
    decimals, micros_per_unit = (3, 1000) if unit == "ms" else (6, 1)
    bare = f"{_DAY}[T ]{_TIME % decimals}"
    with_zone, without_zone = rf"\A{bare}{_ZONE}\z", rf"\A{bare}\z"
    either = re.compile(f"{bare}({_ZONE})?")
    low, high = _MICROS_MIN // micros_per_unit, _MICROS_MAX // micros_per_unit

    def slow(value: int | str) -> int:
        if isinstance(value, int):
            if not _MICROS_MIN <= value * 1000 <= _MICROS_MAX:
                raise Refused("as milliseconds since 1970 it is not of the years 1 to 9999")
            return value * 1000 // micros_per_unit
        match = either.fullmatch(value)
        if match is None:
            raise Refused(f"not ISO 8601 as YYYY-MM-DDThh:mm:ss with at most {decimals} decimals")
        if match[1] is None and zoned_only:
            raise Refused("it has no zone (Z or +hh:mm)")
        try:
            instant = datetime.fromisoformat(value)
            instant = instant.replace(tzinfo=UTC) if match[1] is None else instant.astimezone(UTC)
        except (ValueError, OverflowError):
            raise Refused("no such day or time between the years 1 and 9999") from None
        return (instant - _EPOCH) // _MICROSECOND // micros_per_unit

    def finish(values: list[Any]) -> pa.Array:
        return pa.array(values, pa.int64()).cast(field.type)

    def fast(values: Sequence[Any], kinds: set[type]) -> pa.Array | None:
        if kinds >= {int, str}:
            return None
        try:
            if int in kinds:
                stamps = pa.array(values, pa.int64()).cast(pa.timestamp("ms")).cast(pa.timestamp(unit))
            else:
                texts = pa.array(values, pa.string())
                if pc.all(pc.match_substring_regex(texts, with_zone), min_count=0).as_py():
                    stamps = texts.cast(pa.timestamp(unit, "UTC"))
                elif not zoned_only and pc.all(pc.match_substring_regex(texts, without_zone)).as_py():
                    stamps = texts.cast(pa.timestamp(unit))
                else:
                    return None
        except (pa.ArrowInvalid, OverflowError):
            return None
        bounds = pc.min_max(stamps.cast(pa.int64()))
        if bounds["min"].as_py() is not None and (bounds["min"].as_py() < low or bounds["max"].as_py() > high):
            return None
        return stamps.cast(field.type)

    return Column(field, {int, str}, fast, slow, finish)
