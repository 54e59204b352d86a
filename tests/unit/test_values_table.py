"""The coercion tables of docs/values.md, row by row, against the decoder."""

import datetime
import itertools
import re
from decimal import Decimal
from pathlib import Path

import pytest

from engine.batch import Batch, from_rows
from engine.values import JsonDecoder, column_type

PAGE = (Path(__file__).parents[2] / "docs" / "values.md").read_text()

KINDS = {
    "null or missing": ["null"],
    "true, false": ["true", "false"],
    "integer": ["1", "0", "-1", "127", "300"],
    "other number": ["1.5", "1e2", "-0.25"],
    "string": ['"x"', '"1"', '"2024-02-29"', '"2024-02-29T12:00:00Z"', '"true"', '""'],
    "array": ["[]", '["a"]'],
    "object": ["{}", '{"a":1}'],
}


def rows_of(first_heading: str, columns: int) -> list[list[str]]:
    """The rows of the table whose head starts with the given cells."""
    lines = PAGE.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith(f"| {first_heading} |")]
    for head in heads:
        if lines[head].count("|") == columns + 1:
            body = itertools.takewhile(lambda line: line.startswith("|"), lines[head + 2 :])
            return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]
    raise AssertionError(f"no table {first_heading}")


MATRIX = [
    (name.strip(), kind, cell)
    for row in rows_of("column type", 8)
    for name in re.split(r",\s+(?=[A-Z])", row[0])
    for kind, cell in zip(KINDS, row[1:], strict=True)
]
EXAMPLES = rows_of("column type", 3)
REFUSED = rows_of("value", 2)


def batch_of(*values: bytes | None) -> Batch:
    rows = [(offset, 1000, None, value, ()) for offset, value in enumerate(values)]
    return from_rows("t", 0, rows, start=0, end=len(rows))


@pytest.mark.parametrize(("name", "kind", "cell"), MATRIX)
def test_matrix(name: str, kind: str, cell: str) -> None:
    """Each cell of the table says of each JSON type whether a column type takes it."""
    texts = KINDS[kind]
    batch = batch_of(*(f'{{"c":{text}}}'.encode() for text in texts))
    decoded = JsonDecoder({"c": name}, rest=False).decode(batch)
    refused = {fault.offset for fault in decoded.faults}
    values = decoded.columns.column("c").to_pylist()
    if cell == "fails":
        assert refused == set(range(len(texts)))
    elif cell == "NULL":
        assert values == [None] * len(texts)
    else:
        assert values
        assert None not in values
        if cell in ("value", "JSON text", "nearest", "exact"):
            assert not refused


def test_matrix_names_every_type() -> None:
    """No column type is missing from the table."""
    from engine.values.types import FIXED

    assert {name for name, _, _ in MATRIX} == {*FIXED, "DECIMAL(9,2)", "VARCHAR[]"}


@pytest.mark.parametrize(("name", "text", "becomes"), EXAMPLES)
def test_examples(name: str, text: str, becomes: str) -> None:
    """Each example gives exactly the value that the page shows, of its Python type, or one fault."""
    value = text.strip("`")
    decoded = JsonDecoder({"c": name}, rest=True).decode(batch_of(f'{{"c":{value}}}'.encode()))
    if becomes == "fails":
        assert decoded.columns.num_rows == 0
        [fault] = decoded.faults
        assert '"c"' in fault.reason
        return
    assert decoded.faults == ()
    expected = eval(becomes, {"Decimal": Decimal, "datetime": datetime})
    actual = decoded.columns.column("c").to_pylist()[0]
    assert (type(actual), actual) == (type(expected), expected)
    assert decoded.columns.column("c").type == column_type(name)


@pytest.mark.parametrize("text", [row[0].strip("`") for row in REFUSED])
def test_refused_whole(text: str) -> None:
    """Each value that the page says is refused whole is one fault, and its neighbours are not."""
    batch = batch_of(b'{"a":"1"}', text.encode(), b'{"a":"2"}')
    decoded = JsonDecoder({"a": "JSON"}, rest=True).decode(batch)
    assert [fault.offset for fault in decoded.faults] == [1]
    assert decoded.columns.column("_offset").to_pylist() == [0, 2]
