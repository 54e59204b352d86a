"""The envelopes of change events, Debezium's and DynamoDB Streams', as SQL over a batch.

Both come down to the same columns: what happened, the image that holds the row, the key's old image, and
the place in the order. Not here: the types of the row's columns (`types`), and running the SQL.

Sources: Debezium, "Data change events"; DynamoDB Streams API reference, ``Record`` and ``StreamRecord``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from functions.etl import types

#: Columns that may hold a whole envelope as JSON text, in the order in which they are looked for.
ENVELOPE_COLUMNS = ("line", "payload", "value")
#: An order column of this name is the record's own offset.
OFFSET = "_offset"
#: JSON numbers with more digits have passed through a double, and may have lost some.
_EXACT_DIGITS_MAX = 15


@dataclass(frozen=True, slots=True)
class Plan:
    """What to make of change events; built and checked by `functions.etl.changes`."""

    shape: str  #: "debezium" or "dynamodb"
    columns: Mapping[str, str]  #: name to normal type
    key: tuple[str, ...]
    order: str
    empty_is_null: bool
    trace: tuple[str, ...]  #: trace columns that the batch has

    @property
    def order_type(self) -> str:
        """DynamoDB's sequence numbers have up to 40 digits, real ones 21 to 28; a BIGINT holds 18."""
        return "DECIMAL(38,0)" if self.shape == "dynamodb" and self.order != OFFSET else "BIGINT"


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"


def path(*members: str) -> str:
    """A JSON path as an SQL string; members hold no quotes, backslashes or asterisks."""
    return literal("$" + "".join(f'."{member}"' for member in members))


def sql(plan: Plan, names: Sequence[str]) -> str:
    """The query over ``batch`` with the columns ``names``: rows in order, ``_refused`` is NULL or the reason."""
    trace = "".join(f"{quoted(name)}, " for name in plan.trace)
    values = ", ".join(
        f"{_text(plan, place)} AS s{place}, {_given(plan, place)} AS g{place}" for place in _places(plan)
    )
    typed = ", ".join(
        f"{types.conversion(kind, f's{place}')} AS c{place}"
        for place, kind in enumerate(plan.columns.values(), start=1)
    )
    order = "_offset" if plan.order == OFFSET else types.conversion(plan.order_type, "position")
    out = "".join(f"c{place} AS {quoted(name)}, " for place, name in enumerate(plan.columns, start=1))
    return f"""
        WITH opened AS (SELECT *, {_opened(plan, names)} AS members FROM batch),
        envelopes AS (SELECT {trace} {_envelope(plan, names)} FROM opened),
        images AS (SELECT *, {_images(plan)} FROM envelopes),
        found AS (SELECT *, {_extracted(plan)} FROM images),
        texts AS (SELECT *, {values} FROM found),
        typed AS (SELECT *, {typed}, {order} AS ordered FROM texts)
        SELECT {trace} {out} ordered AS _order, deleted AS _deleted, {_refused(plan)} AS _refused FROM typed
    """  # noqa: S608 - made of checked names only, see `changes`


def _places(plan: Plan) -> range:
    return range(1, len(plan.columns) + 1)


def _members(plan: Plan) -> list[tuple[str, ...]]:
    """Where an envelope has what happened, the old image or keys, the new image, and the order."""
    order = ("unordered",) if plan.order == OFFSET else tuple(plan.order.split("."))
    if plan.shape == "dynamodb":
        return [("eventName",), ("dynamodb", "Keys"), ("dynamodb", "NewImage"), ("dynamodb", *order)]
    return [("op",), ("before",), ("after",), order]


def _whole(plan: Plan, names: Sequence[str]) -> str | None:
    """The column that holds whole envelopes, if the batch's columns are not their first level."""
    if _members(plan)[0][0] in names:
        return None
    return next(quoted(name) for name in ENVELOPE_COLUMNS if name in names)


def _opened(plan: Plan, names: Sequence[str]) -> str:
    """The members of whole envelopes, as a list; NULL for what is not JSON."""
    whole = _whole(plan, names)
    if whole is None:
        return "NULL"
    members = _members(plan)
    # With Kafka Connect's schemas enabled the envelope stands under "payload".
    paths = ", ".join(path(*member) for member in [*members, *(("payload", *member) for member in members)])
    return f"CASE WHEN json_valid({whole}) THEN json_extract({whole}, [{paths}]) END"


def _envelope(plan: Plan, names: Sequence[str]) -> str:
    """Columns ``op, before, after, position`` and ``fault``, a reason that was found already."""
    if _whole(plan, names) is None:
        op, *pieces = (_member(member) for member in _members(plan)[: 3 if plan.order == OFFSET else 4])
        op = quoted(_members(plan)[0][0])
        fault = "NULL"
    else:
        op, *pieces = (f"coalesce(members[{n}], members[{n + 4}])" for n in range(1, 5))
        op = _unquoted(op)
        fault = "CASE WHEN members IS NULL THEN 'the record is not valid JSON' END"
    position = "NULL" if plan.order == OFFSET else _unquoted(pieces[2])
    return f"{op} AS op, {pieces[0]} AS before, {pieces[1]} AS after, {position} AS position, {fault} AS fault"


def _member(member: Sequence[str]) -> str:
    """A member of an envelope whose first level was decoded to columns."""
    top = quoted(member[0])
    if len(member) == 1:
        return f"CASE WHEN json_valid({top}) THEN {top} END"
    return f"CASE WHEN json_valid({top}) THEN json_extract({top}, {path(*member[1:])}) END"


def _unquoted(piece: str) -> str:
    return f"CASE WHEN {piece} <> 'null' THEN json_extract_string({piece}, '$') END"


def _images(plan: Plan) -> str:
    if plan.shape == "dynamodb":
        return """op = 'REMOVE' AS deleted,
            CASE WHEN op = 'REMOVE' THEN before WHEN op IN ('INSERT', 'MODIFY') THEN after END AS image"""
    return """op = 'd' AS deleted,
        CASE WHEN op = 'd' THEN before WHEN op IN ('c', 'u', 'r') THEN after END AS image"""


def _extracted(plan: Plan) -> str:
    """Lists of the members' JSON (``raw``), their unquoted texts (``txt``), and the old key (``old``)."""
    if plan.shape == "dynamodb":
        inner = [path(name, kind) for name, declared in plan.columns.items() for kind in types.attributes(declared)]
    else:
        inner = [path(name) for name in plan.columns]
    raw = ", ".join(path(name) for name in plan.columns)
    old = ", ".join(path(name) for name in plan.key)
    was = f"CASE WHEN op = 'u' AND before <> 'null' THEN json_extract_string(before, [{old}]) END"
    now = f"CASE WHEN op = 'u' AND before <> 'null' THEN json_extract_string(after, [{old}]) END"
    return f"""json_extract(image, [{raw}]) AS raw, json_extract_string(image, [{", ".join(inner)}]) AS txt,
        {was} AS old_key, {now} AS new_key"""


def _text(plan: Plan, place: int) -> str:
    """The text that a column's value is made from; NULL where the member has a type that cannot be it."""
    kind = list(plan.columns.values())[place - 1]
    key = list(plan.columns)[place - 1] in plan.key
    # A delete takes its key alone: what its old image says of other columns cannot keep it from being done.
    needed = "" if key else "NOT deleted AND "
    if kind == "JSON":
        return f"CASE WHEN {needed} raw[{place}] NOT IN ('null', '{{\"NULL\":true}}') THEN raw[{place}] END"
    if plan.shape == "dynamodb":
        start = 1 + sum(len(types.attributes(each)) for each in list(plan.columns.values())[: place - 1])
        parts = ", ".join(f"txt[{start + n}]" for n in range(len(types.attributes(kind))))
        value = f"coalesce({parts}, NULL)"
    elif kind == "VARCHAR":
        value = f"CASE WHEN starts_with(raw[{place}], '\"') THEN txt[{place}] END"
    elif kind.startswith("DECIMAL"):
        digits = f"length(regexp_replace(txt[{place}], '[^0-9]', '', 'g'))"
        sure = f"starts_with(raw[{place}], '\"') OR {digits} <= {_EXACT_DIGITS_MAX}"
        value = f"CASE WHEN {sure} THEN txt[{place}] END"
    else:
        value = f"txt[{place}]"
    if plan.empty_is_null and types.empty_is_absent(kind):
        value = f"nullif({value}, '')"
    return f"CASE WHEN {needed} true THEN {value} END" if needed else value


def _given(plan: Plan, place: int) -> str:
    """Whether the event gives a value that has to be taken."""
    name, kind = list(plan.columns.items())[place - 1]
    absent = ["null", '{"NULL":true}'] if plan.shape == "dynamodb" else ["null"]
    if plan.empty_is_null and types.empty_is_absent(kind):
        absent += ['""', '{"S":""}'] if plan.shape == "dynamodb" else ['""']
    given = f"coalesce(raw[{place}] NOT IN ({', '.join(map(literal, absent))}), false)"
    return given if name in plan.key else f"{given} AND NOT deleted"


def _refused(plan: Plan) -> str:
    """The first reason why a row cannot be taken, or NULL."""
    names = list(plan.columns)
    op, last = {
        "debezium": ("op", "op 't' empties the table, which no row by key can say"),
        "dynamodb": ("eventName", ""),
    }[plan.shape]
    ops = ("INSERT", "MODIFY", "REMOVE") if plan.shape == "dynamodb" else ("r", "c", "u", "d")
    valid = f"{', '.join(ops[:-1])} and {ops[-1]}"
    missing = "'Keys'" if plan.shape == "dynamodb" else "'before'"
    whens = [
        "WHEN fault IS NOT NULL THEN fault",
        f"WHEN op IS NULL THEN 'the record has no {op}: it is not a change event'",
        *([f"WHEN op = 't' THEN {literal(last)}"] if last else []),
        f"WHEN deleted AND coalesce(image, 'null') = 'null' THEN 'the delete has no ' || {missing}",
        f"WHEN op NOT IN ({', '.join(map(literal, ops))}) THEN 'op ' || left(op, 40) || ' is none of {valid}'",
        "WHEN NOT starts_with(coalesce(image, 'null'), '{') THEN 'the change has no new image of its row'",
    ]
    for place, name in enumerate(names, start=1):
        kind = list(plan.columns.values())[place - 1]
        shown = f"left(CAST(raw[{place}] AS VARCHAR), 60)"
        reason = f"{literal(name + ': ')} || {shown} || {literal(f' is not {kind}')}"
        whens.append(f"WHEN g{place} AND c{place} IS NULL THEN {reason}")
        if name in plan.key:
            whens.append(f"WHEN c{place} IS NULL THEN {literal(f'{name}: the key is missing')}")
    if plan.order != OFFSET:
        what = f"coalesce({literal(plan.order + ': ')} || left(position, 60) || ' is no {plan.order_type}',"
        whens.append(
            f"WHEN ordered IS NULL THEN {what} {literal(f'{plan.order}: the place in the order is missing')})"
        )
    if plan.shape == "debezium":
        # Old images may be partial: what they do not say has not changed.
        moved = " OR ".join(f"old_key[{n}] <> coalesce(new_key[{n}], '')" for n in range(1, len(plan.key) + 1))
        whens.append(
            f"WHEN {moved}"
            " THEN 'the update changes its key from ' || CAST(old_key AS VARCHAR)"
            " || ' to ' || CAST(new_key AS VARCHAR) || '; a delete and a create do that'"
        )
    return f"CASE {' '.join(whens)} END"
